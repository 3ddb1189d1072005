"""`make security`: runs the tests of each check and prints the result by id. Exit code 1 if one failed."""

import re
import subprocess
import sys
from collections import Counter

from tests.security.checks import CHECKS


def nodes(tests: tuple[str, ...]) -> list[str]:
    """The arguments for pytest."""
    found = []
    for entry in tests:
        file, *names = entry.split()
        found += [f"{file}::{name}" for name in names] or [file]
    return found


def main() -> int:
    wanted = sorted({node for check in CHECKS.values() for node in nodes(check.tests)})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "--no-header", *wanted],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    ended = re.findall(r"^(PASSED|FAILED|ERROR) (\S+?)(?:\[|\s|$)", done.stdout, re.MULTILINE)
    results: dict[str, Counter[str]] = {}
    for result, node in ended:
        for name in (node, node.partition("::")[0]):
            results.setdefault(name, Counter())[result] += 1
    failed = []
    for name, check in CHECKS.items():
        ran = [results.get(node, Counter()) for node in nodes(check.tests)]
        good = all(one["PASSED"] and not (one["FAILED"] or one["ERROR"]) for one in ran)
        word = ("ok" if good else "FAILED") if ran else "elsewhere"
        failed += [name] if ran and not good else []
        print(f"{name:>4}  {word:<9}  {check.says}" + (f". {check.note}" if check.note else ""))
    proven = sum(bool(check.tests) for check in CHECKS.values())
    held = proven - len(failed)
    said = " ".join(failed) or "none"
    print(f"\n{held} of {proven} held, {len(CHECKS) - proven} are looked at elsewhere. Failed: {said}.")
    if failed or done.returncode:
        print(done.stdout[-8000:], done.stderr[-2000:])
    return 1 if failed or done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
