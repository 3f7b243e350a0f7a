"""Photos from files: every depth, orientation and transparency that Pillow can read, and nothing silently dropped."""

from __future__ import annotations

import logging
import os
import stat
import threading
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from u2export.errors import UserError
from u2export.files import is_hidden, no_pipe
from u2export.reference.image import Contract, Floats, Picture, Pixels

SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
HEIF = (".heic", ".heif")
# A larger picture is more likely an attack or a mistake than a photo; Pillow's own limit.
MAX_PIXELS = 89_478_485
MAX_PIXELS_VARIABLE = "U2EXPORT_MAX_PIXELS"
ORIENTATION = 0x0112  # of EXIF
# How the stored picture is turned to stand upright, by EXIF's orientation (JEITA CP-3451, section 4.6.4 A).
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# ITU-R BT.601, what Pillow's conversion to grey uses.
GREY = np.array([0.299, 0.587, 0.114], np.float32)
# A picture of any number of channels.
ARRAY = ".npy"
# Our own masks say so in the file, so that a folder that holds photos and masks can be read again.
MARK = ("Software", "u2export mask")
# 16-bit colours in either byte order, or in that of this machine.
DEEP_COLOURS = tuple(f"{bands};16{order}" for bands in ("RGB", "RGBA") for order in "BLN")
_opening = threading.Lock()
# Rows of a picture that are copied at a time.
BAND = 256


@dataclass(frozen=True)
class Photo:
    """A picture as it was read.

    Attributes:
        pixels: (h, w, channels): uint8, or float32 with the file's own range where that is deeper than 8 bits.
        height, width: of the upright picture in the file; larger than `pixels` where it was read at a reduced size.
        alpha: (h, w) uint8 opacity, None where the picture is opaque.
        icc: the colour profile of the file, empty where it has none.
    """

    pixels: Picture
    height: int
    width: int
    alpha: Pixels | None = None
    icc: bytes = b""


def open_photo(path: Path, channels: int = 3) -> Photo:
    """The picture in a file, its orientation applied and its colours converted.

    8-bit pictures give uint8. Greys and colours of more than 8 bits give float32 in the file's own range: the image
    contract divides by the largest value, so 10 bits in a 16-bit file, 16 bits and 0..1 give the same network input.
    A JPEG over the limit of pixels is decoded at 1/2, 1/4 or 1/8 of its size.

    Args:
        path: a picture. channels: 1 for grey, 3 for RGB.

    Raises:
        UserError: missing, empty, truncated, no picture, not a regular file, too large, values that are not finite
            or are negative, or another number of channels.
    """
    if channels not in (1, 3):
        raise UserError(
            f"a photo has 1 or 3 channels, the model takes {channels}",
            "give .npy arrays of shape (height, width, channels)",
        )
    with _errors_of(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on metadata must not stop a run where warnings are errors
        with _opened(path) as image:
            layout = _layout(image)  # before anything decodes the picture
            height, width = image.size[1], image.size[0]
            _shrink(image, path)
            turn = TURNS.get(_orientation(image))
            if turn in (TURNS[5], TURNS[6], TURNS[7], TURNS[8]):
                height, width = width, height
            icc = image.info.get("icc_profile") or b""
            pixels, alpha = _planes(image, layout, channels, path, turn)
            return Photo(pixels, height, width, alpha, bytes(icc))


def read_photo(path: Path, channels: int = 3) -> Picture:
    """`pixels` of `open_photo`: (H, W, channels), uint8, or float32 where the file is deeper than 8 bits."""
    return open_photo(path, channels).pixels


def open_picture(path: Path, channels: int) -> Photo:
    """`open_photo`, or for `.npy` files the array (height, width, channels) that they hold."""
    if path.suffix.lower() != ARRAY:
        return open_photo(path, channels)
    pixels = read_array(path, channels)
    return Photo(pixels, *pixels.shape[:2])


def read_input(contract: Contract, path: Path) -> Floats:
    """The network input (1, channels, height, width) of the picture in a file.

    A `.npy` file holds an array (height, width, channels) of a picture, for models of any number of channels.

    Raises:
        UserError: as `open_photo`, or an array of another shape.
    """
    return contract.tensor(read_picture(path, contract.channels))


def read_picture(path: Path, channels: int) -> Picture:
    """The picture of a photo, or of a `.npy` array (height, width, channels), as the image contract takes it."""
    return open_picture(path, channels).pixels


def read_array(path: Path, channels: int = 0) -> Picture:
    """A picture stored as a `.npy` array: (height, width, channels) or, for one channel, (height, width).

    Args:
        path: the file. channels: how many the array must have; 0 for any number.

    Returns:
        uint8 as stored, every other type as float32.

    Raises:
        UserError: unreadable, of another shape, or with values that are not finite or are negative.
    """
    hint = f"save a numpy array of shape (height, width, {channels or 'channels'}) with numpy.save"
    no_pipe(path, hint)
    try:
        with path.open("rb") as file:
            array: NDArray[Any] = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}", "check the path") from None
    except Exception as error:  # numpy reads the header as Python: tokenize.TokenError, SyntaxError and many others
        raise UserError(f"{path}: no readable .npy array ({_said(error)})", hint) from None
    if array.ndim == 2 and channels in (0, 1):
        array = array[..., None]
    if (
        array.ndim != 3
        or (channels and array.shape[2] != channels)
        or 0 in array.shape
        or array.dtype.kind not in "uif"
    ):
        raise UserError(f"{path}: an array of shape {array.shape} and type {array.dtype}", hint)
    return array if array.dtype == np.uint8 else _checked(array.astype(np.float32), path)


