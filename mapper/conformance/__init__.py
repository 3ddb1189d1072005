"""The standard tests of adapters: adopt `mapper.conformance.suite.Conformance` in a test, and run pytest.

It ships as the extra `promotions-mapper[conformance]`.

| module | holds |
|---|---|
| `suite` | the class to adopt |
| `adopter` | the declarations of the adapter's author, and helpers of the tests |
| `checks/` | the standard tests, a module for each subject |
| `lab` | conversations with an emulator, checked as strictly as the service checks them |
| `service` | the whole service, with its ledger |
| `faults`, `mutations`, `carts` | faults of the network; mutated replies; unusual carts |
| `amounts`, `cases` | compares outcomes; reports all failed cases of a test together |
| `plugin`, `scorecard` | the pytest plugin; the level of an adapter |
"""
