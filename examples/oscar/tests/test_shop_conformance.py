"""The standard tests over the real shop: `make shop`. They are long because a request takes it 10 to 170 ms."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from shop_server import Shop, needed, running
from test_conformance import TestOscar as _Emulated

if os.environ.get("OSCAR_KIT") == "shop":
    SHOPS: list[Shop] = []

    @pytest.fixture(scope="module", autouse=True)
    def _shop() -> Iterator[None]:
        needed()
        with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as shop:
            SHOPS.append(shop)
            yield

    class TestShop(_Emulated):
        options = {**_Emulated.options, "BASE_URL": "http://127.0.0.1/api"}
        most_lines = 40  # the shop computes all offers anew with each line; the emulator is tried with 1,000

        def emulator(self) -> Shop:
            return SHOPS[0].reset()


del _Emulated  # which test_conformance tries
