"""The other end of adb: a program that speaks the protocol of a phone's adbd, as far as `adb reverse` needs it.

The adb of this machine connects to it by TCP, and its real client and server do the rest. A port that the phone is
told to listen on is opened on the loopback address `PHONE`, where a browser of this machine plays the browser there.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PHONE = "127.0.0.2"
CNXN, OPEN, OKAY, WRTE, CLSE = (
    int.from_bytes(name, "little") for name in (b"CNXN", b"OPEN", b"OKAY", b"WRTE", b"CLSE")
)
VERSION, MOST = 0x01000001, 65536
BANNER = b"device::ro.product.name=stand-in;ro.product.model=stand-in;ro.product.device=stand-in;features=cmd,shell_v2"


class Phone:
    """One connection of adb.

    Attributes:
        ports: the ports that the phone listens on.
        history: what adb asked for.
    """

    def __init__(self, line: socket.socket) -> None:
        self.ports: dict[int, socket.socket] = {}
        self.history: list[str] = []
        self._line, self._lock = line, threading.Lock()
        self._pipes: dict[int, socket.socket] = {}
        self._theirs: dict[int, int] = {}
        self._ready: dict[int, threading.Event] = {}
        self._last = 0

    def serve(self) -> None:
        """Answer until adb closes the line."""
        with suppress(OSError, EOFError):
            while True:
                command, one, two, size = struct.unpack("<4I8x", self._exactly(24))
                self._handle(command, one, two, self._exactly(size))
        for port in self.ports.values():
            port.close()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            block = self._line.recv(size - len(data))
            if not block:
                raise EOFError
            data += block
        return data

    def _send(self, command: int, one: int, two: int, data: bytes = b"") -> None:
        head = struct.pack("<6I", command, one, two, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF)
        with self._lock:
            self._line.sendall(head + data)

    def _handle(self, command: int, one: int, two: int, data: bytes) -> None:
        if command == CNXN:
            self._send(CNXN, VERSION, MOST, BANNER)
        elif command == OPEN:
            self._service(one, data.rstrip(b"\0").decode())
        elif command == OKAY and two in self._ready:
            self._theirs[two] = one
            self._ready[two].set()
        elif command == WRTE and two in self._pipes:
            with suppress(OSError):
                self._pipes[two].sendall(data)
            self._send(OKAY, two, one)
        elif command == CLSE and two in self._pipes:
            self._ready[two].set()
            with suppress(OSError):
                self._pipes[two].shutdown(socket.SHUT_RDWR)

    def _service(self, theirs: int, name: str) -> None:
        """Do what `reverse:forward:tcp:P;tcp:Q` and `reverse:killforward:tcp:P` ask for."""
        self.history.append(name)
        self._last += 1
        mine = self._last
        kind, _, ports = name.removeprefix("reverse:").partition(":")
        if not name.startswith("reverse:"):
            self._send(CLSE, 0, theirs)
            return
        if kind == "forward":
            here, _, there = ports.partition(";")
            self._listen(int(here.removeprefix("tcp:")), there)
        elif port := self.ports.pop(int(ports.removeprefix("tcp:")), None):
            port.shutdown(socket.SHUT_RDWR)
            port.close()
        self._send(OKAY, mine, theirs)
        self._send(WRTE, mine, theirs, b"OKAY")
        self._send(CLSE, mine, theirs)

    def _listen(self, port: int, there: str) -> None:
        self.ports[port] = found = socket.create_server((PHONE, port))

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=self._pipe, args=(found.accept()[0], there), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()

    def _pipe(self, pipe: socket.socket, there: str) -> None:
        """Carry one connection to the port `there` of the other machine; each block waits for its receipt."""
        with self._lock:
            self._last += 1
            mine = self._last
        self._pipes[mine], ready = pipe, threading.Event()
        self._ready[mine] = ready
        with suppress(OSError):
            self._send(OPEN, mine, 0, there.encode() + b"\0")
            while ready.wait(20) and mine in self._theirs and (block := pipe.recv(MOST)):
                ready.clear()
                self._send(WRTE, mine, self._theirs[mine], block)
            self._send(CLSE, mine, self._theirs.get(mine, 0))
        pipe.close()


@contextmanager
def phone() -> Iterator[tuple[int, list[Phone]]]:
    """Yield the port that `adb connect` takes, and the connections so far."""
    connections: list[Phone] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connections.append(Phone(listener.accept()[0]))
                    threading.Thread(target=connections[-1].serve, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], connections
