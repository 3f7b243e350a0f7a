"""What the terminal tells a person who wants to open the page on a phone."""

from __future__ import annotations

import io
from urllib.parse import urlsplit


def announcement(secure: str, plain: str, fingerprint: str) -> list[str]:
    """Return the lines with the addresses and a QR code.

    Args:
        secure: address by https; empty where the page is served for `adb reverse`.
        plain: address by http.
        fingerprint: SHA-256 of the certificate.
    """
    if not secure:
        port = urlsplit(plain).port
        return [
            "run this once, with USB debugging allowed on the phone:",
            f"  adb reverse tcp:{port} tcp:{port}",
            "then open this address in the browser of the phone, and press Start:",
            f"  {plain}",
        ]
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
