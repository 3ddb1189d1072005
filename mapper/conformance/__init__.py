"""What every adapter must pass: adopt `mapper.conformance.suite.Conformance` in a test, and run pytest.

Ships as the extra `promotions-mapper[conformance]`. `lab` holds conversations against an emulator, as strictly as the
service does; `service` is the whole service, with its ledger; `faults` is what goes wrong on the way; `carts` and
`replies` make what is hard to read; `scorecard` says what an adapter has earned; `plugin` is what pytest loads.
"""
