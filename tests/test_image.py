from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from u2export.errors import UserError
from u2export.reference.image import Contract, bilinear, digest, mask_for, saliency
from u2export.reference.photos import eight_bit, find_photos, read_input, read_photo
from u2export.reference.source import Source

small = st.integers(1, 24)
pictures = hnp.arrays(np.uint8, st.tuples(small, small, st.just(3)))


@given(pictures, small, small)
def test_resize_is_opencvs_inter_linear(picture: np.ndarray, height: int, width: int) -> None:
    cv2 = pytest.importorskip("cv2")
    expected = cv2.resize(picture.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(bilinear(picture, height, width), expected, atol=2e-3)


@given(pictures, small, small)
def test_resize_is_pytorchs_too(picture: np.ndarray, height: int, width: int) -> None:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None]
    y = torch.nn.functional.interpolate(x, (height, width), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(bilinear(picture, height, width), y[0].permute(1, 2, 0).numpy(), atol=2e-3)


@given(pictures)
def test_input_is_scaled_by_the_maximum_and_always_finite(picture: np.ndarray) -> None:
    contract = Contract(16, 12)
    x = contract.tensor(picture)
    assert x.shape == contract.shape and x.dtype == np.float32 and x.flags.c_contiguous
    assert np.isfinite(x).all()
    back = x[0].transpose(1, 2, 0) * np.array(contract.std, np.float32) + np.array(contract.mean, np.float32)
    top = bilinear(picture, 16, 12).max()
    assert back.max() == pytest.approx(1.0 if top > 0 else 0.0, abs=1e-5)


@given(hnp.arrays(np.float32, st.tuples(small, small), elements=st.floats(0, 1, width=32)))
def test_mask_is_stretched_and_finite(d0: np.ndarray) -> None:
    stretched = saliency(d0)
    assert np.isfinite(stretched).all() and stretched.min() >= 0 and stretched.max() <= 1 + 1e-6
    if d0.max() - d0.min() > 1e-5:
        assert stretched.max() == pytest.approx(1) and stretched.min() == 0
    assert mask_for(d0, 7, 9).shape == (7, 9)


def test_constant_map_is_an_empty_mask() -> None:
    assert not saliency(np.full((4, 4), 0.7, np.float32)).any()


def test_lanczos_is_rembgs(photo: Path) -> None:
    pixels = read_photo(photo)
    resized = np.asarray(Image.open(photo).resize((32, 32), Image.Resampling.LANCZOS)) / 255
    resized = resized / max(resized.max(), 1e-6)
    expected = ((resized - Contract().mean) / Contract().std).transpose(2, 0, 1)[None]
    np.testing.assert_allclose(Contract(32, 32, "lanczos").tensor(pixels), expected, atol=1e-5)


def test_contract_survives_json_and_refuses_other_versions() -> None:
    contract = Contract(256, 384, "lanczos", rounded=True)
    assert Contract.from_json(contract.to_json()) == contract
    with pytest.raises(UserError, match="version 2"):
        Contract.from_json({**contract.to_json(), "version": 2})
    with pytest.raises(UserError, match="unreadable"):
        Contract.from_json({**contract.to_json(), "colour": "BGR"})


@pytest.mark.parametrize("bad", [{"resize": "nearest"}, {"height": 0}, {"width": 9000}])
def test_bad_contract(bad: dict[str, object]) -> None:
    with pytest.raises(UserError):
        Contract(**bad)  # type: ignore[arg-type]


def test_channels_repeat_the_authors_numbers() -> None:
    assert Contract().with_channels(1).mean == (0.485,)
    assert Contract().with_channels(4).std == (0.229, 0.224, 0.225, 0.229)
    with pytest.raises(UserError, match="4 channels"):
        Contract().with_channels(4).tensor(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="1 or 3"):
        read_photo(Path("any.png"), 4)


MODES = {
    "RGB": "photo.jpg", "RGBA": "a.png", "L": "grey.png", "LA": "la.png", "P": "palette.gif", "CMYK": "cmyk.jpg",
    "1": "bits.png", "I;16": "deep.png", "I": "deep32.tif", "F": "float.tif",
}  # fmt: skip


@pytest.mark.parametrize("mode", list(MODES))
def test_every_kind_of_picture(mode: str, tmp_path: Path) -> None:
    grey = np.linspace(0, 250, 12 * 10).reshape(12, 10)
    if mode in ("I;16", "I"):
        image = Image.fromarray((grey * 257).astype(np.uint16 if mode == "I;16" else np.int32))
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32))
    else:
        image = Image.fromarray(grey.astype(np.uint8)).convert(mode)
    image.save(tmp_path / MODES[mode])
    pixels = read_photo(tmp_path / MODES[mode])
    deep = mode in ("I;16", "I", "F")
    assert pixels.shape == (12, 10, 3) and pixels.dtype == (np.float32 if deep else np.uint8)
    pixels = eight_bit(pixels)
    assert pixels[0, 0].max() <= 12 and pixels[-1, -1].min() >= 235  # neither clipped to white nor inverted


def test_exif_orientation(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((10, 20, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_photo(tmp_path / "turned.jpg").shape == (20, 10, 3)


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), "white").save(tmp_path / "dot.png")
    assert np.isfinite(read_input(Contract(), tmp_path / "dot.png")).all()


def test_bad_pictures(tmp_path: Path, photo: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes(photo.read_bytes()[:400])
    cases = {"gone.jpg": "no such file", "empty.jpg": "empty", "text.jpg": "not a picture", "cut.png": "damaged"}
    for name, problem in cases.items():
        with pytest.raises(UserError, match=problem) as caught:
            read_photo(tmp_path / name)
        assert caught.value.hint


def test_find_photos(tmp_path: Path, photo: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "bare").mkdir()
    for name in ("sub/b.JPG", ".hidden/c.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert find_photos([tmp_path]) == [photo, tmp_path / "sub" / "b.JPG"]
    with pytest.raises(UserError, match="no such"):
        find_photos([tmp_path / "gone"])
    with pytest.raises(UserError, match="no pictures"):
        find_photos([tmp_path / "bare"])


def test_digest_sees_values_shape_and_type() -> None:
    a = np.arange(6, dtype=np.uint8)
    assert len({digest(x) for x in (a, a.reshape(2, 3), a.astype(np.int8), a + 1)}) == 4


@pytest.mark.slow
def test_masks_are_the_authors(shared: Path, published: Source) -> None:
    """The author's saved u2netp maps of his 18 photos, from pixels to 8-bit mask."""
    source = published
    folder = shared / "u2net_official"
    references = {p.stem: p for p in (folder / "ref_u2netp_author").iterdir()}
    differences = []
    for path in find_photos([folder / "images"]):
        pixels = read_photo(path)
        d0 = source.predict(source.contract.tensor(pixels))[0, 0]
        expected = np.asarray(Image.open(references[path.stem]).convert("L"), np.float64)
        differences.append(np.abs(mask_for(d0, *expected.shape) - expected).mean() / 255)
    assert len(differences) == 18
    assert np.mean(differences) < 0.001
    assert max(differences) < 0.003
