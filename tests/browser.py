"""A real Chromium for tests, the pages that it opens, and a client that is no browser."""

from __future__ import annotations

import http.client
import shutil
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from processors import all_processors

CHROMIUM = shutil.which("chromium")


@dataclass
class Page:
    """A page in the browser, what went wrong there, and the hosts that it asked."""

    page: Any
    errors: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def begin(self, name: str = "Test phone") -> None:
        self.page.fill("#model", name)
        self.page.click("#go")

    @property
    def stage(self) -> str:
        return str(self.page.inner_text("#stage"))

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Wait while the browser works; Playwright runs its events only while it waits."""
        for _ in range(int(seconds * 20)):
            if condition():
                return
            self.page.wait_for_timeout(50)
        raise AssertionError("it did not happen")


def launched() -> Iterator[Any]:
    """Yield a headless Chromium, driven by Playwright."""
    api = pytest.importorskip("playwright.sync_api")
    for module in ("aiohttp", "cryptography", "onnxruntime", "qrcode"):
        pytest.importorskip(module)
    if not CHROMIUM:
        pytest.skip("no chromium on this machine")
    from u2export.benchmarks.web.runtime_files import runtime_files
    from u2export.errors import Unavailable

    try:
        runtime_files()
    except Unavailable as problem:
        pytest.skip(str(problem))
    with all_processors(), api.sync_playwright() as playwright:
        camera = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]  # a moving test picture
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])
        yield browser
        browser.close()


@contextmanager
def visits(chromium: Any) -> Iterator[Callable[..., Page]]:
    """Yield a function that opens an address as a phone does; it takes a script to run before those of the page."""
    contexts: list[Any] = []

    def opened(address: str, script: str = "") -> Page:
        contexts.append(chromium.new_context(ignore_https_errors=True, viewport={"width": 390, "height": 844}))
        page = Page(contexts[-1].new_page())
        page.page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
        page.page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.page.on("request", lambda request: page.hosts.add(urlsplit(request.url).netloc))
        if script:
            page.page.add_init_script(script)
        page.page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()


def ask(address: str, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """Return status and content of a request to the server of an address."""
    parts = urlsplit(address)
    context = ssl._create_unverified_context() if parts.scheme == "https" else None
    kind: Any = http.client.HTTPSConnection if context else http.client.HTTPConnection
    host = parts.hostname if (parts.hostname or "").startswith("127.") else "127.0.0.1"
    line = kind(host, parts.port, timeout=20, **({"context": context} if context else {}))
    with closing(line):
        line.request(method, path, body or None, {k.replace("_", "-"): v for k, v in headers.items()})
        response = line.getresponse()
        return response.status, response.read()
