"""Fonts of pictures: names of photos and files in any script, and escapes where no font has a character."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

# Families and files with many scripts that systems bring: Linux, macOS, Windows.
FAMILIES = (
    "Noto Sans CJK JP", "Noto Sans", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Thai", "Noto Sans Devanagari",
    "WenQuanYi Zen Hei", "Arial Unicode MS", "PingFang SC", "Microsoft YaHei",
)  # fmt: skip
FILES = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "wqy-zenhei.ttc", "Arial Unicode.ttf",
         "PingFang.ttc", "msyh.ttc", "segoeui.ttf")  # fmt: skip
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def drawable_text(text: str, has_glyph: Callable[[str], bool]) -> str:
    """Return a text in which characters without a glyph are escapes such as `\\u4e2d`, not empty boxes."""
    return text if text.isascii() else "".join(c if c.isascii() or has_glyph(c) else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def fitting(text: str, size: int) -> tuple[str, Font]:
    """Return a text and the first font that has all of its characters; else Pillow's own font and escapes."""
    own = ImageFont.load_default(size)
    if text.isascii():
        return text, own
    for font in (own, *_installed(size)):
        if all(c.isascii() or _has_glyph(font, c) for c in text):
            return text, font
    return drawable_text(text, lambda c: _has_glyph(own, c)), own


@cache
def _installed(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    """Return the fonts of FILES on this machine; matplotlib brings the first of them."""
    found = []
    for name in (*_of_matplotlib(), *FILES):
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(found)


def _of_matplotlib() -> list[str]:
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return []
    return [str(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / FILES[0])]


def _has_glyph(font: Font, character: str) -> bool:
    """Whether a font draws a character in another way than one that no font has."""
    return bytes(font.getmask(character)) != bytes(font.getmask("\U0010ffff"))
