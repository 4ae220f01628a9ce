"""Times the parts of a training step, and whole steps side by side: backends, precisions, compiled, naive.

    python scripts/bench/train.py                                     # configs/base.yaml, two images of 480x640, CPU
    python scripts/bench/train.py --naive --repeats 7 --json train.json
    python scripts/bench/train.py --device cuda --batch 8 --precision fp32 bf16 fp16 --compile --naive

What runs is `engine.step.train_one_epoch` with the preset's model (random backbone), losses and optimizer, on pictures
of noise with 7 objects each. Contenders take turns in a new order every round, so a busy machine slows all alike.
Figures are medians over rounds. On CUDA the clock is CUDA's events.

--naive adds the same training as it is often written: `scripts/bench/naive_step.py`, with `grid_sample`. Its losses are
first compared with ours; if they differ, the exit code is 1. It reads every loss once to log it. It leaves out class
error, cardinality and unscaled losses, which the original reads too.

With feature mimicking (-- --model.backbone.dcn v2 --loss.mimic_weight 0.1) the branch and the backbone's pass over the
crops are one more part.

Peak memory is that of tensors within a step: weights, gradients, moments, activations. `util/syncs.py` counts host
syncs.
"""

import argparse
import math
import sys
from functools import partial
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from datasets.batch import Batch
from datasets.device import ToDevice
from models.from_config import build_model
from ops import selected_backend
from scripts.bench import timing
from scripts.bench.train_clock import PARTS
from scripts.bench.train_contenders import Contender, deviation, make_contender
from scripts.bench.train_data import CLASSES, OBJECTS, make_data
from util import cli
from util.config import Config
from util.console import exit_quietly
from util.devices import pick_device
from util.distributed import ALONE
from util.errors import UserError
from util.measuring import MIB, measure_peak
from util.syncs import count_syncs

PROG = "bench/train.py"
OUT_OF_MEMORY = "out of memory"


def measure(contenders: list[Contender], batch: Batch, repeats: int) -> None:
    """Fill in every figure: first steps, then turns. A contender that runs out of memory stops."""
    for c in contenders:
        timing.progress(f"  {c.name}: first steps")
        if timing.within_memory(partial(first_steps, c, batch)) is None:
            c.failure = OUT_OF_MEMORY
    for c in timing.in_turns(contenders, repeats):
        if c.failure:
            continue
        taken = timing.within_memory(partial(timing.seconds, partial(c.run, batch), c.state.device))
        if taken is None:
            c.failure = OUT_OF_MEMORY
            continue
        c.step_s.append(taken)
        for part, ms in c.clock.take().items():
            c.parts[part].append(ms)


def first_steps(c: Contender, batch: Batch) -> bool:
    """Run one step for the loss, one for the memory and one for the syncs; returns True.

    On a CPU, where syncs are counted by a substitute, those of compiled code cannot be seen.
    """
    device, optimizer, ema = c.state.device, c.state.optimizer, c.state.ema
    torch.manual_seed(0)  # for dropout; losses differ by rounding, and the naive one also by torch's own draws
    c.run(batch)
    c.loss = c.state.means.take_total(ALONE)["loss"]
    kept = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    resident = [*c.state.model.state_dict().values(), *kept, *(ema.module.state_dict().values() if ema else [])]
    c.peak_bytes = measure_peak(lambda: c.run(batch), device, resident)
    if device.type == "cuda" or "compiled" not in c.name:
        # AdamW counts its steps on the host unless it is fused, even if the parameters are on a GPU.
        host = [] if optimizer.defaults["fused"] else [t for t in kept if t.dim() == 0]
        with count_syncs(device, host) as c.syncs:
            c.run(batch)
    c.clock.take()
    return True


def report(contenders: list[Contender], batch: int) -> str:
    """Tables in Markdown: the parts of a step, all contenders beside the first, and the first one's host syncs."""
    done = [c for c in contenders if c.step_s]
    parts = []
    for part in [name for name in PARTS if any(name in c.parts for c in done)]:
        cells = [(median(c.parts[part]), 1e-3 * median(c.parts[part]) / median(c.step_s)) for c in done]
        parts.append([part, *(f"{ms:.1f} ({share:.1%})" for ms, share in cells)])
    parts.append(["**step**", *(f"**{1e3 * median(c.step_s):.1f}**" for c in done)])
    steps, first = [], median(contenders[0].step_s or [math.nan])
    for c in contenders:
        of_step = median(c.step_s or [math.nan])
        row = [c.name, c.failure or f"{1e3 * of_step:.0f}", f"{of_step / first:.2f}", f"{batch / of_step:.2f}"]
        row += [f"{c.peak_bytes / MIB:.0f}" if c.peak_bytes else "-", str(c.syncs.total) if c.syncs else "-"]
        steps.append([*row, f"{c.loss:.5f}"])
    header = ["contender", "ms", "of the first", "images/s", "peak MiB", "host syncs", "loss"]
    tables = [timing.markdown_table(["part, ms (share)", *(c.name for c in done)], parts)]
    tables += [timing.markdown_table(header, steps), f"Host syncs of '{contenders[0].name}':"]
    return "\n\n".join([*tables, str(contenders[0].syncs or "not counted")])


