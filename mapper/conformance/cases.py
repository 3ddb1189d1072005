"""Collects the failed cases of one test, so that all cases run and all failures are reported together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest

from mapper.adapter import EngineRejected, InvalidRequest
from mapper.conformance.lab import PROBLEMS, ContractViolation

MOST_REPORTED = 12
"""The most failures that one test reports."""


class Cases:
    """The cases of one test. Each is a `with` block; `report` fails the test if any of them failed."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    @contextmanager
    def case(self, *name: object) -> Iterator[None]:
        """A case fails by an assertion or by a problem that the adapter raises."""
        try:
            yield
        except PROBLEMS as problem:
            self._add(name, f"{type(problem).__name__} ({problem.reason}): {problem.message}")
        except AssertionError as error:
            cause = f" ({type(error.__cause__).__name__}: {error.__cause__})" if error.__cause__ else ""
            self._add(name, str(error).split("\nassert ")[0] + cause)

    @contextmanager
    def may_refuse(self, *name: object) -> Iterator[None]:
        """A case in which a problem is an acceptable answer."""
        with self.case(*name), suppress(*PROBLEMS):
            yield

    @contextmanager
    def no_outage(self, *name: object) -> Iterator[None]:
        """The engine works: a refusal is acceptable, `EngineUnavailable` is not, since it is retried."""
        with self.case(*name), suppress(EngineRejected, InvalidRequest):
            yield

    @contextmanager
    def must_refuse(self, *name: object) -> Iterator[None]:
        """A case in which only a problem is acceptable."""
        with self.may_refuse(*name):
            yield
            raise ContractViolation("is accepted")

    def report(self) -> None:
        __tracebackhide__ = True
        if self.failures:
            more = len(self.failures) - MOST_REPORTED
            lines = [*self.failures[:MOST_REPORTED], *([f"... and {more} more"] if more > 0 else [])]
            pytest.fail("\n".join(lines), pytrace=False)

    def _add(self, name: Sequence[object], failure: str) -> None:
        self.failures.append(f"{' / '.join(map(str, name))}: {failure}")
