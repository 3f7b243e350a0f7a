from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from u2export.errors import UserError
from u2export.reference.image import Contract, Floats
from u2export.reference.photos import (
    eight_bit,
    find_photos,
    is_own_mask,
    open_photo,
    read_input,
    read_photo,
    write_mask,
)

SMALL = Contract(48, 64)
RGB = np.random.default_rng(5).integers(0, 1024, (37, 53, 3)).astype(np.uint16)
GREY = RGB[..., 0]


@pytest.fixture(scope="session")
def cases() -> Path:
    folder = Path(os.environ.get("U2EXPORT_SHARED", ROOT.parent / "shared" / "data")).parent / "cases" / "photos"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    return folder


def png(path: Path, array: np.ndarray, kind: int) -> Path:
    """A 16-bit PNG: kind 0 grey, 2 RGB, 4 grey and opacity, 6 RGB and opacity."""
    height, width = array.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def normalised(pixels: np.ndarray) -> Floats:
    """What every depth must give: the picture over its maximum."""
    return SMALL.tensor(np.asarray(pixels, np.float32).reshape(37, 53, 3))


def test_every_depth_of_grey_gives_one_input(tmp_path: Path) -> None:
    want = normalised(np.repeat(GREY[..., None], 3, 2))
    Image.fromarray(GREY.astype(np.float32) / 1023).save(tmp_path / "f.tif")
    Image.fromarray(GREY.astype(np.int32) * 1000).save(tmp_path / "i.tif")
    png(tmp_path / "g.png", GREY, 0)
    png(tmp_path / "ga.png", np.stack([GREY, GREY[::-1]], -1), 4)
    for path in sorted(tmp_path.iterdir()):
        assert read_photo(path).dtype == np.float32, path.name
        np.testing.assert_allclose(read_input(SMALL, path), want, atol=2e-5, err_msg=path.name)
        assert read_photo(path, channels=1).shape == (37, 53, 1)


def test_colours_of_16_bits_keep_their_low_bits(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    rgba = np.concatenate([RGB, np.full((37, 53, 1), 65535, np.uint16)], -1)
    png(tmp_path / "rgb.png", RGB, 2)
    png(tmp_path / "rgba.png", rgba, 6)
    for name, compression in (("none", 1), ("lzw", 5), ("deflate", 8)):
        cv2.imwrite(str(tmp_path / f"{name}.tif"), RGB[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, compression])
    cv2.imwrite(str(tmp_path / "alpha.tif"), rgba[..., [2, 1, 0, 3]])
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(read_photo(path), RGB.astype(np.float32)), path.name


def test_shared_greys_give_one_input(cases: Path) -> None:
    eight = read_input(Contract(), cases / "grey8.png")
    for name in ("grey10in16.png", "grey_float01.tif"):
        assert np.abs(read_input(Contract(), cases / name) - eight).mean() < 0.02, name


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_values_that_no_picture_has_are_errors(tmp_path: Path, value: float) -> None:
    grey = GREY.astype(np.float32)
    grey[3, 4] = value
    Image.fromarray(grey).save(tmp_path / "bad.tif")
    with pytest.raises(UserError, match=r"bad\.tif: holds"):
        read_photo(tmp_path / "bad.tif")


def test_rounded_contracts_and_lanczos_take_deep_pictures(tmp_path: Path) -> None:
    y, x = np.mgrid[0:37, 0:53]
    smooth = np.stack([x * 19, y * 27, (x + y) * 11], -1).astype(np.uint16)  # noise would be cut by 8-bit filters
    path = png(tmp_path / "rgb.png", smooth, 2)
    for contract in (Contract(48, 64, rounded=True), Contract(48, 64, resize="lanczos")):
        eight = contract.tensor(eight_bit(smooth.astype(np.float32)))
        assert np.abs(read_input(contract, path) - eight).max() < 0.06


def exif(tag_type: int, value: bytes, tag: int = 0x0112) -> bytes:
    """An EXIF block of one tag, of any type."""
    entry = struct.pack("<HHI", tag, tag_type, 1) + value
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + struct.pack("<I", 0)


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_as_pillow_turns_it(tmp_path: Path, turn: int) -> None:
    from PIL import ImageOps

    image = Image.fromarray(eight_bit(RGB.astype(np.float32)))
    tags = Image.Exif()
    tags[0x0112] = turn
    image.save(tmp_path / "t.jpg", exif=tags)
    with Image.open(tmp_path / "t.jpg") as opened:
        want = np.asarray(ImageOps.exif_transpose(opened))
    photo = open_photo(tmp_path / "t.jpg")
    assert np.array_equal(photo.pixels, want)
    assert (photo.height, photo.width) == want.shape[:2]


@pytest.mark.parametrize(
    ("kind", "value"), [(11, struct.pack("<f", 6.0)), (3, b"\x06\0\0\0"), (2, b"abc\0"), (99, b"....")]
)
def test_odd_tags_stop_no_photo(tmp_path: Path, kind: int, value: bytes) -> None:
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "odd.jpg", exif=exif(kind, value))
    assert read_photo(tmp_path / "odd.jpg").ndim == 3