def arguments(argv: list[str] | None) -> tuple[argparse.Namespace, Config, torch.device]:
    """Read the options, the preset with its overrides, and the device from the command line."""
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=str(Path(__file__).parents[2] / "configs" / "base.yaml"), metavar="PRESET")
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=2, help="images in a step (default: 2)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16", "fp16"])
    parser.add_argument(
        "--backend", nargs="+", help="the operator's backends (default: the device's own, and reference)"
    )
    parser.add_argument("--compile", action="store_true", help="add a compiled step for each precision")
    parser.add_argument(
        "--checkpoint-activations", action="store_true", help="our steps compute layers again for gradients"
    )
    parser.add_argument("--ema", action="store_true", help="with a moving average of the weights")
    parser.add_argument("--naive", action="store_true", help="add the step as it is often written")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument(
        "overrides", nargs="*", help="options of the preset after a lone --, such as -- --model.num_levels 1"
    )
    args = parser.parse_args(argv)
    if min(*args.size, args.batch, args.repeats) < 1:
        parser.error("--size, --batch and --repeats must be at least 1")
    try:
        device = pick_device(args.device)
        config = cli.parse(Config, ["--config", args.config, *args.overrides], PROG)
        args.backend = args.backend or list(dict.fromkeys([selected_backend(device.type), "reference"]))
        for name in args.backend:
            selected_backend(device.type, name)
        if "fp16" in args.precision and device.type != "cuda":
            raise UserError("--precision fp16 is for CUDA")
    except (UserError, RuntimeError) as error:
        parser.error(str(error))
    if args.naive and config.loss.mimic_weight:
        parser.error("--naive has no feature mimicking; leave out loss.mimic_weight")
    if args.naive and config.loss.classification != "focal":
        parser.error("--naive has the focal loss alone; leave out loss.classification")
    if config.loss.federated:
        parser.error("nobody looked for classes in made-up images; leave out loss.federated")
    config.train.ema_decay = (config.train.ema_decay or 0.9997) if args.ema else 0.0
    config.train.checkpoint_activations = args.checkpoint_activations
    return args, config, device


def main(argv: list[str] | None = None) -> int:
    """Measure and print tables in Markdown."""
    args, config, device = arguments(argv)
    torch.manual_seed(0)
    model = build_model(config.model, CLASSES, config.loss, "none")
    about = timing.machine(device)
    batch, data_ms = make_data(config, tuple(args.size), args.batch, args.repeats)
    if args.naive:
        prepare = ToDevice(torch.device("cpu"), model.backbone.mean, model.backbone.std)
        error = deviation(model, config, prepare(batch))
        print(f"naive losses of the same predictions: {error:.1e} of ours apart\n", flush=True)
        if not error < 1e-5:
            print(f"{PROG}: the naive losses are not ours", file=sys.stderr)
            return 1
    kinds = [("ours", precision, backend) for precision in args.precision for backend in args.backend]
    kinds += [("ours, compiled", p, args.backend[0]) for p in args.precision if args.compile]
    kinds += [("naive", "fp32", "reference")] if args.naive else []
    contenders = [make_contender(*kind, config, model, device) for kind in kinds]
    measure(contenders, batch.pin_memory() if device.type == "cuda" else batch, args.repeats)
    about["load_after"] = timing.load()
    what = f"{Path(args.config).name}, {args.batch} x {args.size[0]}x{args.size[1]}, {OBJECTS} objects each"
    print(f"{what}; {timing.machine_line(about)}; medians of {args.repeats} rounds\n")
    print(f"data: {data_ms:.1f} ms a batch in one process (read, augment, collate), which workers do beside the step\n")
    print(report(contenders, args.batch))
    if args.json:
        keys = ("name", "step_s", "parts", "loss", "peak_bytes", "failure")
        rows = [{k: getattr(c, k) for k in keys} | {"syncs": c.syncs and dict(c.syncs.places)} for c in contenders]
        settings = vars(args) | {"json": None}
        found = {"settings": settings, "machine": about, "data_ms": data_ms, "contenders": rows}
        timing.write_json(args.json, found)
    return 0


if __name__ == "__main__":
    exit_quietly(main, sys.argv[1:])
