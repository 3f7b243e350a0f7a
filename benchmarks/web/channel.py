"""The line between a bench and its page: messages go out in order, answers come back by the number of their message.

The bench runs in one thread and the server in another; every method may be called from both. The page asks for the next
messages and names the last one that it has, so that an answer that the network loses is sent again.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from u2export.errors import UserError

# Seconds. A page asks for messages at least this often; after a longer silence it is lost.
SILENCE = 60.0
HINT = "open the page again: the same command with --resume and --json FILE goes on where it stopped"


class Channel:
    """What waits for the page, and what the page has answered.

    Attributes:
        wake: is called, from any thread, when something new waits for the page.
        state: what the page last told about itself, such as the state of its battery.
    """

    def __init__(self, silence: float = SILENCE) -> None:
        self.wake: Callable[[], None] = lambda: None
        self.state: Mapping[str, Any] = {}
        self._silence = silence
        self._lock = threading.Condition()
        self._session = ""
        self._identity: Mapping[str, Any] = {}
        self._waiting: list[dict[str, Any]] = []
        self._status: dict[str, Any] = {}
        self._sent = 0
        self._answers: dict[int, dict[str, Any] | None] = {}
        self._heard = monotonic()
        self._lost = ""

    # For the server

    def claim(self, identity: Mapping[str, Any]) -> str:
        """Give the bench to the page that tells who it is, and return its secret; "" if another page has the bench."""
        with self._lock:
            if self._session:
                return ""
            self._session, self._identity = secrets.token_urlsafe(16), identity
            self._heard = monotonic()
            self._lock.notify_all()
            return self._session

    def knows(self, session: str) -> bool:
        """Tell whether the secret is that of the page."""
        with self._lock:
            if not self._session or not hmac.compare_digest(session.encode(), self._session.encode()):
                return False
            self._heard = monotonic()
            return True

    def messages(self, after: int) -> dict[str, Any] | None:
        """Return the messages with numbers above `after`, and how far the bench is; None if there is no message."""
        with self._lock:
            self._waiting = [message for message in self._waiting if message["seq"] > after]
            return {"messages": list(self._waiting), "status": self._status} if self._waiting else None

    def put(self, seq: int, answer: dict[str, Any]) -> None:
        """Take an answer; the second answer to one message is dropped."""
        with self._lock:
            if seq in self._answers and self._answers[seq] is None:
                self._answers[seq] = answer
                self._lock.notify_all()

    def lose(self, why: str) -> None:
        """Note that the page is gone."""
        with self._lock:
            self._lost = self._lost or why
            self._lock.notify_all()

    # For the bench

    def identity(self, patience: float) -> Mapping[str, Any]:
        """Wait for a page, and return what it tells about itself.

        Raises:
            UserError: no browser opened the page within `patience` seconds.
        """
        end = monotonic() + patience
        with self._lock:
            while not self._session:
                if monotonic() > end:
                    raise UserError(
                        f"no browser started the bench within {patience / 60:.0f} minutes",
                        "open the printed address on the phone, in the same network, and press Start",
                    )
                self._lock.wait(0.5)
            return self._identity

    def show(self, status: dict[str, Any]) -> None:
        """Set what the next message tells the page about the progress of the bench."""
        with self._lock:
            self._status = status

    def send(self, message: Mapping[str, Any]) -> int:
        """Send a message, and return its number."""
        with self._lock:
            self._sent += 1
            seq = self._sent
            self._waiting.append({"seq": seq, **message})
            self._answers[seq] = None
        self.wake()
        return seq

    def answer(self, seq: int, timeout: float) -> dict[str, Any] | None:
        """Wait for the answer to a message; None if it does not come within `timeout` seconds.

        Raises:
            UserError: the page is lost.
        """
        end = monotonic() + timeout
        with self._lock:
            while self._answers[seq] is None:
                if self._lost:
                    raise UserError(self._lost, HINT)
                if monotonic() - self._heard > self._silence:
                    raise UserError(f"the browser has not been heard of for {self._silence:.0f} s", HINT)
                if monotonic() > end:
                    return None
                self._lock.wait(0.25)
            return self._answers.pop(seq)
