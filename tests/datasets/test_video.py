"""Videos read and written, against what numpy, PyAV and the clock say."""

import errno
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from datasets.video import UnreadableVideo, opened_video
from util.errors import UserError
from util.video import VideoWriter, pyav

QUARTERS = np.zeros((48, 64, 3), np.uint8)
QUARTERS[:24, :32], QUARTERS[:24, 32:], QUARTERS[24:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
TICKS = [0, 1000, 1500, 9000, 9001, 20000]


def encode(path: Path, pixels=QUARTERS, frames: int = 10, turn=None, options=None, codec="libx264", roll=0) -> Path:
    """By PyAV alone: so many frames, 10 a second, equal but for the rows, which move down by `roll`."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = pixels.shape[1], pixels.shape[0], "yuv420p"
        if turn:
            stream.set_display_rotation(turn[0], hflip=turn[1])
        for i in range(frames):
            moved = np.roll(pixels, roll * i, axis=0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 44100, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(path: Path) -> tuple[list[int], list[np.ndarray], str]:
    with opened_video(path) as video:
        frames = list(video.frames())
        return [ticks for ticks, _ in frames], [np.asarray(picture) for _, picture in frames], video.fault


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
def test_rotated_clips_are_upright(tmp_path, quarter, mirrored):
    """A phone stores the picture as its chip lies, and how to turn it (against the clock, then mirror) to show it."""
    path = encode(tmp_path / "a.mp4", frames=1, turn=(90 * quarter, mirrored))
    shown = np.rot90(QUARTERS, quarter)
    shown = shown[:, ::-1] if mirrored else shown
    _, (pixels,), _ = read(path)
    assert pixels.shape == shown.shape
    edges = 4  # where chroma of half the resolution mixes colours
    inner = np.ones(shown.shape[:2], bool)
    for axis, side in enumerate(shown.shape[:2]):
        near = abs(np.arange(side) - side // 2 + 0.5) < edges
        inner &= ~(near[:, None] if axis == 0 else near)
    assert abs(pixels.astype(int) - shown)[inner].max() < 12


def test_what_is_written_is_read_at_the_same_times_in_the_same_colours(tmp_path):
    """A variable frame rate, ticks of a millisecond; odd sides become even by repeating the last row and column."""
    odd = QUARTERS[:-1, :-1]
    with VideoWriter(tmp_path / "a.mp4", Fraction(10), Fraction(1, 1000), Fraction(4, 3)) as writer:
        for ticks in TICKS:
            writer.write(Image.fromarray(odd), ticks)
    times, pictures, fault = read(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert [Fraction(t) * stream.time_base for t in times] == [Fraction(t, 1000) for t in TICKS]
        assert stream.sample_aspect_ratio == Fraction(4, 3) and stream.codec_context.name == "h264"
        assert [frame.time for frame in container.decode(stream)] == [t / 1000 for t in TICKS]
    assert not fault and all(p.shape == QUARTERS.shape for p in pictures)
    for corner in ((5, 5), (5, -5), (-5, 5), (-5, -5), (-1, 5), (5, -1)):
        assert abs(pictures[3][corner].astype(int) - QUARTERS[corner]).max() < 8


def test_times_that_do_not_rise_and_pictures_of_other_sizes_are_written(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", Fraction(10), Fraction(1, 10)) as writer:
        for ticks, side in ((0, 40), (0, 60), (5, 40), (4, 20)):
            writer.write(Image.new("RGB", (side, 40)), ticks)
    times, pictures, _ = read(tmp_path / "a.mp4")
    assert len(times) == 4 and times == sorted(set(times)) and {p.shape for p in pictures} == {(40, 40, 3)}


@pytest.mark.parametrize("suffix", ["mkv", "avi", "ts"])
def test_other_containers(tmp_path, suffix):
    codec = "mpeg4" if suffix == "avi" else "libx264"
    with opened_video(encode(tmp_path / f"a.{suffix}", codec=codec)) as video:
        seconds = [float(ticks * video.time_base) for ticks, _ in video.frames()]
        assert video.rate == 10 and not video.fault
    assert seconds == pytest.approx([i / 10 for i in range(10)], abs=0.002)  # mkv counts in milliseconds


def test_the_length_is_told(tmp_path):
    for suffix in ("mp4", "mkv"):
        with opened_video(encode(tmp_path / f"a.{suffix}", frames=30)) as video:
            assert video.length == 30


def test_the_cover_of_a_song_is_no_video(tmp_path):
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        stream.disposition = av.stream.Disposition.attached_pic
        container.mux(stream.encode(av.VideoFrame.from_ndarray(QUARTERS, format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(UnreadableVideo, match="holds no video"):
        read(path)


def test_what_cannot_be_read_is_told_in_a_sentence(tmp_path):
    good = encode(tmp_path / "good.mp4").read_bytes()
    files = {
        "junk.mp4": (b"hello " * 500, "truncated or corrupt"),
        "empty.mp4": (b"", "empty"),
        "half.mp4": (good[: len(good) // 2], "truncated or corrupt"),  # its index, at the end, is lost
        # Lists of other files, which a stranger's file must not open.
        "list.mp4": (f"#EXTM3U\n#EXTINF:1,\nfile://{tmp_path}/good.mp4\n#EXT-X-ENDLIST\n".encode(), "cannot be"),
        "list.m3u8": (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n", "cannot be"),
        "join.mp4": (b"ffconcat version 1.0\nfile good.mp4\n", "cannot be"),
        "sound.mp4": (sound(tmp_path / "s.mp4").read_bytes(), "holds no video, only sound"),
        "text.mp4": (b"1\n00:00:01,000 --> 00:00:02,000\nsubtitle\n", "."),
    }
    for name, (content, said) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableVideo, match=said) as raised:
            read(tmp_path / name)
        assert "\n" not in str(raised.value) and f"'{tmp_path / name}'" in str(raised.value)
    with pytest.raises(UnreadableVideo, match=f"cannot be opened: {os.strerror(errno.ENOENT)}"):
        read(tmp_path / "gone.mp4")


def test_a_truncated_clip_gives_what_is_there_and_says_where_it_breaks_off(tmp_path):
    """Its index stands in front, as in clips of the web."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    path = encode(tmp_path / "a.mp4", noise, frames=40, options={"movflags": "faststart"}, roll=7)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    times, _, fault = read(path)
    assert 10 < len(times) < 30
    assert f"'{path}' breaks off after {len(times) / 10:.1f} of 4.0 seconds" in fault


def test_damaged_packets_are_passed_over(tmp_path):
    path = encode(tmp_path / "a.mp4", frames=20, options={"movflags": "faststart"})
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    at = packets[5].pos
    content[at : at + 5] = b"\xff" * 5  # longer than the packet says
    path.write_bytes(content)
    times, _, fault = read(path)
    assert 10 < len(times) < 20 and "has 1 damaged packets" in fault


def test_a_file_that_cannot_be_written(tmp_path):
    with (
        pytest.raises(UserError, match=r"gone/a\.mp4' cannot be written"),
        VideoWriter(tmp_path / "gone" / "a.mp4", Fraction(10), Fraction(1, 10)) as writer,
    ):
        writer.write(Image.new("RGB", (64, 48)), 0)


def test_without_pyav(monkeypatch):
    pyav.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UserError, match="pip install av"):
        pyav()
