"""A report's page in headless Chromium: requests that leave it, script errors, width, and screenshots to look at.

    python benchmarks/page_check.py RESULTS/report/index.html [--screenshots FOLDER] [--json OUT.json]

Needs Debian's `chromium`. The page is opened at 390 and 1,440 pixels, light and dark, scrolled to its end so that every
figure is drawn, and printed. Every request but the page itself, every error in the console and every exception counts
against it; so does a page wider than the screen.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
from machine import publish

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"]
VIEWS = [(width, scheme) for width in (390, 1440) for scheme in ("light", "dark")]
MOST_PIXELS = 16_000  # Chromium's textures end there
MEASURE = """(() => ({wide: document.documentElement.scrollWidth, high: document.documentElement.scrollHeight,
figures: document.querySelectorAll('[data-figure]').length,
drawn: document.querySelectorAll('[data-figure] .main-svg').length > 0 ?
  [...document.querySelectorAll('[data-figure]')].filter(place => place.querySelector('.main-svg')).length : 0,
failed: document.body.classList.contains('failed'), images: document.images.length}))()"""
SCROLL = """(async () => { const pause = () => new Promise(done => requestAnimationFrame(() => setTimeout(done, 80)));
for (let tries = 0; tries < 600 && !window.Plotly; tries++) await pause();
for (const folded of document.querySelectorAll('details')) folded.open = true;
for (let y = 0; y < document.documentElement.scrollHeight; y += 500) { scrollTo(0, y); await pause(); await pause(); }
scrollTo(0, 0); await pause(); return true; })()"""


class Browser:
    """One page over the DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.requests: list[str] = []
        self.errors: list[str] = []

    async def call(self, method: str, **params: Any) -> Any:
        """Send a command and return its result; what is reported meanwhile is noted."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while True:
            message = await asyncio.wait_for(self._socket.receive_json(), 120)
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message)

    async def run(self, expression: str) -> Any:
        """Return what a script of the page comes to."""
        found = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        return found["result"].get("value")

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(str([argument.get("value") for argument in params["args"]]))
        elif method == "Page.javascriptDialogOpening":
            self.errors.append(f"dialog: {params['message']}")


async def look(page: Path, screenshots: Path | None) -> list[dict[str, Any]]:
    """Open the page in every view and return what was seen."""
    chromium = shutil.which("chromium") or sys.exit("chromium is not installed: apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            chromium, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            port_file = Path(profile) / "DevToolsActivePort"
            while not (port_file.exists() and "\n" in port_file.read_text()):
                await asyncio.sleep(0.1)
            port = port_file.read_text().split()[0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    target = next(item for item in await answer.json() if item["type"] == "page")
                async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    return [await view(socket, page, width, scheme, screenshots) for width, scheme in VIEWS]
        finally:
            process.terminate()
            await process.wait()


async def view(
    socket: aiohttp.ClientWebSocketResponse, page: Path, width: int, scheme: str, screenshots: Path | None
) -> dict[str, Any]:
    browser = Browser(socket)
    for domain in ("Page", "Runtime", "Log", "Network"):
        await browser.call(f"{domain}.enable")
    await browser.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
    )
    await browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    await browser.call("Page.navigate", url=page.resolve().as_uri())
    await asyncio.sleep(1)
    await browser.run(SCROLL)
    seen = await browser.run(MEASURE)
    name = f"{width}-{scheme}"
    if screenshots is not None:
        clip = {"x": 0, "y": 0, "width": width, "height": min(seen["high"], MOST_PIXELS), "scale": 1}
        shot = await browser.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        (screenshots / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))
        if name == "1440-light":
            printed = await browser.call("Page.printToPDF", printBackground=True)
            (screenshots / "print.pdf").write_bytes(base64.b64decode(printed["data"]))
    outside = [url for url in browser.requests if url != page.resolve().as_uri() and not url.startswith("data:")]
    return {"view": name, "wider_by": seen["wide"] - width, **seen, "requests": outside, "errors": browser.errors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--screenshots", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.screenshots:
        arguments.screenshots.mkdir(parents=True, exist_ok=True)
    views = asyncio.run(look(arguments.page, arguments.screenshots))
    bad = [
        v
        for v in views
        if v["requests"] or v["errors"] or v["wider_by"] > 0 or v["failed"] or v["drawn"] < v["figures"]
    ]
    found = {"page": str(arguments.page), "passed": not bad, "views": views}
    publish(found, arguments.json)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
