"""Reading and writing mp4."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.errors import TaskError
from dit_lens.files.atomic import write_atomic

#: A video: uint8 of shape (T, height, width, 3), or (B, T, height, width, 3) of several.
Video = NDArray[np.uint8]
#: Frames a second of the benchmark's videos, and of Wan's.
FPS = 16


def _pyav() -> Any:
    try:
        import av  # an extra: only this benchmark needs it
    except ImportError:
        raise TaskError("mp4 files need PyAV: pip install 'dit-lens[video]'") from None
    return av


def read_video(path: str | Path) -> Video:
    """Every frame of a video: uint8 (T, height, width, 3).

    Raises
    ------
    TaskError
        No such file, not a video, or one that ends before its last frame.
    """
    av, path = _pyav(), Path(path)
    if not path.is_file():
        raise TaskError(f"{path}: no such file")
    try:
        with av.open(str(path)) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None:
                raise TaskError(f"{path}: holds no video")
            expected = stream.frames
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    except av.error.FFmpegError as error:
        raise TaskError(f"{path}: cannot be read as a video ({error.strerror})") from None
    # A file that ends between two frames decodes without complaint.
    if not frames or len(frames) < expected:
        raise TaskError(f"{path}: is cut short, {len(frames)} of its {expected} frames can be read")
    return np.stack(frames)


def write_video(path: str | Path, frames: Video, fps: float = FPS, crf: int | None = None) -> Path:
    """Write an H.264 mp4, whole or not at all.

    Parameters
    ----------
    frames : uint8 array of shape (T, height, width, 3)
    crf : int, optional
        By default the file is lossless: RGB, read back bit for bit, but not shown by most browsers. A number is x264's
        rate factor, of a smaller file that players show (17 looks the same to the eye).

    Raises
    ------
    TaskError
        Not such frames, or a rate that is not above 0.
    """
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 4 or 0 in frames.shape:
        got = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise TaskError(f"{path}: a video is uint8 of shape (T, height, width, 3), got {got}")
    if frames.shape[3] != 3:
        raise TaskError(f"{path}: a video has 3 channels, got {frames.shape[3]}")
    if not fps > 0:
        raise TaskError(f"{path}: fps must be above 0, got {fps}")
    return write_atomic(path, _encode(frames, fps, crf))


def _encode(frames: Video, fps: float, crf: int | None) -> bytes:
    av, buffer = _pyav(), io.BytesIO()
    _, height, width, _ = frames.shape
    even = height % 2 == 0 and width % 2 == 0
    codec, pixels, options = "libx264", "yuv420p" if even else "yuv444p", {"crf": str(crf)}
    if crf is None:
        codec, pixels, options = "libx264rgb", "rgb24", {"qp": "0"}
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
