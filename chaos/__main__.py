"""The command: one JSON line per run; exit code 1 if an invariant was violated.

With `--teeth` it tries each sabotage in turn; exit code 1 if three runs did not reveal one. A slow machine sends only a
third of the orders, and a rare fault may not happen among them.
"""

import argparse
import asyncio
import dataclasses
import random
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import msgspec

from chaos import checker, plan, sabotage
from chaos.run import Result, run
from tests.orders import postgres

NEVER_S = 86_400.0
ENGINES = ("talon_one", "voucherify")

TRIES = 3
# The violations that reveal each sabotage; one of them must be found.
TEETH = {
    "look-up": ("double", "sent_again"),
    "quarantine": ("double", "sent_again"),
    "fence": ("stale_steps",),
    "claim": ("no_intent",),
    "same": ("other_content",),
    "caller": ("unasked",),
    "undo": ("not_cancelled",),
}
assert TEETH.keys() == sabotage.KINDS.keys()


def main() -> int:
    chosen = _parser().parse_args()
    if chosen.seed is None:
        chosen.seed = random.randrange(1_000_000)
    failed = False
    for engine in ENGINES if chosen.engine == "both" else (chosen.engine,):
        if chosen.teeth:
            for kind, violations in TEETH.items():
                seen = (_run(chosen, engine, kind, chosen.seed + again) for again in range(TRIES))
                failed = not any(told[violation] for told in seen for violation in violations) or failed
        else:
            failed = _run(chosen, engine, chosen.sabotage, chosen.seed)["violations"] > 0 or failed
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--engine", choices=(*ENGINES, "both"), default="both")
    parser.add_argument("--profile", choices=tuple(plan.PROFILES), default="long")
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--orders", type=int, help="how many, instead of the profile's")
    parser.add_argument("--seconds", type=float, help="over which they arrive, instead of the profile's")
    parser.add_argument("--seed", type=int, help="the seed of an earlier run, to repeat it")
    parser.add_argument("--sabotage", choices=tuple(sabotage.KINDS), default="", help="what to break on purpose")
    parser.add_argument("--teeth", action="store_true", help="try each sabotage in turn")
    parser.add_argument("--keep", type=Path, help="a folder for history, ledger and books; else they are deleted")
    return parser


def _run(chosen: argparse.Namespace, engine: str, kind: str, seed: int) -> dict[str, Any]:
    """One run. Prints its figures; prints the violations on standard error."""
    profile = plan.PROFILES[chosen.profile]
    profile = dataclasses.replace(
        profile, orders=chosen.orders or profile.orders, load_s=chosen.seconds or profile.load_s
    )
    if chosen.store == "postgres":
        # Only the replicas' own disk is filled; PostgreSQL has another.
        profile = dataclasses.replace(profile, full_every_s=NEVER_S)
    with tempfile.TemporaryDirectory(prefix="mapper-chaos-") as temporary:
        folder = (chosen.keep or Path(temporary)) / f"{engine}-{kind or 'run'}-{seed}"
        folder.mkdir(parents=True)
        url = f"sqlite:///{folder}/ledger.db" if chosen.store == "sqlite" else asyncio.run(_new_schema())
        result: Result = asyncio.run(run(folder, engine, url, profile, seed, kind))
    sys.stderr.writelines(f"{violation}\n" for violation in result.violations[:40])
    about = {"engine": engine, "store": chosen.store, "seed": seed, "sabotage": kind}
    found = checker.verdict(result.violations)
    told = {**about, **result.counts, **found, "violations": len(result.violations)}
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
    sys.stdout.flush()
    return told


async def _new_schema() -> str:
    name = f"chaos_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(postgres.url())
    await connection.execute(f"CREATE SCHEMA {name}")
    await connection.close()
    return postgres.url(name)


if __name__ == "__main__":
    sys.exit(main())
