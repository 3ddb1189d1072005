"""The command: one JSON line per run; exit code 1 where an invariant was violated."""

import argparse
import asyncio
import dataclasses
import random
import sys
import tempfile
import uuid
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import msgspec

from tests import postgres
from tests.chaos import checker, plan, sabotage
from tests.chaos.run import Result, run

ENGINES = ("talon_one", "voucherify")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--engine", choices=(*ENGINES, "both"), default="both")
    parser.add_argument("--profile", choices=tuple(plan.PROFILES), default="long")
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--orders", type=int, help="how many, instead of the profile's")
    parser.add_argument("--seconds", type=float, help="over which they arrive, instead of the profile's")
    parser.add_argument("--seed", type=int, help="of an earlier run, to see it again")
    parser.add_argument("--sabotage", choices=tuple(sabotage.KINDS), default="", help="what to break on purpose")
    parser.add_argument("--keep", type=Path, help="a folder for history, ledger and books; else they are deleted")
    chosen = parser.parse_args()
    seed = chosen.seed if chosen.seed is not None else random.randrange(1_000_000)
    profile = plan.PROFILES[chosen.profile]
    profile = dataclasses.replace(
        profile, orders=chosen.orders or profile.orders, load_s=chosen.seconds or profile.load_s
    )
    failed = False
    for engine in ENGINES if chosen.engine == "both" else (chosen.engine,):
        with tempfile.TemporaryDirectory(prefix="mapper-chaos-") as temporary:
            folder = (chosen.keep or Path(temporary)) / engine
            folder.mkdir(parents=True)
            url = f"sqlite:///{folder}/ledger.db" if chosen.store == "sqlite" else asyncio.run(_new_schema())
            result = asyncio.run(run(folder, engine, url, profile, seed, chosen.sabotage))
        _tell(result, engine=engine, store=chosen.store, seed=seed, sabotage=chosen.sabotage)
        failed = failed or bool(result.violations)
    return int(failed)


def _tell(result: Result, **run: object) -> None:
    sys.stderr.writelines(f"{violation}\n" for violation in result.violations[:40])
    told = run | result.counts | checker.verdict(result.violations) | {"violations": len(result.violations)}
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
    sys.stdout.flush()


async def _new_schema() -> str:
    name = f"chaos_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(postgres.url())
    await connection.execute(f"CREATE SCHEMA {name}")
    await connection.close()
    return postgres.url(name)


if __name__ == "__main__":
    sys.exit(main())
