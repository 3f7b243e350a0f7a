"""A phone on a USB cable: `adb reverse` brings the page of a bench to its browser, without any network."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from types import TracebackType

from u2export.errors import Unavailable, UserError

# Seconds for one call of adb; the first call starts adb's server.
PATIENCE = 30.0


class Cable:
    """The phone that adb reaches, and the port of this machine that the phone sees while the context exists.

    Attributes:
        serial: the serial number of the phone.

    Raises:
        Unavailable: adb is not installed.
        UserError: adb finds no phone, or several, or the phone does not allow it.
    """

    def __init__(self) -> None:
        if not shutil.which("adb"):
            raise Unavailable(
                "--usb needs adb, which is not installed",
                "install Android's platform tools (on Debian: apt install adb), or leave out --usb",
            )
        self.serial = chosen(_phones(), os.environ.get("ANDROID_SERIAL", ""))
        self._port = 0

    def open(self, port: int) -> Cable:
        """Let the phone reach a port of this machine as its own; leaving the context ends this.

        Raises:
            UserError: adb refuses it.
        """
        _adb("-s", self.serial, "reverse", f"tcp:{port}", f"tcp:{port}")
        self._port = port
        return self

    def __enter__(self) -> Cable:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with suppress(UserError):  # a phone without its cable has lost the port already
            _adb("-s", self.serial, "reverse", "--remove", f"tcp:{self._port}")


def _phones() -> dict[str, str]:
    """Return the state of each phone that adb finds, by serial number; the state of a usable one is "device"."""
    lines = _adb("devices").splitlines()
    words = [line.split(None, 1) for line in lines[1:] if line.strip() and not line.startswith("*")]
    return {serial: state.strip() for serial, state in (word for word in words if len(word) == 2)}


def chosen(phones: dict[str, str], wanted: str) -> str:
    """Return the serial number of the only phone, or of the wanted one.

    Args:
        phones: the state of each phone by serial number. wanted: a serial number; empty for the only phone.

    Raises:
        UserError: there is no such phone, there are several, or the phone does not allow it.
    """
    if wanted and wanted not in phones:
        raise UserError(f"adb does not find the phone {wanted}", "correct ANDROID_SERIAL; `adb devices` lists phones")
    if not phones:
        raise UserError("adb finds no phone", "connect it by a cable, and switch on USB debugging in its settings")
    if not wanted and len(phones) > 1:
        raise UserError(f"adb finds {len(phones)} phones: {', '.join(phones)}", "set ANDROID_SERIAL to one of them")
    serial = wanted or next(iter(phones))
    if phones[serial] != "device":
        raise UserError(
            f"adb calls the phone {serial} {phones[serial]!r}",
            "unlock the phone, and allow USB debugging on its screen",
        )
    return serial


def _adb(*words: str) -> str:
    """Return what a call of adb prints.

    Raises:
        UserError: the call fails.
    """
    hint = "connect the phone again, or try `adb kill-server`"
    try:
        done = subprocess.run(
            ["adb", *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"adb gave no answer: {type(error).__name__}", hint) from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1][:160]
        raise UserError(f"adb {words[-1] if len(words) == 1 else 'reverse'} failed: {said}", hint)
    return done.stdout
