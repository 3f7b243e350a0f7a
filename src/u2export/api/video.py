"""Masks of a video: every frame through an artifact, into a lossless video of the same times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from u2export.api.running import OpenArtifact, open_artifact, read_artifact
from u2export.errors import Unavailable, UserError, WrongValue
from u2export.exporters.artifact import Artifact
from u2export.files import make_folder, staged
from u2export.install import how_to_install
from u2export.reference.image import Pixels

if TYPE_CHECKING:
    from av import VideoFrame

__all__ = ["VideoMasks", "write_video"]

# FFV1 loses nothing, and every build of FFmpeg has it. Matroska keeps the time of each frame.
CODEC, SUFFIX = "ffv1", ".mkv"


@dataclass(frozen=True)
class VideoMasks:
    """What `write_video` did.

    Attributes:
        file: the video of masks, or of cut-outs.
        frames: the number of frames in it.
        info: what really ran, as in `OpenArtifact.info`.
        notes: what a reader of the masks must know.
    """

    file: Path
    frames: int
    info: Mapping[str, str]
    notes: tuple[str, ...] = ()


def write_video(
    artifact: Artifact | str | Path,
    video: str | Path,
    out: str | Path = "masks",
    *,
    cutout: bool = False,
    arithmetic: str = "",
    output_name: str = "",
    threads: int = 0,
    trust: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> VideoMasks:
    """Write `<stem>.mkv`: the mask of every frame of a video, lossless (FFV1), at the times of the frames.

    Each frame is a photo of its own: nothing smooths the masks over time. Frames of a turned camera are turned as
    players turn them. Sound is left out.

    Args:
        artifact, arithmetic, output_name, threads, trust: as for `open_artifact`.
        video: a file that FFmpeg reads.
        out: the folder for the video.
        cutout: write the frames with the masks as their alpha channel, in place of grey masks.
        progress: is called with the number of frames done, and the number that the file announces, or 0.

    Raises:
        UserError: the file holds no video that can be read, the artifact has several classes or takes no colours, or
            the result would replace the video.
        Unavailable: PyAV is not installed (extra `video`), or as for `open_artifact`.
    """
    av = _pyav()
    source, folder = Path(video), Path(out)
    target = folder / f"{source.stem}{SUFFIX}"
    if not source.is_file():
        raise UserError(f"no such video: {source}", "give a file that FFmpeg reads, such as an .mp4")
    if target.resolve() == source.resolve():
        raise WrongValue(f"the masks of {source} would replace it", "choose another folder", "out")
    opened = artifact if isinstance(artifact, Artifact) else read_artifact(artifact, output_name)
    if opened.contract.channels != 3:
        raise UserError(f"{opened.name} takes {opened.contract.channels} channels", "videos have 3 colours")
    with open_artifact(opened, arithmetic, output_name=output_name, threads=threads, trust=trust) as runner:
        make_folder(folder)
        with staged(target) as temporary:
            try:
                frames = _convert(av, runner, source, temporary, cutout, progress)
            except (av.FFmpegError, ValueError) as error:
                raise UserError(f"{source}: not a video that can be read ({error})", "give another file") from None
        return VideoMasks(target, frames, dict(runner.info), opened.notes)


def _pyav() -> Any:
    try:
        import av
    except ImportError:
        raise Unavailable("videos need PyAV", how_to_install("video")) from None
    return av


def _convert(
    av: Any, runner: OpenArtifact, source: Path, target: Path, cutout: bool, progress: Callable[[int, int], None]
) -> int:
    """Write the masks of all frames, and return their number."""
    done, made = 0, None
    with av.open(str(source)) as read, av.open(str(target), "w", format="matroska") as written:
        if not read.streams.video:
            raise UserError(f"{source}: no video in it", "give a file with a video")
        stream = read.streams.video[0]
        stream.thread_type = "AUTO"
        for frame, pixels in _frames(read, stream):
            shown = _shown(runner, pixels, cutout)
            if made is None:
                made = _stream(written, stream, shown)
            elif shown.shape[:2] != (made.height, made.width):
                raise UserError(f"{source}: its frames change their size", "split it where the size changes")
            new = av.VideoFrame.from_ndarray(shown, format="rgba" if cutout else "gray")
            new = new.reformat(format=made.pix_fmt)
            new.pts, new.time_base = frame.pts, frame.time_base
            written.mux(made.encode(new))
            done += 1
            progress(done, stream.frames)
        if made is None:
            raise UserError(f"{source}: no frame in it", "give a file with a video")
        written.mux(made.encode(None))
    return done


def _frames(read: Any, stream: Any) -> Iterator[tuple[VideoFrame, Pixels]]:
    """Give each frame with its pixels (H, W, 3) uint8, turned as its display matrix says."""
    for frame in read.decode(stream):
        pixels = frame.to_ndarray(format="rgb24")
        yield frame, np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def _shown(runner: OpenArtifact, pixels: Pixels, cutout: bool) -> Pixels:
    mask = runner.class_masks(pixels)
    if len(mask) > 1:
        raise UserError(f"{runner.artifact.name} has {len(mask)} classes", "videos are for networks of one mask")
    return np.dstack((pixels, mask[0])) if cutout else mask[0]


def _stream(written: Any, stream: Any, shown: Pixels) -> Any:
    made = written.add_stream(CODEC, rate=stream.average_rate or 25)
    made.height, made.width = shown.shape[:2]
    made.pix_fmt = "bgra" if shown.ndim == 3 else "gray"
    made.time_base = stream.time_base
    made.codec_context.time_base = stream.time_base
    return made
