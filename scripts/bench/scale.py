"""Measures the work around the operator, with this checkout and beside it with an older one.

    python scripts/bench/scale.py --before ../older-checkout --json scale.json
    python scripts/bench/scale.py --only scoring crowd

Scoring as many detections as COCO val and LVIS have, their analysis, matching and losses of crowds, the checkpoints of
an epoch that improves, a forward pass and a training step with ResNet-50, the operator by its width, and training on a
few shapes. `annotations.py` beside this file has what large annotation files cost. Every figure is of a process of its
own; the checkouts take turns, and the figures are medians of the rounds. Threads are those of OMP_NUM_THREADS.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))

from util.console import exit_quietly

PROG = "bench/scale.py"
HERE = Path(__file__).parents[2]
BASE = "configs/base.yaml"
# What is measured: the row's name, task and arguments, and rounds.
ROWS = (
    ("COCO val: 5,000 images, 500,000 boxes", "scoring", (5000, 7, 100, 80), 1),
    ("like LVIS: 500 images, 150,000 boxes, 1,203 classes", "scoring", (500, 12, 300, 1203), 1),
    ("1,000 images, 100,000 boxes", "scoring", (1000, 7, 100, 80), 1),
    ("the same with --analyse", "scoring", (1000, 7, 100, 80, "analysed"), 1),
    ("16 images of 500 objects, 900 queries", "crowd", (16, 900, 500, 0), 1),
    ("the same with 6,380 proposals", "crowd", (16, 900, 500, 6380), 1),
    ("2 images of 7 objects, 300 queries", "crowd", (2, 300, 7, 0), 3),
    ("an epoch of R50 that improves", "saving", (BASE,), 1),
    ("R50, one image of 800x1066", "forward", (BASE, 800, 1066), 3),
    ("R50, one image of 480x640", "step", (BASE, 480, 640), 3),
    ("16 channels", "operator", (16,), 4),
    ("32 channels", "operator", (32,), 4),
    ("64 channels", "operator", (64,), 4),
    ("128 channels", "operator", (128,), 4),
    ("an epoch of 256 shapes", "quickstart", (1,), 4),
    ("five epochs of 256 shapes", "quickstart", (5,), 2),
)
SMALL = (
    ("scored", "scoring", (4, 3, 5, 4), 1),
    ("scored and analysed", "scoring", (4, 3, 5, 4, "analysed"), 1),
    ("a crowd", "crowd", (2, 6, 3, 12), 1),
    ("an epoch", "saving", ("configs/quickstart.yaml",), 1),
    ("small", "forward", ("configs/quickstart.yaml", 64, 64), 1),
    ("small", "step", ("configs/quickstart.yaml", 64, 64), 1),
    ("8 channels", "operator", (8,), 1),
)


def measured(checkout: Path, task: str, arguments: Sequence[object]) -> dict[str, float]:
    """The figures of one task, run in the checkout's folder."""
    more = [checkout] if task == "quickstart" else []
    command = [sys.executable, HERE / "scripts/bench/scale_tasks.py", checkout, task, *more, *arguments]
    done = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True, cwd=checkout)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, and write what was asked for."""
    parser = argparse.ArgumentParser(PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--only", nargs="+", metavar="TASK", choices=sorted({task for _, task, *_ in ROWS}))
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args(argv)
    checkouts = {"before": options.before.resolve()} if options.before else {}
    checkouts["now"] = HERE
    report, rows = [], []
    for name, task, arguments, rounds in SMALL if options.small else ROWS:
        if options.only and task not in options.only:
            continue
        found: dict[str, dict[str, list[float]]] = {checkout: defaultdict(list) for checkout in checkouts}
        for turn in range(rounds):
            # In the other order every second time: whoever comes first may have the better of a machine.
            for checkout, folder in list(checkouts.items())[:: -1 if turn % 2 else 1]:
                for key, figure in measured(folder, task, arguments).items():
                    found[checkout][key].append(figure)
        for key in found["now"]:
            figures = {checkout: median(f[key]) for checkout, f in found.items() if key in f}
            cells = [f"{figures[c]:,.4g}" if c in figures else "-" for c in checkouts]
            ratio = f"{figures['now'] / figures['before']:.2f}" if figures.get("before") else ""
            rows.append([task, name, key, *cells, ratio])
            print("  ".join(rows[-1]), file=sys.stderr, flush=True)
        report.append({"task": task, "name": name, "arguments": arguments, "rounds": found})
        if options.json:
            options.json.write_text(json.dumps(report, indent=1))
    from torch import device

    from scripts.bench.timing import machine, machine_line, markdown_table  # torch, which takes memory

    print(f"{machine_line(machine(device('cpu')))}\n")
    print(markdown_table(("", "", "", *checkouts, "of before"), rows))
    return 0


if __name__ == "__main__":
    exit_quietly(main, sys.argv[1:])
