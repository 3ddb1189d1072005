"""The two pages in a real browser: no console errors, no sideways scrolling, keyboard alone, enough contrast."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from mapper import settings
from mapper.http import app
from mapper.sandbox import host
from tests import fakes
from tests.browser import CONTRASTS, NARROWER, Page, browsing, needs_chromium

pytestmark = needs_chromium

TOKEN = "a token for the page"
SHOTS = os.environ.get("SCREENSHOTS")
"""A folder for screenshots, to look at."""


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[str, str]]:
    """The addresses of the sandbox, and of the service connected to it with the page `/explain`."""
    application = host.create()
    with host.running(application) as sandbox:
        environment = {
            "MAPPER_ENGINE": "talon_one",
            "TALON_ONE_BASE_URL": f"{sandbox}/talon_one",
            "TALON_ONE_API_KEY": "key",
            "TALON_ONE_ADDITIONAL_COSTS": "shipping=/shipping_rate/price",
            "NACELLE_SIGNING_SECRETS": fakes.SECRET.decode(),
            "MAPPER_LEDGER_URL": fakes.new_ledger(),
            "MAPPER_EXPLAIN": "on",
            "MAPPER_EXPLAIN_TOKEN": TOKEN,
            "MAPPER_VALIDATE_DEADLINE_MS": "30000",
            "MAPPER_CONSUME_DEADLINE_MS": "60000",
        }
        with host.running(app.create(settings.load(environment))) as service:
            spaces = {"sandbox": {"mapper_url": service, "secret": fakes.SECRET.decode()}}
            application.state.sandbox.nacelle.configure({"spaces": spaces})
            yield sandbox, service


def keep(name: str, picture: bytes) -> None:
    Path(SHOTS or "", name).write_bytes(picture)


def visit(look: Callable[[Page], Awaitable[None]]) -> None:
    async def go() -> None:
        async with browsing() as page:
            await look(page)
            assert page.complaints == []

    asyncio.run(go())


async def check_looks(page: Page, name: str) -> None:
    """Narrow and wide, light and dark."""
    for width in (360, 1440):
        for dark in (False, True):
            await page.look(width, dark=dark)
            assert await page.run(NARROWER), (name, width)
            assert await page.run(CONTRASTS) == [], (name, width, dark)
            if SHOTS:
                keep(f"{name}-{width}-{'dark' if dark else 'light'}.png", await page.screenshot())


def test_sandbox_page_tries_a_code_by_keyboard(servers: tuple[str, str]) -> None:
    async def look(page: Page) -> None:
        await page.look(1440)
        await page.open(servers[0])
        await check_looks(page, "sandbox")
        await page.run("document.activeElement.blur()")
        await page.tab_to("e.textContent === 'XMAS-2021-25'")
        await page.enter()
        answer = await page.run("document.querySelector('#answer').innerText")
        for text in ("XMAS-2021-25: 50.00 off, says talon_one", "Christmas 2021", "105.00", "Winter boots"):
            assert text in answer, answer
        assert await page.run("document.querySelector('#answer').getBoundingClientRect().top") < 200
        await check_looks(page, "sandbox-tried")
        await page.tab_to("e.textContent === 'EXPIRED-10'")
        await page.enter()
        assert "This code has expired" in await page.run("document.querySelector('#answer').innerText")
        await check_looks(page, "sandbox-refused")

    visit(look)


def test_explain_page_works_by_keyboard(servers: tuple[str, str]) -> None:
    async def look(page: Page) -> None:
        await page.look(360)
        await page.open(f"{servers[1]}/explain")
        await page.tab_to("e.textContent === 'a code on an item'")
        await page.enter()
        await page.tab_to("e.id === 'token'")
        await page.type(TOKEN)
        await page.tab_to("e.type === 'submit'")
        await page.enter()
        text = await page.run("document.body.innerText")
        for expected in ("Christmas 2021, code XMAS-2021-25", "105.00", "\u221250.00", "open session"):
            assert expected in text, text
        await page.tab_to("e.tagName === 'SUMMARY'")
        await page.press("Enter", 13, "\r")
        assert await page.run("document.querySelector('details').open")
        await check_looks(page, "explain")

    visit(look)
