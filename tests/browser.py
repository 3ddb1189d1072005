"""A headless Chromium, driven by its DevTools protocol over aiohttp's WebSocket.

https://chromedevtools.github.io/devtools-protocol/
"""

import asyncio
import base64
import itertools
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="NOT TESTED IN A BROWSER: there is no Chromium here")
PATIENCE_S = 60.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    "about:blank",
)


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._session = ""
        self.complaints: list[str] = []
        """Console messages except verbose ones, exceptions, and resources that failed to load."""
        self._loads = 0

    async def _call(self, method: str, **parameters: Any) -> Any:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        await self._socket.send_json(message | ({"sessionId": self._session} if self._session else {}))
        while (told := await self._next()).get("id") != number:
            pass
        assert "error" not in told, (method, told)
        return told["result"]

    async def _next(self) -> Any:
        told = await self._socket.receive_json(timeout=PATIENCE_S)
        match told.get("method"), told.get("params", {}):
            case "Log.entryAdded", {"entry": entry} if entry["level"] != "verbose":
                self.complaints.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}")
            case "Runtime.consoleAPICalled", entry:
                self.complaints.append(str(entry))
            case "Runtime.exceptionThrown", entry:
                self.complaints.append(str(entry))
            case "Page.loadEventFired", _:
                self._loads += 1
        return told

    async def begin(self) -> None:
        target = await self._call("Target.createTarget", url="about:blank")
        attached = await self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self._call(f"{domain}.enable")

    async def look(self, width: int, *, dark: bool = False) -> None:
        """Set the width in CSS pixels, and the colour scheme."""
        await self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self._call("Emulation.setEmulatedMedia", features=[scheme])

    async def open(self, url: str) -> None:
        before = self._loads
        await self._call("Page.navigate", url=url)
        await self.loaded(before)

    async def loaded(self, before: int) -> None:
        while self._loads == before:
            await self._next()

    async def run(self, script: str) -> Any:
        told = await self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            await self._call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **typed)

    async def tab_to(self, script: str) -> None:
        """Press the tab key until the script, about the focused element `e`, is true."""
        for _ in range(200):
            await self.press("Tab", 9)
            if await self.run(f"(e => {script})(document.activeElement)"):
                return
        raise AssertionError(f"no tab leads to {script}")

    async def enter(self) -> None:
        """Press the enter key, and wait for the next page."""
        before = self._loads
        await self.press("Enter", 13, "\r")
        await self.loaded(before)

    async def type(self, text: str) -> None:
        await self._call("Input.insertText", text=text)

    async def screenshot(self) -> bytes:
        """Return the whole page as a PNG."""
        size = (await self._call("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 4000), "scale": 1}
        told = await self._call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(told["data"])


@asynccontextmanager
async def browsing() -> AsyncIterator[Page]:
    assert CHROMIUM is not None
    folder = tempfile.mkdtemp()
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        f"--user-data-dir={folder}",
        *FLAGS,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            address = await _address(process)
        async with aiohttp.ClientSession() as client, client.ws_connect(address, max_msg_size=0) as socket:
            page = Page(socket)
            await page.begin()
            yield page
            with suppress(Exception):
                await socket.send_json({"id": 0, "method": "Browser.close"})
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        shutil.rmtree(folder, ignore_errors=True)


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    async for line in process.stderr:
        if found := re.search(rb"DevTools listening on (ws://\S+)", line):
            return found[1].decode()
    raise AssertionError("Chromium has not started")


NARROWER = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
"""Whether the page fits without scrolling sideways."""

CONTRASTS = """
(() => {
  const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
  const poor = [];
  for (const e of document.querySelectorAll("main *")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility()) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) poor.push(`${e.tagName} ${e.textContent.trim().slice(0, 30)}: ${contrast.toFixed(2)}`);
  }
  return poor;
})()
"""
"""Visible texts whose contrast is below 4.5 (WCAG 2.2, 1.4.3)."""
