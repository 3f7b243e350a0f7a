"""Masks of videos: every frame, its time, its turn, and what is no video."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from builders import picture
from conftest import Cli, two_lines

from u2export.api.running import open_artifact
from u2export.api.video import write_video
from u2export.errors import UserError
from u2export.reference.image import Pixels

av = pytest.importorskip("av")
TIMES = (0, 3, 4, 10, 11)  # not evenly spread, as phones record


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures of 64 x 48 pixels in an .mp4."""
    path = tmp_path_factory.mktemp("film") / "in.mp4"
    with av.open(str(path), "w") as written:
        stream = written.add_stream("mpeg4", rate=25, width=64, height=48, pix_fmt="yuv420p", bit_rate=4_000_000)
        stream.time_base = stream.codec_context.time_base = Fraction(1, 25)
        for i, time in enumerate(TIMES):
            frame = av.VideoFrame.from_ndarray(picture(i, 48, 64), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            written.mux(stream.encode(frame))
        written.mux(stream.encode(None))
    return path


def frames(path: Path, form: str) -> tuple[list[float], list[Pixels]]:
    """Times in seconds, and pixels, without a turn."""
    with av.open(str(path)) as read:
        shown = [(frame.time, frame.to_ndarray(format=form)) for frame in read.decode(video=0)]
    return [time for time, _ in shown], [pixels for _, pixels in shown]


def test_every_frame_gets_the_mask_of_its_picture(
    film: Path, tiny: Callable[[str, float], Path], tmp_path: Path
) -> None:
    model, seen = tiny("m.onnx", 1.0), []
    made = write_video(model, film, tmp_path, progress=lambda done, total: seen.append((done, total)))
    times, masks = frames(made.file, "gray")
    told, pictures = frames(film, "rgb24")
    assert made.frames == 5 and seen[-1] == (5, 5) and made.info["runtime"].startswith("ONNX Runtime")
    assert np.allclose(times, told, atol=0.002) and np.allclose(times, [t / 25 for t in TIMES], atol=0.002)
    with open_artifact(model) as runner:
        for mask, pixels in zip(masks, pictures, strict=True):
            assert np.array_equal(mask, runner.mask(pixels))


def test_cutouts_keep_the_colours(film: Path, tiny: Callable[[str, float], Path], tmp_path: Path) -> None:
    cut = frames(write_video(tiny("m.onnx", 1.0), film, tmp_path / "cut", cutout=True).file, "rgba")[1]
    masks = frames(write_video(tiny("m.onnx", 1.0), film, tmp_path).file, "gray")[1]
    for shown, mask, pixels in zip(cut, masks, frames(film, "rgb24")[1], strict=True):
        assert np.array_equal(shown[..., 3], mask) and np.array_equal(shown[..., :3], pixels)


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((0, -1, 1, 0), 1), ((-1, 0, 0, -1), 2)])
def test_frames_of_a_turned_phone_are_turned(
    film: Path, tiny: Callable[[str, float], Path], tmp_path: Path, matrix: tuple[int, ...], turns: int
) -> None:
    a, b, c, d = (value * 65536 for value in matrix)
    upright = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    data = film.read_bytes()
    track = data.index(upright, data.index(b"tkhd"))  # the matrix of the track, not that of the whole film
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data[:track] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[track + 36 :])
    made = write_video(tiny("m.onnx", 1.0), turned, tmp_path / "out", cutout=True)
    for shown, pixels in zip(frames(made.file, "rgba")[1], frames(film, "rgb24")[1], strict=True):
        assert np.array_equal(shown[..., :3], np.rot90(pixels, turns))


def test_predict_takes_photos_or_a_video(
    cli: Cli, film: Path, tiny: Callable[[str, float], Path], tmp_path: Path
) -> None:
    model, out = tiny("m.onnx", 1.0), tmp_path / "out"
    done = cli("predict", "--video", film, "--model", model, "--out", out, "--json")
    assert json.loads(done.stdout)["written"] == [str(out / "in.mkv")] and json.loads(done.stdout)["frames"] == 5
    two_lines(cli("predict", "--model", model), "photos or a video", code=2)
    two_lines(cli("predict", film, "--video", film, "--model", model), "photos or a video", code=2)


def test_what_is_no_video(film: Path, tiny: Callable[[str, float], Path], tmp_path: Path) -> None:
    model = tiny("m.onnx", 1.0)
    broken = tmp_path / "broken.mp4"
    for content in (b"", b"text", film.read_bytes()[:900]):
        broken.write_bytes(content)
        with pytest.raises(UserError, match=r"broken\.mp4: "):
            write_video(model, broken, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(UserError, match="no such video"):
        write_video(model, tmp_path / "gone.mp4", tmp_path)
    copy = tmp_path / "x.mkv"
    copy.write_bytes(film.read_bytes())
    with pytest.raises(UserError, match="would replace it"):
        write_video(model, copy, tmp_path)
