"""The kit finds every mutant of the zoo (`mutants`). A mutant that it misses shows a gap in the standard tests.

`test_new_adapter` runs the kit on the package without a defect.
"""

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mapper.commands import new_adapter
from mapper.conformance import plugin
from mapper.conformance.lab import ContractViolation
from mapper.conformance.suite import Conformance
from tests.conformance.acme import describe, installed
from tests.conformance.mutants import MUTANTS

ZOO = {name: (test, module, old, new) for test, mutants in MUTANTS.items() for name, module, old, new in mutants}
WITHOUT_MUTANT = {
    "test_check_and_undo_keep_the_contract_on_mutated_replies",
    "test_faults_never_change_the_result_of_validate_and_check",
    "test_concurrent_processes_redeem_once",
    "test_redemption_delivered_twice_counts_once",
    "test_undo_completes_after_any_fault",
}
"""The engine of this package redeems an order id once, so other standard tests find the same defects."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo") / "promotions-acme"
    new_adapter.write("acme", folder)
    describe(folder)
    return folder


@pytest.fixture
def mutant(package: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Install the package with one defect; yield the test that must find it."""
    test, module, old, new = ZOO[request.param]
    file = package / "promotions_acme" / f"{module}.py"
    text = file.read_text("utf-8")
    assert old in text, f"{file.name} does not have {old!r} any more"
    file.write_text(text.replace(old, new), "utf-8")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "dont_write_bytecode", True)
            with installed(package):
                yield test
    finally:
        file.write_text(text, "utf-8")


def adopter(package: Path) -> Conformance:
    """Return the package's own conformance test."""
    spec = importlib.util.spec_from_file_location("promotions_test", package / "tests" / "test_conformance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Conformance = module.TestAcme()
    return found


def run(suite: Conformance, name: str, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Run one standard test as pytest would."""
    test = getattr(suite, name)
    with suite.laboratories() as new_lab:
        known: dict[str, Any] = {"new_lab": new_lab, "caplog": caplog, "tmp_path": tmp_path, "order": suite._order()}
        wanted = inspect.signature(test).parameters
        if "lab" in wanted:
            known["lab"] = new_lab()
        test(**{name: known[name] for name in wanted})


def test_nearly_every_standard_test_has_a_mutant() -> None:
    class Adopter(Conformance):
        pass

    assert len(ZOO) == sum(map(len, MUTANTS.values())), "two mutants have the same name"
    assert set(plugin.levels(Adopter)) - set(MUTANTS) == WITHOUT_MUTANT


@pytest.mark.parametrize("mutant", ZOO, indirect=True)
def test_kit_finds_an_adapter_that(
    mutant: str, package: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with pytest.raises((pytest.fail.Exception, AssertionError, ContractViolation)) as found:
        run(adopter(package), mutant, caplog, tmp_path)
    assert str(found.value)
