"""One sandbox server per test module, reset for each test."""

from collections.abc import Iterator

import pytest

from mapper.sandbox import host as sandbox


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, sandbox.Sandbox]]:
    app = sandbox.create()
    with sandbox.running(app) as url:
        yield url, app.state.sandbox


@pytest.fixture
def live(server: tuple[str, sandbox.Sandbox]) -> Iterator[tuple[str, sandbox.Sandbox]]:
    server[1].reset()
    yield server
    server[1].reset()
