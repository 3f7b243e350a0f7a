"""The browser as a machine: a page runs the artifacts, and this machine makes the inputs and judges the masks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from u2export.benchmarks.device import Device
from u2export.benchmarks.measuring.machine import Machine
from u2export.benchmarks.measuring.worker_process import WorkerHandle
from u2export.benchmarks.report import IN_BROWSER
from u2export.benchmarks.web.announcement import announcement, usb_announcement
from u2export.benchmarks.web.browser_worker import BrowserWorker
from u2export.benchmarks.web.certificate import Certificate, make_certificate, own_address
from u2export.benchmarks.web.channel import Channel
from u2export.benchmarks.web.identity import Identity, identity
from u2export.benchmarks.web.page_files import page_files
from u2export.benchmarks.web.runtime_files import VERSION, cached
from u2export.benchmarks.web.server import SMALL, PageServer
from u2export.benchmarks.web.usb import Cable
from u2export.errors import UserError, WrongValue
from u2export.exporters.artifact import Artifact
from u2export.exporters.runtime import missing_modules

# The page is served by https on this port, and by http on the next one.
PORT = 8622
# Seconds to wait for somebody to open the page.
PATIENCE = 900.0
# Maps of the largest network, and bytes of a value in base64.
MOST_MAPS, BYTES = 16, 4 * 4 / 3
Announce = Callable[[str], None]


def port_of(device: str) -> int:
    """Return the port in `web` or `web:PORT`.

    Raises:
        WrongValue: the text has another form.
    """
    _, _, port = device.partition(":")
    if device == "web":
        return PORT
    if not (port.isascii() and port.isdigit() and int(port) <= 65534):
        raise WrongValue(f"device {device!r} is no browser", "give web, or web:PORT with a port up to 65534")
    return int(port)


class WebMachine(Machine):
    """A browser that opens the page of this bench. The page is served while the context exists.

    Args:
        announce: receives the lines that tell the user which address to open.
        port: port of https, and one below that of http; 0 for free ports.
        usb: whether the page is served to this machine only, by http, and brought to a phone by `adb reverse`.
        threads: threads of WebAssembly; 0 for as many as the processor has, at most 4.
        patience: seconds to wait for a browser.

    Raises, on entering the context:
        Unavailable: a package is missing, or the files of onnxruntime-web cannot be fetched.
        UserError: the port is taken, no browser comes, or adb does not reach one phone.
    """

    here = False
    provenance = IN_BROWSER

    def __init__(
        self, announce: Announce, port: int = PORT, usb: bool = False, threads: int = 0, patience: float = PATIENCE,
    ) -> None:  # fmt: skip
        super().__init__()
        self._announce, self._port, self._usb = announce, port, usb
        self._threads, self._patience = threads, patience
        self._channel = Channel()
        self._identity: Identity | None = None
        self._artifacts: dict[str, Artifact] = {}
        self._workers = 0
        self._server: PageServer
        self._stack = ExitStack()

    def __enter__(self) -> WebMachine:
        if problem := missing_modules("the browser as a device", ("aiohttp", "cryptography", "qrcode"), "web"):
            raise problem
        if not cached():
            self._announce(f"fetching onnxruntime-web {VERSION} from the npm registry (33 MB); later runs have it …")
        self._server = PageServer(self._channel, page_files(), int(SMALL + MOST_MAPS * BYTES * 1024 * 1024))
        with ExitStack() as stack:
            for line in self._reached_by_cable(stack) if self._usb else self._reached_by_network(stack):
                self._announce(line)
            self._identity = identity(self._channel.identity(self._patience))
            self._stack = stack.pop_all()
        self._announce(f"measuring on {self._identity.device.label}")
        return self

    def _reached_by_cable(self, stack: ExitStack) -> list[str]:
        """Serve the page to this machine and to the phone that adb reaches, and return what to announce."""
        cable = Cable()
        (port,) = self._server.start([("127.0.0.1", self._port, None)])
        stack.callback(self._server.stop)
        stack.enter_context(cable.open(port))
        return usb_announcement(f"http://localhost:{port}/{self._server.token}/", cable.serial)

    def _reached_by_network(self, stack: ExitStack) -> list[str]:
        """Serve the page to the network, and return what to announce."""
        host = own_address()
        certificate = self._certificate(host)
        listeners = [("0.0.0.0", self._port, certificate.context), ("0.0.0.0", self._port and self._port + 1, None)]
        ports = self._server.start(listeners)
        stack.callback(self._server.stop)
        secure, plain = (
            f"{scheme}://{host}:{port}/{self._server.token}/"
            for scheme, port in zip(("https", "http"), ports, strict=True)
        )
        return announcement(secure, plain, certificate.fingerprint)

    def _certificate(self, host: str) -> Certificate:
        with tempfile.TemporaryDirectory(prefix="u2export-") as folder:
            return make_certificate(["localhost", *dict.fromkeys(("127.0.0.1", host))], Path(folder))

    def __exit__(self, *exception: object) -> None:
        ended = "finished" if exception[:1] == (None,) else "stopped"
        end = self._channel.send({"worker": 0, "do": "end", "how": ended})
        with suppress(UserError):  # of a lost page
            self._channel.answer(end, 2.0)
        self._stack.close()

    @property
    def _page(self) -> Identity:
        assert self._identity
        return self._identity

    def device(self) -> Device:
        """Return what the browser tells about its device."""
        return self._page.device

    def environment(self) -> dict[str, Any]:
        """Return the versions of the browser and of onnxruntime-web, and what the page may do."""
        return dict(self._page.environment)

    def state(self) -> dict[str, Any]:
        """Return what the page last told about its battery and whether it was visible."""
        return dict(self._channel.state)

    def pulse(self) -> dict[str, Any]:
        """As `state`."""
        return self.state()

    def show(self, stage: str, done: int, total: int) -> None:
        """Show on the page how far the bench is."""
        self._channel.show({"stage": stage, "done": done, "total": total})

    def send_artifact(self, artifact: Artifact) -> None:
        """Let the page have the files of an artifact."""
        self._artifacts[str(artifact.path)] = artifact

    def send_photos(self, photos: Iterable[Path]) -> None:
        """Photos stay here: the page receives the network's inputs one by one."""

    def start_worker(self, log: Path, timeout: float) -> WorkerHandle:
        """Start a worker in the page; it appears there when it opens an artifact."""
        self._workers += 1
        files = self._server.private
        return BrowserWorker(self._workers, self._channel, files, self._artifacts, self._page, self._threads, timeout)
