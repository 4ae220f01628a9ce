"""Measures what a large annotation file costs: to read it, in each worker, and until the first step of training.

    python scripts/bench/annotations.py --before ../older-checkout --chart docs/scaling.png --output annotations.json

Files are made up, with as many images and objects as COCO train2017 (an eighth, a quarter, a half, all of it), an
eighth of Objects365 and a fifth of LVIS; they need 1.7 GB. The pictures are links to few of noise. Every figure is of a
process of its own. Seconds of reading are the processor's, all others are of the clock. `private` memory is what no
other process has.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.bench.annotation_chart import plot
from scripts.bench.annotation_files import COCO, LVIS, OBJECTS365, upright_images, write_annotations
from util.console import exit_quietly

PROG = "bench/annotations.py"
HERE = Path(__file__).parents[2]
SHARES = {"COCO 1/8": 8, "COCO 1/4": 4, "COCO 1/2": 2, "COCO": 1}
OTHER, FEDERATED, LOADED = "Objects365 1/8", "LVIS 1/5", "COCO 1/4"
METHODS = ("fork", "forkserver", "spawn")
BATCHES = 40  # of 4 images, for images/s
LINKS = 30_000  # names of one picture: file systems bound them
TRAIN = """
model: {backbone: {name: test_resnet, weights: none, norm: trainable, frozen_stages: 0}, d_model: 32, num_queries: 20}
data: {train_sizes: [96], max_size: 160, workers: 2}
train: {batch_size: 2, log_every: 1, device: cpu}
"""


def make_files(folder: Path, small: int) -> dict[str, Path]:
    """Write the annotation files, and COCO's pictures into `folder/pictures`; `small` divides all."""
    images, objects, *more = COCO
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    wanted = {name: (images // share // small, objects // share // small, *more) for name, share in SHARES.items()}
    wanted |= {OTHER: (OBJECTS365[0] // small, OBJECTS365[1] // small, *OBJECTS365[2:]), "few": (240, 1700, *more)}
    wanted[FEDERATED] = (LVIS[0] // 5 // small, LVIS[1] // 5 // small, *LVIS[2:])
    for name, sizes in wanted.items():
        files[name] = folder / f"{name.lower().replace(' ', '-').replace('/', '-')}.json"
        if not files[name].exists():
            write_annotations(files[name], *sizes, lists=name == FEDERATED)
    if (folder / "pictures").exists():
        return files
    (folder / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    drawn = [Image.fromarray(noise).resize((640, 480)), Image.fromarray(noise.swapaxes(0, 1)).resize((480, 640))]
    for i, upright in enumerate(upright_images(max(240, images // small))):
        of = folder / f"{'upright' if upright else 'lying'}{i // LINKS}.jpg"
        if not of.exists():
            drawn[int(upright)].save(of)
        os.link(of, folder / "pictures" / f"{i + 1:012d}.jpg")
    return files


def measured(checkout: Path, task: str, *arguments: object) -> dict:
    """The figures of one task."""
    command = [sys.executable, HERE / "scripts/bench/annotation_tasks.py", checkout, task, *arguments]
    done = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True, env=one_thread())
    return json.loads(done.stdout.splitlines()[-1])


def first_step(checkout: Path, folder: Path, train: Path, val: Path) -> float:
    """Seconds from the command `train` to the line of its first step in `metrics.jsonl`."""
    data = ["--data.train_images", folder / "pictures", "--data.train_annotations", train]
    data += ["--data.val_images", folder / "pictures", "--data.val_annotations", val]
    with TemporaryDirectory(dir=folder) as output:
        preset = folder / "train.yaml"
        preset.write_text(TRAIN)
        command = [sys.executable, "main.py", "train", "--config", preset, *data, "--train.output", output]
        begun = time.perf_counter()
        run = subprocess.Popen([*map(str, command)], cwd=checkout, stdout=subprocess.DEVNULL, env=one_thread())
        metrics = Path(output) / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.05)
            if run.poll() is not None:
                raise RuntimeError(f"training in '{checkout}' ended before its first step")
        taken = time.perf_counter() - begun
        run.terminate()
        run.wait()
    return taken


def one_thread() -> dict[str, str]:
    """The environment of what is measured."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def measure(folder: Path, checkouts: dict[str, Path], small: int) -> Iterator[dict]:
    """All figures, by checkout, after each one; those of one kind are measured in turns."""
    files = make_files(folder, small)
    report: dict = {name: {"reading": {}, "loading": {}, "few": {}} for name in checkouts}
    pictures = folder / "pictures"
    for file in (*SHARES, FEDERATED, OTHER):
        for name, checkout in checkouts.items():
            try:
                got = measured(checkout, "reading", pictures, files[file])
            except subprocess.CalledProcessError:
                if file != FEDERATED:  # which older checkouts do not read
                    raise
                print(f"{name:6}  {file:20} is not read", flush=True)
                continue
            report[name]["reading"][file] = said(name, file, got)
            yield report
    for method in METHODS:
        for name, checkout in checkouts.items():
            for kind, file in (("loading", LOADED), ("few", "few")):
                got = measured(checkout, "loading", pictures, files[file], method, BATCHES)
                report[name][kind][method] = said(name, f"{file}, {method}", got)
                yield report
    for name, checkout in checkouts.items():
        taken = {file: first_step(checkout, folder, files[file], files["few"]) for file in ("COCO", "few")}
        report[name]["first_step"] = said(name, "first step", taken)
        yield report


def said(name: str, of: str, figures: dict) -> dict:
    """The same figures, after a line about them."""
    print(f"{name:6}  {of:20}", "  ".join(f"{key} {value:.1f}" for key, value in figures.items()), flush=True)
    return figures


def main(argv: Sequence[str]) -> int:
    """Measure, and write what was asked for."""
    parser = argparse.ArgumentParser(PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout, measured beside this one")
    parser.add_argument("--small", type=int, default=1, help="divides all sizes, to try the script")
    parser.add_argument("--folder", type=Path, help="keep the files there, and use those that are there")
    parser.add_argument("--output", type=Path, help="JSON file of the figures")
    parser.add_argument("--chart", type=Path, help="PNG file of the figures by size")
    parser.add_argument("--redraw", type=Path, help="draw the figures of this JSON file, and measure nothing")
    options = parser.parse_args(argv)
    if options.redraw:
        report = json.loads(options.redraw.read_text())
    else:
        checkouts = {"before": options.before} if options.before else {}
        with nullcontext(options.folder) if options.folder else TemporaryDirectory() as folder:
            for report in measure(Path(folder), {**checkouts, "now": HERE}, options.small):
                if options.output:
                    options.output.write_text(json.dumps(report, indent=1))
    if options.chart:
        plot(report, options.chart)
    return 0


if __name__ == "__main__":
    exit_quietly(main, sys.argv[1:])