def eight_bit(picture: Picture) -> Pixels:
    """A picture in uint8; deeper ones are scaled so that their largest value becomes 255."""
    if picture.dtype == np.uint8:
        return np.asarray(picture, np.uint8)
    return np.asarray(np.rint(picture * (255.0 / max(float(picture.max()), 1e-6))), np.uint8)


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Whatever a decoder raises is an error of this photo."""
    try:
        yield
    except UserError:
        raise
    except MemoryError:
        raise UserError(
            f"{path}: asks for more memory than there is", "scale the picture down; it may also be damaged"
        ) from None
    except FileNotFoundError:
        raise UserError(f"no such file: {path}", "check the path") from None
    except UnidentifiedImageError:
        raise _unknown(path) from None
    except PermissionError:
        raise UserError(f"{path}: permission denied", "check the file's permissions") from None
    except Exception as error:  # Pillow's plugins raise RuntimeError, struct.error, SyntaxError and many others
        raise UserError(f"{path}: damaged picture ({_said(error)})", "export or download the picture again") from None


def _said(error: Exception) -> str:
    """The first line of an error's text, else the name of its type."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _unknown(path: Path) -> UserError:
    if path.stat().st_size == 0:
        return UserError(f"{path}: the file is empty", "give a JPEG, PNG, WebP, AVIF, TIFF or BMP")
    if path.suffix.lower() in HEIF and find_spec("pillow_heif") is None:
        return UserError(
            f"{path}: HEIC needs the package pillow-heif, which is not installed",
            "pip install pillow-heif, or convert the photo to JPEG",
        )
    return UserError(f"{path}: not a picture Pillow can read", "give a JPEG, PNG, WebP, AVIF, TIFF or BMP")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    no_pipe(path, "give a picture")
    if stat.S_ISDIR(path.stat().st_mode):
        raise UserError(f"{path} is a folder", "give a picture")
    if path.suffix.lower() in HEIF and find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with _opening:  # Pillow's limit is global; ours has an answer for large photos
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        yield image


