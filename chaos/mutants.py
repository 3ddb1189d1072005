"""The core, broken in small ways, one at a time: does a test notice?

    python -m chaos.mutants --sample 400 --seed 1

mutmut makes the mutants and finds out which tests come by which function (`[tool.mutmut]` in pyproject.toml says which
files and which tests). Here a sample is drawn by a seed, of all rooms alike, and run (`chaos.mutant_tests`); then it is
told per room how many were noticed, and each that was not. What only rewords a sentence for people is left out. It all
runs in a copy of the tree, in build/mutants.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from chaos import mutant_tests

COPY = Path("build/mutants")
MADE = COPY / "mutants"
ROOMS = {"mapper/orders": 0.95, "mapper/domain": 0.9, "mapper/engine": 0.9, "adapters": 0.9}
"""With the share that must be noticed."""
SURVIVED, FAILED, NO_TEST = 0, 1, 5
"""pytest's exit codes for a mutant that no test noticed, for one that was noticed, and where no test comes by."""
UNNOTICED = (SURVIVED, NO_TEST)
SQL = {"SELECT", "INSERT", "UPDATE", "DELETE", "WHERE", "PRAGMA"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos.mutants", description=__doc__)
    parser.add_argument("--sample", type=int, default=400, help="how many mutants (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of an earlier run, to draw the same ones")
    parser.add_argument("--only", default="", help="a part of the path of the files to take mutants of")
    parser.add_argument("--again", action="store_true", help="go on in the copy of the last run")
    chosen = parser.parse_args()
    seed = random.randrange(1_000_000) if chosen.seed is None else chosen.seed
    if not chosen.again:
        copy_tree()
        mutmut("there is no mutant of this name")  # makes them all, and sees which tests come by which function
    named = {name: path for path in metas() for name in mutants(path) if chosen.only in str(path)}
    wanted = [name for name in sorted(named) if is_told_apart(name, named[name])]
    drawn = random.Random(seed).sample(wanted, min(chosen.sample, len(wanted)))
    print(f"seed {seed}: {len(drawn)} of {len(wanted)} mutants")
    return tell(run(drawn), named)


def copy_tree() -> None:
    shutil.rmtree(COPY, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True).stdout
    for name in listed.rstrip("\0").split("\0"):
        (COPY / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, COPY / name)


def mutmut(*names: str) -> None:
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", "1", *names]
    with (COPY / "mutmut.log").open("ab") as log:
        subprocess.run(command, cwd=COPY, stdout=log, stderr=log, check=False)


def metas() -> list[Path]:
    return [path for room in ROOMS for path in sorted((MADE / room).rglob("*.py.meta"))]


def mutants(meta: Path) -> list[str]:
    return list(json.loads(meta.read_text("utf-8"))["exit_code_by_key"])


def run(drawn: list[str]) -> dict[str, int | None]:
    """Of each mutant, what its tests ended with; None where they have not run."""
    stats: dict[str, dict[str, Any]] = json.loads((MADE / "mutmut-stats.json").read_text("utf-8"))
    took: dict[str, float] = stats["duration_by_test"]
    jobs: dict[str, tuple[list[str], float]] = {}
    for name in drawn:
        reached = stats["tests_by_mangled_function_name"].get(name.rpartition("__mutmut_")[0], ())
        tests = sorted(reached, key=lambda test: took[test])
        if tests:
            jobs[name] = tests, sum(took[test] for test in tests)
    every = {test: None for tests, _ in jobs.values() for test in tests}
    jobs = {mutant_tests.WHOLE: ([*every], sum(took[test] for test in every)), **jobs}
    file = (MADE / "jobs.json").absolute()
    file.write_text(json.dumps(jobs), "utf-8")
    file.with_name(mutant_tests.ENDED).unlink(missing_ok=True)
    settings = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["tool"]["mutmut"]
    options = [*settings["pytest_add_cli_args"], *settings["pytest_add_cli_args_test_selection"]]
    plugin = ["-q", "-s", "--tb=no", "-p", "chaos.mutant_tests", "--rootdir=."]
    command = [sys.executable, "-m", "pytest", *plugin, *options]
    with (COPY / "tests.log").open("wb") as log:
        environment = os.environ | {"MUTANT_JOBS": str(file)}
        subprocess.run(command, cwd=MADE, env=environment, stdout=log, stderr=log, check=False)
    lines = file.with_name(mutant_tests.ENDED).read_text("utf-8").splitlines()
    ended = {found["name"]: found["code"] for found in map(json.loads, lines)}
    if ended.get(mutant_tests.WHOLE) != SURVIVED:
        sys.exit(f"The tests fail with nothing broken: see {COPY / 'tests.log'}")
    return {name: ended.get(name) if name in jobs else NO_TEST for name in drawn}


def tell(ended: dict[str, int | None], named: dict[str, Path]) -> int:
    """Prints what was noticed, per room; 1 where it is too little, or where mutants have not run."""
    total: Counter[str] = Counter()
    noticed: Counter[str] = Counter()
    for name, code in ended.items():
        room = next(room for room in ROOMS if (MADE / room) in named[name].parents)
        if code is None:
            print(f"has not run: {name}")
            continue
        total[room] += 1
        noticed[room] += code not in UNNOTICED
        if code in UNNOTICED:
            print(f"\n{name}{' (no test comes by)' if code == NO_TEST else ''}\n{difference(name, named[name])}")
        elif code != FAILED:
            print(f"\n{name} ended with {code}: it took too long")
    failed = None in ended.values()
    for room, least in ROOMS.items():
        if total[room]:
            share = noticed[room] / total[room]
            failed = failed or share < least
            print(f"{room}: {noticed[room]} of {total[room]} noticed, {share:.1%} (at least {least:.0%})")
    return int(failed)


def difference(name: str, meta: Path) -> str:
    before, after = (ast.unparse(found).splitlines()[1:] for found in functions(name, meta))
    return "\n".join(
        [*(f"- {line}" for line in before if line not in after), *(f"+ {line}" for line in after if line not in before)]
    )


def is_told_apart(name: str, meta: Path) -> bool:
    """Whether a mutant does something else, rather than to say the same in other words."""
    before, after = functions(name, meta)
    return ast.dump(_Wordless().visit(before)) != ast.dump(_Wordless().visit(after))


_trees: dict[Path, dict[str, ast.stmt]] = {}


def functions(name: str, meta: Path) -> tuple[ast.stmt, ast.stmt]:
    """A function as it is, and as the mutant has it; both freshly parsed, under one name."""
    if meta not in _trees:
        tree = ast.parse(meta.with_suffix("").read_text("utf-8"))
        _trees[meta] = {
            node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
    mutant = name.rpartition(".")[2]
    original = f"{mutant.rpartition('__mutmut_')[0]}__mutmut_orig"
    before, after = (ast.parse(ast.unparse(_trees[meta][one])).body[0] for one in (original, mutant))
    for one in (before, after):
        assert isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
        one.name = "it"
    return before, after


class _Wordless(ast.NodeTransformer):
    """Sentences, which have a space in them, are for people, unless they are SQL."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        words = node.value.upper().split() if isinstance(node.value, str) else []
        is_sentence = len(words) > 1 and not SQL.intersection(words)
        return ast.Constant("a sentence") if is_sentence else node


if __name__ == "__main__":
    sys.exit(main())
