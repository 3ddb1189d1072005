"""Mutation tests of the core: does a test notice each small change?

    make mutants AREA=orders ARGS="--sample 150 --seed 1"

mutmut makes the mutants. In each area a sample is drawn by a seed and run (`chaos.mutant_tests`). A mutant is noticed
if a test fails, or if mypy refuses it, as `make lint` would; the others are printed. Mutants that only reword a
sentence for people are not drawn. Exit code 1 if an area is below its aim, or if mutants have not run.

It runs in a copy of the tree, in build/mutants. `--again` continues there and skips the mutants that have run: so a
stopped run can be finished with its seed, and another seed needs no new preparation. By default it takes 60 mutants of
each area, about a quarter of an hour of the processor.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mutmut.mutation.file_mutation import mutate_file_contents

from chaos import mutant_tests
from chaos.mutant_tests import FAILED, NO_TEST, SURVIVED

COPY = Path("build/mutants")
UNNOTICED = (SURVIVED, NO_TEST)
_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
SQL = {"SELECT", "INSERT", "UPDATE", "DELETE", "WHERE", "PRAGMA"}


@dataclass(frozen=True)
class Area:
    least: float
    """The share of the mutants that must be noticed."""
    files: str


AREAS = {
    "orders": Area(0.95, "mapper/orders/*.py"),
    "effects": Area(0.9, "adapters/*/effects.py"),
    "engine": Area(0.9, "mapper/engine/*.py"),
    "domain": Area(0.9, "mapper/domain/*.py"),
}
LEFT_OUT = {Path("mapper/orders/postgres.py")}  # its tests start a server
TESTS = (
    *("tests/domain", "tests/recording", "tests/test_promotions.py", "tests/nacelle/test_products.py"),
    *(f"tests/engine/test_{name}.py" for name in ("breaker", "engine", "promotion_engine", "transport")),
    *(f"tests/orders/test_{name}.py" for name in ("cancel", "identity", "ledger", "ledger_sqlite", "redeem")),
    "tests/adapters/test_cassettes.py",
    *(
        f"tests/adapters/talon_one/test_{name}.py"
        for name in ("answers", "asked_back", "code_case", "codes", "conversations", "effects", "one_price")
    ),
    *(f"tests/adapters/voucherify/test_{name}.py" for name in ("answers", "conversations", "effects", "stacking")),
)
SLOW = (
    "postgres",
    "password",
    "survives_kill",
    "several_processes",
    "breaker_costs",
    "client_is_imported",
)
"""Parts of the names of tests that start a server or a process, or wait."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos.mutants", description=__doc__)
    parser.add_argument("--area", choices=AREAS, help="one of the areas (default: all of them)")
    parser.add_argument("--sample", type=int, default=60, help="how many mutants of an area (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="the seed of an earlier run, to draw the same mutants")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at once (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="continue in the copy of the last run")
    chosen = parser.parse_args()
    seed = random.randrange(1_000_000) if chosen.seed is None else chosen.seed
    areas = [chosen.area] if chosen.area else [*AREAS]
    if not chosen.again:
        prepare()
    samples = {area: draw(area, chosen.sample, seed) for area in areas}
    codes = run([name for sample in samples.values() for name in sample], chosen.jobs)
    good = [report(area, codes, sample) for area, sample in samples.items()]
    return int(not all(good))


def draw(area: str, size: int, seed: int) -> dict[str, Path]:
    """By name, the file of each mutant of a sample."""
    every = [(name, path) for path in sources(area) for name in mutants(path)]
    random.Random(seed).shuffle(every)
    drawn: dict[str, Path] = {}
    for name, path in every:
        if len(drawn) < size and changes_behaviour(name, path):
            drawn[name] = path
    print(f"{area}: {len(drawn)} of {len(every)} mutants, seed {seed}", flush=True)
    return drawn


def sources(area: str) -> list[Path]:
    return [path for path in sorted(Path().glob(AREAS[area].files)) if path not in LEFT_OUT]


def prepare() -> None:
    """Copies the tree and puts all mutants into the copy; the environment selects the one to run."""
    shutil.rmtree(COPY, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True).stdout
    for name in listed.rstrip("\0").split("\0"):
        (COPY / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, COPY / name)
    for area in AREAS:
        for path in sources(area):
            text = (COPY / path).read_text("utf-8")
            _original(path).write_text(text, "utf-8")
            (COPY / path).write_text(mutate_file_contents(str(path), text).code, "utf-8")


def _original(path: Path) -> Path:
    return (COPY / path).with_suffix(".orig")


def run(drawn: list[str], jobs: int) -> dict[str, int]:
    """By mutant that has run, the exit code of its tests."""
    (COPY / mutant_tests.NAMES).write_text(json.dumps(drawn), "utf-8")
    options = ["-q", "-s", "--tb=short", "-p", "chaos.mutant_tests", "-p", "no:cacheprovider", "--rootdir=."]
    deselected = ["-k", " and ".join(f"not {part}" for part in SLOW)]
    with (COPY / "tests.log").open("wb") as log:
        subprocess.run(
            [sys.executable, "-m", "pytest", *options, *deselected, *TESTS],
            cwd=COPY,
            env=os.environ | {"MUTANT_UNDER_TEST": "", "MUTANT_JOBS": str(jobs)},
            stdout=log,
            stderr=log,
            check=False,
        )
    if not (COPY / mutant_tests.REACHED).is_file():
        sys.exit(f"The tests fail with nothing broken: see {COPY / 'tests.log'}")
    return mutant_tests.ended(COPY)


def report(area: str, codes: dict[str, int], drawn: dict[str, Path]) -> bool:
    """Prints what was noticed. False if it is too little or if mutants have not run."""
    total: Counter[str] = Counter()
    for name, path in drawn.items():
        code = codes.get(name)
        if code is None:
            continue
        if code not in UNNOTICED:
            total["by tests"] += 1
            if code != FAILED:
                print(f"\n{name} ended with {code}: it took too long")
        elif is_refused_by_types(name, path):
            total["by types"] += 1
        else:
            total["survived"] += 1
            print(f"\n{name}{' (no test comes by)' if code == NO_TEST else ''}\n{difference(name, path)}")
    if missing := drawn.keys() - codes.keys():
        print(f"\n{area}: {len(missing)} have not run, see {COPY / 'tests.log'}")
    share = 1 - total["survived"] / max(1, total.total())
    least = AREAS[area].least
    print(f"\n{area}: noticed {total['by tests']} by tests and {total['by types']} by types,", end=" ")
    print(f"{total['survived']} survived: {share:.1%} (at least {least:.0%})\n", flush=True)
    return share >= least and not missing


def is_refused_by_types(name: str, path: Path) -> bool:
    """Whether mypy refuses a mutant but not the unchanged function, unparsed in the same way, as `make lint` would."""
    before, after = functions(name, path)
    return not _has_types(name, path, after) and _has_types(name, path, before)


def _has_types(name: str, path: Path, body: ast.stmt) -> bool:
    text = _original(path).read_text("utf-8")
    owner, _, function = name.rpartition(".")[2].rpartition("__mutmut_")[0].rpartition("ǁ")
    owner, function = owner.removeprefix("xǁ"), function.removeprefix("x_") if not owner else function
    tree = ast.parse(text)
    scope = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == owner) if owner else tree
    original = next(n for n in scope.body if isinstance(n, _FUNCTIONS) and n.name == function)
    assert isinstance(body, _FUNCTIONS)
    body.name, body.decorator_list = function, original.decorator_list
    first = min([original.lineno, *(decorator.lineno for decorator in original.decorator_list)])
    lines = text.splitlines()
    lines[first - 1 : original.end_lineno] = [textwrap.indent(ast.unparse(body), " " * original.col_offset)]
    copy = _copy_for_types()
    command = [sys.executable, "-m", "mypy", "--config-file", str(Path("pyproject.toml").resolve()), str(path)]
    try:
        (copy / path).write_text("\n".join(lines) + "\n", "utf-8")
        return subprocess.run(command, cwd=copy, capture_output=True, check=False).returncode == 0
    finally:
        (copy / path).write_text(text, "utf-8")


