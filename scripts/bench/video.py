"""What `main.py predict` takes for videos of several lengths: peak memory and frames a second.

    python scripts/bench/video.py --checkpoint runs/quickstart/best.pth

The videos are made of generated shapes: a new scene every second, over which a window slides.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from datasets.shapes import draw_scene
from util.console import exit_quietly
from util.errors import UserError
from util.video import VideoWriter

MAIN = Path(__file__).resolve().parents[2] / "main.py"
# Runs a script, and prints the most memory that its process held. What the system counts of a child begins with the
# memory of the process that started it.
WATCHED = """
import os, runpy, sys
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(open("/proc/self/status").read())
"""


def make_clip(path: Path, seconds: int, rate: int = 25, size: int = 96, seed: int = 0) -> Path:
    """Write a video of generated shapes, the same for the same seed.

    Args:
        path: an MP4 file.
        seconds: its length.
        rate: frames a second.
        size: sides of its picture in pixels.
        seed: of the scenes.
    """
    with VideoWriter(path, Fraction(rate), Fraction(1, rate)) as writer:
        for second in range(seconds):
            scene, _, _ = draw_scene(np.random.default_rng([seed, second]), round(size * 4 / 3))
            for frame in range(rate):
                x, y = ((side - size) * frame // rate for side in scene.size)
                writer.write(scene.crop((x, y, x + size, y + size)), second * rate + frame)
    return path


def measured(checkpoint: str, clip: Path, options: Sequence[str]) -> tuple[float, float]:
    """Peak memory in MiB, and frames a second as the command prints them, of a process of its own."""
    argv = [
        "predict",
        "--checkpoint",
        checkpoint,
        "--input",
        str(clip),
        "--output",
        str(clip.parent / "drawn"),
        *options,
    ]
    done = subprocess.run([sys.executable, "-c", WATCHED, MAIN, *argv], stdout=subprocess.PIPE, text=True)
    speed = re.search(r"([\d.]+) frames a second", done.stdout)
    if done.returncode or not speed:
        raise UserError(f"predict ended with {done.returncode}")
    return int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1]) / 1024, float(speed[1])


def main(argv: Sequence[str]) -> int:
    """Print a line for each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="runs/quickstart/best.pth", help="detector (default: %(default)s)")
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 60], help="lengths (default: 10 60)")
    parser.add_argument("--size", type=int, default=96, help="sides of the picture (default: %(default)s)")
    options, more = parser.parse_known_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder:
            print("seconds  frames  peak memory  frames a second")
            for seconds in options.seconds:
                clip = make_clip(Path(folder) / f"{seconds}.mp4", seconds, size=options.size)
                memory, speed = measured(options.checkpoint, clip, more)
                print(f"{seconds:7}  {seconds * 25:6}  {memory:8.0f} MiB  {speed:15.1f}", flush=True)
    except UserError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    exit_quietly(main, sys.argv[1:])