def max_pixels() -> int:
    """The most pixels a picture may have: U2EXPORT_MAX_PIXELS, else Pillow's limit.

    Raises:
        UserError: the variable holds no positive number.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE, "")
    if not text:
        return MAX_PIXELS
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{MAX_PIXELS_VARIABLE} is {text!r}", "set it to a number of pixels, such as 200000000")
    return int(text)


def _shrink(image: Image.Image, path: Path) -> None:
    """Have the decoder reduce a picture that is over the limit, where it can."""
    limit, pixels = max_pixels(), image.size[0] * image.size[1]
    if pixels <= limit:
        return
    factor = next((f for f in (2, 4, 8) if pixels // (f * f) <= limit), 8)
    image.draft(None, (image.size[0] // factor, image.size[1] // factor))
    if image.size[0] * image.size[1] > limit:
        raise UserError(
            f"{path}: {pixels:,} pixels, the limit is {limit:,}",
            f"scale the picture down, or raise the limit with the environment variable {MAX_PIXELS_VARIABLE}",
        )


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation alone: other tags may be odd or damaged, and say nothing about the pixels."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
        return int(value[0] if isinstance(value, tuple) else value)
    except Exception:  # a damaged block says nothing: Pillow raises struct.error, SyntaxError, ValueError and others
        return 1


def _planes(
    image: Image.Image, layout: str, channels: int, path: Path, turn: Image.Transpose | None
) -> tuple[Picture, Pixels | None]:
    """Pixels and opacity of an open picture, turned upright."""
    deep = _deep(image, layout, path)
    if deep is None:
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        image = image.transpose(turn) if turn is not None else image
        bands = "A" in image.getbands() or "a" in image.getbands()
        alpha = np.asarray(image.convert("RGBA").getchannel("A"), np.uint8) if bands else None
        wanted = "RGB" if channels == 3 else "L"
        return _pixels(image if image.mode == wanted else image.convert(wanted), channels), alpha
    if turn is not None:
        deep = np.stack([_turned(deep[..., i], turn) for i in range(deep.shape[2])], -1)
    colours, alpha = deep, None
    if deep.shape[2] in (2, 4):
        colours, alpha = deep[..., :-1], np.asarray(deep[..., -1] / 257, np.uint8)
    if colours.shape[2] == channels:
        return _checked(np.ascontiguousarray(colours), path), alpha
    converted = np.repeat(colours, 3, 2) if channels == 3 else (colours @ GREY)[..., None]
    return _checked(np.asarray(converted, np.float32), path), alpha


def _pixels(image: Image.Image, channels: int) -> Pixels:
    """The pixels of an 8-bit picture, band by band: numpy would copy a whole picture twice."""
    image.load()
    pixels = np.empty((image.height, image.width, channels), np.uint8)
    for top in range(0, image.height, BAND):
        band = image.crop((0, top, image.width, min(top + BAND, image.height)))
        pixels[top : top + BAND] = np.asarray(band, np.uint8).reshape(band.height, band.width, channels)
    return pixels


def pixels_in(path: Path) -> int:
    """How many pixels a picture will have in memory, by its header; 0 where the header says nothing."""
    try:
        no_pipe(path)
        with _opened(path) as image:
            return min(image.size[0] * image.size[1], max_pixels())
    except Exception:  # whoever reads the picture says what is wrong
        return 0


def _turned(plane: Floats, turn: Image.Transpose) -> Floats:
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).transpose(turn), np.float32)


def _checked(pixels: Floats, path: Path) -> Floats:
    if not np.isfinite(pixels).all():
        raise UserError(f"{path}: holds NaN or infinite values", "replace them before")
    if pixels.size and pixels.min() < 0:
        raise UserError(f"{path}: holds values below 0", "shift the picture so that black is 0")
    return pixels


def _deep(image: Image.Image, layout: str, path: Path) -> Floats | None:
    """A picture of more than 8 bits as (H, W, bands) float32 in its own range; None for all others."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image, np.float32)[..., None]
    if layout == "LA;16B":
        # Four bytes a pixel: grey and opacity, high byte first.
        whole = np.asarray(_again(path, lambda _: "RGBA"), np.float32)
        return np.stack([whole[..., 0] * 256 + whole[..., 1], whole[..., 2] * 256 + whole[..., 3]], -1)
    if layout in DEEP_COLOURS:
        # Pillow keeps the high byte of each 16-bit sample. Read in the other byte order, it keeps the low one.
        low = _again(path, lambda name: name.replace(*(";16B", ";16L") if ";16B" in name else (name[-4:], ";16B")))
        return np.asarray(image, np.float32) * 256 + np.asarray(low, np.float32)
    return None


