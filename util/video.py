"""Writing a video frame by frame, and PyAV, the extra that videos need."""

from fractions import Fraction
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from util.errors import UserError

CODEC = "libx264"  # H.264, which every browser and player shows
OPTIONS = {"crf": "20", "preset": "veryfast"}  # hardly to be told from the pictures, at little of the time
BT709 = 1  # the number of ITU-R BT.709 in H.264 (matrix, primaries and transfer), which players take for untagged HD
LIMITED = 1  # FFmpeg's number for luma of 16 to 235


@cache
def pyav() -> ModuleType:
    """The package `av`.

    Raises:
        UserError: it is not installed, or cannot encode.
    """
    try:
        import av
    except ImportError:
        raise UserError("videos need PyAV, which is not installed: pip install av") from None
    if CODEC not in av.codecs_available:
        raise UserError(f"this build of PyAV has no encoder {CODEC}; pip install --force-reinstall av has one")
    return av


class VideoWriter:
    """A context that writes an MP4 file in H.264. What was written until an error or an interruption can be played.

    Args:
        path: file to write.
        rate: frames a second that players are told; the time of each frame is its own.
        time_base: seconds of a tick, in which the times of frames are given.
        aspect: width of a pixel divided by its height.

    Raises:
        UserError: PyAV is missing, or the file cannot be written.
    """

    def __init__(self, path: Path, rate: Fraction, time_base: Fraction, aspect: Fraction = Fraction(1)):
        self.path, self.rate, self.time_base, self.aspect = path, rate, time_base, aspect
        self._av = pyav()
        self._container: Any = None
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> "VideoWriter":
        try:
            self._container = self._av.open(f"file:{self.path}", "w", format="mp4")
        except self._av.error.FFmpegError as error:
            raise self._said(error) from None
        return self

    def write(self, picture: Image.Image, ticks: int) -> None:
        """Add a frame.

        Args:
            picture: RGB. The first one gives the size, made even by repeating the last row or column, as H.264 wants
                it; others are brought to it.
            ticks: when it is shown; a time that is not behind the last frame's is moved one tick behind it.
        """
        if self._stream is None:
            self._start(picture.width + picture.width % 2, picture.height + picture.height % 2)
        wide, high = self._stream.width, self._stream.height
        if abs(wide - picture.width) > 1 or abs(high - picture.height) > 1:
            picture = picture.resize((wide, high))
        pixels = np.asarray(picture)[:high, :wide]
        pixels = np.pad(pixels, ((0, high - pixels.shape[0]), (0, wide - pixels.shape[1]), (0, 0)), mode="edge")
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=BT709)
        self._last = frame.pts = max(ticks, self._last + 1)
        frame.time_base = self.time_base
        self._encode(frame)

    def _start(self, width: int, height: int) -> None:
        self._stream = self._container.add_stream(CODEC, rate=self.rate, options=OPTIONS)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        context = self._stream.codec_context
        context.time_base, context.sample_aspect_ratio = self.time_base, self.aspect
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED

    def _encode(self, frame: Any) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except self._av.error.FFmpegError as error:
            raise self._said(error) from None

    def __exit__(self, kind: type | None, *_: Any) -> None:
        try:
            if self._stream is not None:
                self._encode(None)
            self._container.close()
        except (UserError, self._av.error.FFmpegError) as error:
            if kind is None:  # else the first error is the one to tell
                raise error if isinstance(error, UserError) else self._said(error) from None

    def _said(self, error: Any) -> UserError:
        return UserError(f"video '{self.path}' cannot be written: {error.strerror or error}")
