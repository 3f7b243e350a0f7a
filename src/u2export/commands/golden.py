"""`u2export golden`: vectors that a port on a device checks itself with."""

from __future__ import annotations

from pathlib import Path

from u2export.commands import options as o
from u2export.commands.console import stderr


def golden(
    weights: o.Weights = "u2netp",
    out: o.Out = Path("golden"),
    size: o.Size = "320",
    resize: o.Resize = "bilinear",
) -> None:
    """Write a picture, its network input and the reference's mask, for a port to compare itself with stage by stage."""
    from u2export.reference.golden import picture, write
    from u2export.reference.source import Source

    with stderr().status(f"reading {weights}"):
        source = Source.open(weights, o.contract_of(size, resize))
        d0 = source.predict(source.contract.tensor(picture(source.contract.channels)))[0, 0]
        stamp = source.stamp("fp32", {})
    print(write(source.contract, d0, stamp, out))