def test_shared_odd_photos(cases: Path) -> None:
    for name in ("short_as_float.jpg", "width_float.jpg"):
        assert read_photo(cases / name).shape == (120, 98, 3)  # orientation 6 applied
    with pytest.raises(UserError, match="damaged picture"):
        read_photo(cases / "avif_runtimeerror_a.jpg")
    found = {path.name for path in find_photos([cases])}
    assert {"photo.avif", "photo.jfif"} <= found
    for name in ("photo.avif", "photo.jfif"):
        assert read_photo(cases / name).shape == (246, 300, 3)


def test_opacity_and_profile_are_read(tmp_path: Path) -> None:
    rgba = np.dstack([eight_bit(RGB.astype(np.float32)), np.arange(37 * 53, dtype=np.uint8).reshape(37, 53)])
    Image.fromarray(rgba).save(tmp_path / "a.png", icc_profile=b"a profile")
    photo = open_photo(tmp_path / "a.png")
    assert photo.icc == b"a profile" and photo.alpha is not None
    assert np.array_equal(photo.alpha, rgba[..., 3]) and np.array_equal(photo.pixels, rgba[..., :3])


def test_large_jpegs_are_reduced_and_other_pictures_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(np.zeros((200, 100, 3), np.uint8))
    image.save(tmp_path / "big.jpg")
    image.save(tmp_path / "big.png")
    monkeypatch.setenv("U2EXPORT_MAX_PIXELS", "6000")
    photo = open_photo(tmp_path / "big.jpg")
    assert photo.pixels.shape == (100, 50, 3) and (photo.height, photo.width) == (200, 100)
    with pytest.raises(UserError, match=r"20,000 pixels, the limit is 6,000") as error:
        open_photo(tmp_path / "big.png")
    assert "U2EXPORT_MAX_PIXELS" in error.value.hint
    monkeypatch.setenv("U2EXPORT_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="U2EXPORT_MAX_PIXELS is 'many'"):
        open_photo(tmp_path / "big.png")


def test_own_masks_are_no_photos(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "photo.png")
    write_mask(np.zeros((20, 30), np.uint8), tmp_path / "mask.png")
    write_mask(np.zeros((20, 30, 4), np.uint8), tmp_path / "cutout.png", icc=bytes(range(256)) * 100)
    assert is_own_mask(tmp_path / "mask.png") and is_own_mask(tmp_path / "cutout.png")
    assert find_photos([tmp_path]) == [tmp_path / "photo.png"]
    assert len(find_photos([tmp_path], own_masks=True)) == 3
    assert find_photos([tmp_path / "mask.png"]) == [tmp_path / "mask.png"]  # named, so wanted


def test_fifos_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="not a regular file"):
        read_photo(tmp_path / "pipe.png")


@pytest.mark.parametrize("channels", [1, 4, 7])
def test_arrays_of_any_number_of_channels(tmp_path: Path, channels: int) -> None:
    contract = SMALL.with_channels(channels)
    array = np.random.default_rng(0).integers(0, 4096, (30, 40, channels)).astype(np.uint16)
    np.save(tmp_path / "a.npy", array)
    assert np.array_equal(read_input(contract, tmp_path / "a.npy"), contract.tensor(array.astype(np.float32)))
    np.save(tmp_path / "b.npy", array[..., :0])
    with pytest.raises(UserError, match=r"an array of shape \(30, 40, 0\)"):
        read_input(contract, tmp_path / "b.npy")
    (tmp_path / "c.npy").write_bytes(b"\x93NUMPY\x01\0noise")
    with pytest.raises(UserError, match=r"no readable \.npy array"):
        read_input(contract, tmp_path / "c.npy")


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    tags = Image.Exif()
    tags[0x0112] = 6
    options = {"exif": tags.tobytes()} if kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") else {}
    Image.fromarray(eight_bit(RGB.astype(np.float32))).save(buffer, kind, **options)
    return buffer.getvalue()


SEEDS = {kind: encoded(kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")}


@given(
    st.sampled_from(sorted(SEEDS)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
    st.floats(0.3, 1),
)
def test_damaged_photos_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, kind: str, changes: list[tuple[float, int]], kept: float
) -> None:
    data = bytearray(SEEDS[kind])
    for where, value in changes:
        data[int(where * len(data))] = value
    path = tmp_path_factory.mktemp("damaged") / f"x.{kind.lower()}"
    path.write_bytes(data[: int(kept * len(data))])
    try:
        pixels = read_photo(path)
    except UserError as error:
        assert "\n" not in error.problem
    else:
        assert pixels.ndim == 3 and pixels.shape[2] == 3