@cache
def _copy_for_types() -> Path:
    """A copy of the packages for mypy. (With `--shadow-file`, its cache confuses mutants.)"""
    copy = COPY / "types"
    shutil.rmtree(copy, ignore_errors=True)
    for package in ("mapper", "adapters"):
        shutil.copytree(package, copy / package)
    return copy


def difference(name: str, path: Path) -> str:
    before, after = (ast.unparse(found).splitlines()[1:] for found in functions(name, path))
    return "\n".join(
        [*(f"- {line}" for line in before if line not in after), *(f"+ {line}" for line in after if line not in before)]
    )


def changes_behaviour(name: str, path: Path) -> bool:
    """Whether a mutant changes more than the words of a sentence."""
    before, after = functions(name, path)
    return ast.dump(_Wordless().visit(before)) != ast.dump(_Wordless().visit(after))


@cache
def _bodies(path: Path) -> dict[str, ast.stmt]:
    tree = ast.parse((COPY / path).read_text("utf-8"))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, _FUNCTIONS)}


def mutants(path: Path) -> list[str]:
    """The full names of a file's mutants."""
    module = ".".join(path.with_suffix("").parts)
    return [f"{module}.{name}" for name in _bodies(path) if "__mutmut_" in name and not name.endswith("_orig")]


def functions(name: str, path: Path) -> tuple[ast.stmt, ast.stmt]:
    """The original function and the mutant's, both freshly parsed, under one name."""
    mutant = name.rpartition(".")[2]
    original = f"{mutant.rpartition('__mutmut_')[0]}__mutmut_orig"
    before, after = (ast.parse(ast.unparse(_bodies(path)[one])).body[0] for one in (original, mutant))
    for one in (before, after):
        assert isinstance(one, _FUNCTIONS)
        one.name = "it"
    return before, after


class _Wordless(ast.NodeTransformer):
    """Removes what no test can see.

    Strings with a space are sentences for people, unless they are SQL, whose words may be in any case. `strict` and
    `assert_never` guard against bugs that no test can cause.
    """

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.keywords = [keyword for keyword in node.keywords if keyword.arg != "strict"]
        return self.generic_visit(node)

    def visit_Match(self, node: ast.Match) -> ast.AST:
        node.cases = [case for case in node.cases if "assert_never" not in ast.unparse(case.body[0])]
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if not isinstance(node.value, str) or len(words := node.value.upper().split()) < 2:
            return node
        if not SQL.intersection(words):
            return ast.Constant("a sentence")
        return node if "'" in node.value else ast.Constant(node.value.upper())


if __name__ == "__main__":
    sys.exit(main())
