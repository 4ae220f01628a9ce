"""What a detector finds in videos: a drawn video and one JSON line for each frame, in memory that does not grow."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path

from PIL import Image

from datasets.video import UnreadableVideo, Video, opened_video
from engine.predictor import Predictor
from util.errors import UserError
from util.files import unused_name
from util.fonts import legend_of
from util.progress import progress
from util.video import VideoWriter, pyav

Shown = tuple[int, Image.Image]  # when, in ticks, and what


def predict_videos(
    predictor: Predictor,
    videos: Sequence[Path],
    output: Path,
    threshold: float,
    top_k: int,
    batch_size: int,
    alone: bool = True,
) -> int:
    """Write `NAME.mp4`, with what is found drawn, and `NAME.jsonl` of every video that can be read.

    Each line of the latter has `frame` (from 0), `time` (in seconds) and `detections`, as `Predictor.describe` gives
    them. Prints a line for each video; says on stderr what is damaged or left out.

    Args:
        predictor: a detector.
        videos: files.
        output: folder to write to, which is there.
        threshold: smallest score to keep.
        top_k: most detections for each frame.
        batch_size: frames that go through the model together.
        alone: whether nothing but them is looked at; otherwise that none can be read is no error.

    Returns:
        How many were read whole.

    Raises:
        UserError: PyAV is missing; the videos lie in `output`, and could be overwritten; or, alone, none could be read.
    """
    pyav()
    if any(path.resolve().parent == output.resolve() for path in videos):
        raise UserError(f"output '{output}' is the folder of the videos, which the drawn ones could overwrite")
    whole = read = 0
    names: set[str] = set()
    labels: set[int] = set()
    for path in videos:
        name = unused_name(path.stem, names)
        try:
            with opened_video(path) as video:
                print(_predict_video(predictor, video, output / name, threshold, top_k, batch_size, labels))
        except UnreadableVideo as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        read += 1
        whole += not video.fault
        if video.fault:
            print(video.fault, file=sys.stderr)
    if videos and not read and alone:
        one = f"the video '{videos[0]}' could not be read"
        raise UserError(one if len(videos) == 1 else f"none of the {len(videos)} videos could be read")
    if legend := legend_of({k: name for k, name in predictor.names.items() if k in labels}):
        print(legend, file=sys.stderr)
    return whole


def _predict_video(
    predictor: Predictor, video: Video, target: Path, threshold: float, top_k: int, batch_size: int, labels: set[int]
) -> str:
    """Write both files of a video, add the labels that are drawn, and return a line on it."""
    batches = _in_batches(video.frames(), batch_size)
    first = next(batches)  # what cannot be read leaves no files
    drawn, lines = target.with_name(f"{target.name}.mp4"), target.with_name(f"{target.name}.jsonl")
    frames = boxes = 0
    started = time.perf_counter()
    with ExitStack() as stack:
        log = stack.enter_context(lines.open("w"))
        writer = stack.enter_context(VideoWriter(drawn, video.rate, video.time_base, video.aspect))
        bar = stack.enter_context(progress(None, video.path.name, total=video.length, unit=" frames"))
        for batch in chain([first], batches):
            for (ticks, picture), found in zip(batch, predictor([p for _, p in batch], threshold, top_k)):
                described = predictor.describe(found)
                seconds = round(float(ticks * video.time_base), 6)
                log.write(json.dumps({"frame": frames, "time": seconds, "detections": described}) + "\n")
                writer.write(predictor.draw(picture, found), ticks)
                labels.update(d["label"] for d in described)
                frames, boxes = frames + 1, boxes + len(described)
                bar.update()
    speed = frames / (time.perf_counter() - started)
    return (
        f"{boxes} boxes on {frames} frames of '{video.path}', {speed:.1f} frames a second; "
        f"{drawn.name} and {lines.name} are in {target.parent}"
    )


def _in_batches(frames: Iterator[Shown], size: int) -> Iterator[list[Shown]]:
    while batch := list(islice(frames, size)):
        yield batch
