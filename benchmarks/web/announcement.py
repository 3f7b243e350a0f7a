"""What the terminal tells a person who wants to open the page on a phone."""

from __future__ import annotations

import io
from urllib.parse import urlsplit


def usb_announcement(plain: str, serial: str) -> list[str]:
    """Return the lines for a phone on a cable.

    Args:
        plain: address by http, as the phone sees it.
        serial: serial number of the phone.
    """
    port = urlsplit(plain).port
    return [
        f"adb reverse brings port {port} to the phone {serial}, until the bench ends",
        "open this address in the browser of the phone, and press Start:",
        f"  {plain}",
    ]


def announcement(secure: str, plain: str, fingerprint: str) -> list[str]:
    """Return the lines with the addresses and a QR code.

    Args:
        secure: address by https.
        plain: address by http.
        fingerprint: SHA-256 of the certificate.
    """
    return [
        *code(secure),
        "open this address in a browser in the same network, and press Start:",
        f"  {secure}",
        "the browser warns of an unknown certificate, which was made for this run; its SHA-256 fingerprint is",
        f"  {fingerprint}",
        "a browser that refuses it takes this address instead, with one thread and without WebGPU:",
        f"  {plain}",
    ]


def code(address: str) -> list[str]:
    """Return a QR code of an address, drawn with half blocks."""
    import qrcode

    drawn = qrcode.QRCode(border=2)
    drawn.add_data(address)
    out = io.StringIO()
    drawn.print_ascii(out=out, invert=True)
    return out.getvalue().rstrip("\n").split("\n")