def _layout(image: Image.Image) -> str:
    """How the file lays out its samples, in Pillow's words, such as "RGB;16B"; empty where Pillow does not tell."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    args: Any = tiles[0].args if tiles else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _again(path: Path, rename: Any) -> Image.Image:
    """The picture decoded once more, its samples laid out another way."""
    with _opened(path) as image:
        assert isinstance(image, ImageFile.ImageFile)
        image.tile = [
            tile._replace(
                args=(rename(tile.args[0]), *tile.args[1:]) if isinstance(tile.args, tuple) else rename(str(tile.args))
            )
            for tile in image.tile
        ]
        image.load()
        return image.copy()


def write_png(pixels: Pixels, path: Path) -> None:
    """An (H, W) or (H, W, C) uint8 array as PNG, a photo like any other."""
    Image.fromarray(pixels).save(path, "PNG")


def write_mask(mask: Pixels, path: Path, icc: bytes = b"") -> None:
    """An (H, W) or (H, W, C) uint8 array as PNG, marked as ours; `icc` is the colour profile of a cut-out."""
    about = PngImagePlugin.PngInfo()
    about.add_text(*MARK)
    Image.fromarray(mask).save(path, "PNG", pnginfo=about, icc_profile=icc or None)


def write_classes(classes: Pixels, colours: Pixels, path: Path) -> None:
    """An (H, W) uint8 array of classes as PNG with a palette, marked as ours; `colours` (K, 3) are those of classes."""
    about = PngImagePlugin.PngInfo()
    about.add_text(*MARK)
    image = Image.fromarray(classes)
    image.putpalette(colours.tobytes())  # the values of pixels stay the classes
    image.save(path, "PNG", pnginfo=about)


def is_own_mask(path: Path) -> bool:
    """Whether a file is a PNG that `write_mask` or `write_classes` wrote."""
    if path.suffix.lower() != ".png":
        return False
    mark = b"tEXt" + b"\0".join(part.encode() for part in MARK)
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            return mark in head or (b"iCCP" in head and mark in head + file.read(1 << 20))
    except OSError:
        return False


def find_photos(paths: Sequence[Path], own_masks: bool = False, arrays: bool = False) -> list[Path]:
    """The pictures among files and (recursively) in folders, each folder in order of name, hidden files left out.

    Masks that u2export wrote into a folder are left out as well; a warning in the log counts them.

    Args:
        paths: files and folders. own_masks: take masks that u2export wrote. arrays: take `.npy` files, the pictures of
            models of neither 1 nor 3 channels.

    Raises:
        UserError: a path does not exist, or nothing was found.
    """
    suffixes = {ARRAY} if arrays else SUFFIXES
    found: list[Path] = []
    own: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if _is_photo(p, path, suffixes)]
            left_out = [] if own_masks else [p for p in inside if is_own_mask(p)]
            own += left_out
            found += sorted(set(inside) - set(left_out))
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"no such file or folder: {path}", "check the path")
    if own:
        logging.getLogger("u2export").warning(
            "%d masks that u2export wrote are not taken as photos, the first is %s", len(own), own[0]
        )
    if not found:
        names = ", ".join(str(p) for p in paths)
        if arrays:
            hint = "photos have 1 or 3 channels; for other models save arrays (height, width, channels) with numpy.save"
            raise UserError(f"no .npy pictures in {names}", hint)
        raise UserError(f"no pictures in {names}", f"pictures end in {' '.join(sorted(suffixes))}")
    return found


def _is_photo(path: Path, root: Path, suffixes: Collection[str]) -> bool:
    return path.suffix.lower() in suffixes and not is_hidden(path, root) and path.is_file()
