"""Reading a video frame by frame: upright RGB pictures and their times. Needs PyAV."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from util.errors import UserError
from util.video import pyav

ANY_RATE = Fraction(25)  # of a file that tells no rate
SHORT = 1.0  # seconds that may lack at the end before it counts as cut off


class UnreadableVideo(UserError):
    """A file of which no frame can be read."""


class Video:
    """A video file that is open.

    Attributes:
        path: the file.
        rate: mean frames a second.
        time_base: seconds of a tick.
        aspect: width of a pixel divided by its height, in the upright picture; known after the first frame.
        length: frames, as far as the file tells; else None.
        fault: what is damaged, as a sentence; empty while nothing was found. Complete after the last frame.
    """

    def __init__(self, path: Path, container: Any, stream: Any):
        self.path, self._container, self._stream = path, container, stream
        self.rate = Fraction(stream.average_rate or stream.guessed_rate or ANY_RATE)
        self.time_base = Fraction(stream.time_base or 1 / self.rate)
        self.aspect = Fraction(stream.sample_aspect_ratio or 1)
        self.fault = ""
        self._seconds = self._told_seconds()
        self.length: int | None = stream.frames or (round(self._seconds * self.rate) if self._seconds else None)

    def frames(self) -> Iterator[tuple[int, Image.Image]]:
        """Every frame that can be decoded: its time in ticks since the video's start, and an upright RGB picture.

        No more than one is held. Packets that are damaged are passed over, as players do.

        Raises:
            UnreadableVideo: there is none.
        """
        errors, ticks, step = pyav().error.FFmpegError, -1, max(1, round(1 / self.rate / self.time_base))
        start = self._stream.start_time
        damaged = 0
        for frame in self._decoded():
            if isinstance(frame, errors):
                damaged += 1
                continue
            first = ticks < 0
            if frame.pts is None:
                ticks = 0 if first else ticks + step
            else:
                start = frame.pts if start is None else start
                ticks = max(frame.pts - start, 0)
            matrix = _display_matrix(frame)
            if first and matrix is not None and not matrix[0, 0]:
                self.aspect = 1 / self.aspect
            yield ticks, Image.fromarray(_upright(frame.to_ndarray(format="rgb24"), matrix))
        if ticks < 0:
            raise UnreadableVideo(f"video '{self.path}' holds no frame that can be decoded")
        self.fault = self._fault(damaged, float(ticks * self.time_base + 1 / self.rate))

    def _decoded(self) -> Iterator[Any]:
        """Frames, and the errors in between."""
        errors = pyav().error.FFmpegError
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except errors as error:
                yield error
                return
            if packet is None:
                return
            try:
                yield from packet.decode()
            except errors as error:
                yield error

    def _told_seconds(self) -> float | None:
        """How long the file says that its pictures last."""
        if self._stream.duration:
            return float(self._stream.duration * self.time_base)
        alone = len(self._container.streams) == 1  # else it may be the sound that lasts so long
        return self._container.duration / pyav().time_base if self._container.duration and alone else None

    def _fault(self, damaged: int, end: float) -> str:
        if self._seconds and end < self._seconds - SHORT:
            return f"video '{self.path}' breaks off after {end:.1f} of {self._seconds:.1f} seconds; it may be truncated"
        if damaged:
            return f"video '{self.path}' has {damaged} damaged packets; what they hold was left out"
        return ""


@contextmanager
def opened_video(path: Path) -> Iterator[Video]:
    """A video whose header was read; the block may take its frames.

    Nothing else is opened: no file or address that this one names, as a playlist does.

    Raises:
        UnreadableVideo: no video, damaged, not to be opened, or of a kind that cannot be decoded.
        UserError: PyAV is not installed.
    """
    av = pyav()
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
            if not path.stat().st_size:
                raise UnreadableVideo(f"video '{path}' is empty (0 bytes)")
            container = stack.enter_context(av.open(file, options={"protocol_whitelist": "none"}))
        except av.error.InvalidDataError as error:
            reason = f"it may be truncated or corrupt: {error.strerror}"
            raise UnreadableVideo(f"video '{path}' cannot be read, {reason}") from None
        except (OSError, av.error.FFmpegError) as error:
            raise UnreadableVideo(f"video '{path}' cannot be opened: {error.strerror}") from None
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            only = ", only sound" if container.streams.audio else ""
            raise UnreadableVideo(f"'{path}' holds no video{only}")
        if streams[0].codec_context is None:
            raise UnreadableVideo(f"video '{path}' is coded in a way that PyAV cannot decode; convert it to H.264")
        yield Video(path, container, streams[0])


def _display_matrix(frame: Any) -> np.ndarray | None:
    """`[2, 2]`: a row vector (x, y) of the stored picture times this is (x, y) of the shown one, up to a shift."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return None if matrix is None else np.frombuffer(matrix, np.int32).reshape(3, 3)[:2, :2]


def _upright(pixels: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Pixels `[H, W, 3]` turned and mirrored as a display matrix says, which of eight ways it may be."""
    if matrix is None:
        return pixels
    (a, b), (c, d) = matrix
    if not a:  # shown x comes of stored y
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
