"""Trains one configuration and writes down how it learns; draws and tabulates such runs.

    python scripts/bench/learning.py --config configs/finetune_small.yaml --name base --json base_1.json \\
        --steps 2000 -- --data.train_images my/train --data.train_annotations my/train.json \\
        --data.val_images my/val --data.val_annotations my/val.json --train.seed 1
    python scripts/bench/learning.py plot base_1.json base_2.json other_1.json --png learning.png
    python scripts/bench/learning.py table base_1.json base_2.json other_1.json

What follows a lone -- are options of `main.py train`. The run is set up and trained by `engine/` itself. Its folder is
a temporary one unless --train.output is among the options; then the last weights are kept there.

Written down are losses and the gradient norm of each part before clipping; every few epochs AP, the recall at IoU 0.5
of the boxes that the decoder starts from, and how many objects were matched with another query (a look; its time does
not count as training); at the end the AP50 that each kind of error costs. With train.ema_decay the final figures are
those of the EMA. The file is written after every look. Runs of one --name are seeds of one configuration.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[2]))

from main import COMMANDS
from util.arguments import peek
from util.console import exit_quietly
from util.errors import UserError

if TYPE_CHECKING:
    from util.config import Config

PROG = "bench/learning.py"


def train(args: argparse.Namespace, config: "Config", keep: bool) -> None:
    """Set up and train a run, and write its record."""
    from engine.set_up import set_up
    from scripts.bench import timing
    from scripts.bench.learning_run import LearningRun
    from util.distributed import ALONE
    from util.signals import StopRequest

    with ExitStack() as stack:
        if not keep:
            config.train.output = stack.enter_context(tempfile.TemporaryDirectory())
        training = set_up(config, ALONE)
        assert training is not None, "only a resumed run can have ended"
        stack.enter_context(closing(training.loader))
        device, seed = training.step.state.device, config.train.seed
        record = {"name": args.name, "seed": seed, "config": asdict(config), "machine": timing.machine(device)}
        run = LearningRun(
            training, args.steps, args.every, args.subset, record, lambda: timing.write_json(args.json, record)
        )
        print(f"{run.steps} steps in {run.epochs} passes, a look after every {run.every}\n", flush=True)
        run.run(StopRequest())
        if keep:
            training.run.save()
            training.run.wait()
        if training.run.log is not None:
            training.run.log.close()
    record["machine"]["load_after"] = timing.load()
    timing.write_json(args.json, record)


def arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, "Config", bool]:
    """Read the options of a run, its configuration, and whether a folder was named for it."""
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="PRESET", help="a preset of configs/")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--name", help="the configuration's name in plots and tables (default: the preset's)")
    parser.add_argument(
        "--steps",
        type=int,
        help="optimiser steps, exactly: as many passes as that takes, the last one cut short, and a cosine that ends "
        "at the last step; drop epochs of a step schedule stay where they are (default: those of train.epochs)",
    )
    parser.add_argument("--every", type=int, help="passes between looks (default: about six looks, one at the end)")
    parser.add_argument("--log-every", type=int, default=20, help="steps between losses and norms (default: 20)")
    parser.add_argument(
        "--subset", type=int, default=64, help="training images on which the matching is watched (default: 64)"
    )
    parser.add_argument("--device", help="train.device: cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("overrides", nargs="*", help="options of main.py train after a lone --")
    args = parser.parse_args(argv)
    if min(n for n in (args.steps, args.every, args.log_every, args.subset, 1) if n is not None) < 1:
        parser.error("--steps, --every, --log-every and --subset must be at least 1")
    try:
        config = COMMANDS["train"].parse("train", ["--config", args.config, *args.overrides])
        keep = peek(args.overrides, "train.output") is not None
        if config.train.resume or config.train.fast_dev_run:
            raise UserError("a run is recorded from its first step to its last; leave out train.resume, fast_dev_run")
    except UserError as error:
        parser.error(str(error))
    args.name = args.name or Path(args.config).stem
    config.train.device = args.device or config.train.device
    config.train.log_every = args.log_every
    return args, config, keep


def report_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line of `plot` and `table`."""
    parser = argparse.ArgumentParser(prog=PROG)
    kinds = parser.add_subparsers(dest="kind")
    for kind, what in (("plot", "draw the runs"), ("table", "print tables of the runs in Markdown")):
        of_kind = kinds.add_parser(kind, help=what)
        of_kind.add_argument("files", type=Path, nargs="+", help="files that --json has written")
        if kind == "plot":
            of_kind.add_argument("--png", type=Path, required=True, help="the picture to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Train and record, or draw or tabulate records."""
    try:
        if argv and argv[0] in ("plot", "table"):
            from scripts.bench import learning_report

            args = report_arguments(argv)
            records = learning_report.read_records(args.files)
            if args.kind == "plot":
                learning_report.plot(records, args.png)
            else:
                print(learning_report.tables(records))
        else:
            train(*arguments(argv))
    except UserError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    exit_quietly(main, sys.argv[1:])
