"""What every adapter must pass: adopt `mapper.conformance.suite.Conformance` in a test, and run pytest.

It ships as the extra `promotions-mapper[conformance]`.

| module | holds |
|---|---|
| `suite` | the class to adopt |
| `adopter` | what its author declares, and what the tests work with |
| `checks/` | the standard tests, a module for each thing that they check |
| `lab` | conversations with an emulator, checked as strictly as the service checks them |
| `service` | the whole service, with its ledger |
| `faults`, `mutations`, `carts` | what goes wrong on the network; mutated replies; carts that are easy to get wrong |
| `amounts`, `cases` | outcomes made comparable; all failed cases of a test reported together |
| `plugin`, `scorecard` | what pytest loads; what an adapter has earned |
"""
