"""Times one training step part by part, and whole steps side by side: backends, precisions, compiled, written naively.

    python scripts/bench_train.py                                     # configs/base.yaml, two images of 480x640, CPU
    python scripts/bench_train.py --naive --repeats 7 --json train.json
    python scripts/bench_train.py --device cuda --batch 8 --precision fp32 bf16 fp16 --compile --naive

What runs is `engine.step.train_one_epoch` with the preset's model (random backbone), losses and optimizer, on pictures
of noise with 7 objects each. Contenders take turns, in a fresh order every round: a busy machine hits all alike.
Figures are medians over rounds. On CUDA the parts are timed by CUDA's events.

--naive adds the same training as it is often written: `scripts/naive_step.py`, with `grid_sample`. That its losses are
ours is checked first; if they are not, the exit code is 1. It reads every loss once to log it; class error, cardinality
and unscaled copies, which the original reads too, are left out.

With feature mimicking (-- --model.backbone.dcn v2 --loss.mimic_weight 0.1) its branch and the crops' way through the
backbone are a part of their own.

Peak memory is that of tensors within a step: weights, gradients, moments, activations. Host syncs: `util/syncs.py`.
"""

import argparse
import copy
import json
import math
import os
import platform
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from timm.utils import ModelEmaV3

sys.path.insert(0, str(Path(__file__).parents[1]))

from datasets.dataset import CocoDetection
from datasets.device import ToDevice
from datasets.loader import Batch, collate, train_loader
from datasets.splits import build_dataset
from datasets.transforms import eval_transform
from engine.optim import adamw
from engine.state import TrainingState
from engine.step import train_one_epoch
from models.detector import DeformableDETR
from models.from_config import build_criterion, build_mimic, build_model
from models.mimic import WithMimicking
from ops import selected_backend
from scripts import naive_step
from scripts.bench_model import forced_backend
from util import cli
from util.config import Config
from util.devices import pick_device
from util.distributed import ALONE
from util.errors import UserError
from util.profiling import is_out_of_memory, measure_peak, seconds
from util.signals import StopRequest
from util.syncs import SyncCount, count_syncs

CLASSES, OBJECTS, ENDLESS = 91, 7, 10**9
PARTS = ("transfer, normalise", "backbone", "neck", "encoder", "queries", "decoder, heads", "masks, positions")
PARTS += (
    "mimicking",
    "matching",
    "losses",
    "backward to the maps",
    "backward of the backbone",
    "clip, check",
    "optimizer",
    "EMA",
)


class Clock:
    """Notes when what it wraps begins and ends, on the device's clock."""

    def __init__(self, device: torch.device):
        self.on_cuda = device.type == "cuda"
        self.spans: dict[str, list[tuple]] = defaultdict(list)

    def now(self):
        """A moment: an event in CUDA's queue, or seconds."""
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def timed(self, call: Callable, name: str, then: Callable | None = None) -> Callable:
        """`call`, noted under a name; `then` is handed what it returns."""

        def run(*args, **kwargs):
            begin = self.now()
            out = call(*args, **kwargs)
            self.spans[name].append((begin, self.now()))
            if then is not None:
                then(out)
            return out

        return run

    def wrap(self, owner: object, method: str, name: str, then: Callable | None = None) -> None:
        """Replace a method by its timed self; of a compiled module, the compiled one."""
        if method == "forward" and owner._compiled_call_impl is not None:
            method = "_compiled_call_impl"
        setattr(owner, method, self.timed(getattr(owner, method), name, then))

    def take(self) -> dict[str, float]:
        """Milliseconds of the parts of the step that has just run, in the order of `PARTS`; forgets it."""
        if self.on_cuda:
            torch.cuda.synchronize()
        spans, self.spans = self.spans, defaultdict(list)
        between = (lambda a, b: a.elapsed_time(b)) if self.on_cuda else (lambda a, b: 1e3 * (b - a))
        ms = {name: sum(between(*span) for span in found) for name, found in spans.items()}
        computed, unscaled = spans["criterion"][0][1], spans["unscale"][0][0]
        reached = spans["maps"][0][0] if "maps" in spans else unscaled
        if "mimicking" in ms:
            ms["backbone"] = between(*spans["backbone"][0])  # the second time it sees the crops
        ms["masks, positions"] = ms["forward"] - sum(ms[name] for name in (*PARTS[1:6], "mimicking") if name in ms)
        ms["losses"] = ms["criterion"] - ms["matching"]
        ms["backward to the maps"] = between(computed, reached)
        ms["backward of the backbone"] = between(reached, unscaled)
        ms["clip, check"] = between(unscaled, spans["optimizer"][0][0])
        return {name: ms[name] for name in PARTS if name in ms}


@dataclass
class Contender:
    """A way to run a training step.

    Attributes:
        name: in tables.
        run: one step on a batch of the host.
        state, clock: model, optimizer and the time of their parts.
        step_s, parts: seconds of a step and ms of its parts, one entry a round.
        loss, peak_bytes, syncs: of one step; NaN or None where not measured.
        failure: why it left, or "".
    """

    name: str
    run: Callable[[Batch], None]
    state: TrainingState
    clock: Clock
    step_s: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    loss: float = math.nan
    peak_bytes: int | None = None
    syncs: SyncCount | None = None
    failure: str = ""


def make_contender(kind: str, precision: str, backend: str, config: Config, model: DeformableDETR, device) -> Contender:
    """Set up a way to train a copy of the model: `ours`, `ours, compiled` or `naive`."""
    cfg, model, naive = config.train, copy.deepcopy(model).to(device), kind == "naive"
    model.transformer.checkpointing = cfg.checkpoint_activations and not naive
    branch = build_mimic(config.loss, config.model, model)
    trained = WithMimicking(model, branch.to(device)) if branch else model
    optimizer = adamw(model, cfg.lr, cfg.lr_backbone, cfg.lr_offset_factor, cfg.weight_decay, branch)
    if naive:
        naive_step.make_ordinary(model)
        groups = [{k: g[k] for k in ("params", "lr", "weight_decay")} for g in optimizer.param_groups]
        optimizer = torch.optim.AdamW(groups, foreach=False, fused=False)
    if kind.endswith("compiled"):
        model.compile_parts()
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    ema = ModelEmaV3(model, cfg.ema_decay, use_warmup=True) if cfg.ema_decay else None
    state, clock = TrainingState(model, optimizer, scaler, device, ema, ENDLESS, branch=branch), Clock(device)
    if branch:
        clock.wrap(branch, "forward", "mimicking")
    for owner, part in ((trained, "forward"), (model.neck, "neck"), (model.queries, "queries")):
        clock.wrap(owner, "forward", part)
    clock.wrap(model.backbone, "forward", "backbone", lambda maps: note_gradients(clock, maps))
    methods = [(model.transformer, "encode", "encoder"), (model.transformer, "decode", "decoder, heads")]
    methods += [(scaler, "unscale_", "unscale"), (scaler, "step", "optimizer")]
    for owner, method, part in [*methods, (ema, "update", "EMA")] if ema is not None else methods:
        clock.wrap(owner, method, part)
    prepare, criterion = clock.timed(ToDevice(device), "transfer, normalise"), build_criterion(config.loss)
    criterion.matcher = clock.timed(criterion.matcher, "matching")
    losses_of, match = clock.timed(criterion, "criterion"), clock.timed(naive_step.match, "matching")
    naive_losses = clock.timed(lambda p, t: naive_step.losses_of(p, t, config.loss, match), "criterion")
    rest = (lambda step: None, ALONE, StopRequest(), cfg.clip_norm, precision)

    def run(batch: Batch) -> None:
        with forced_backend(backend):
            if naive:
                naive_step.step(batch, prepare, naive_losses, state, cfg.clip_norm)
            else:
                options = {"with_targets": branch is not None, "log_every": ENDLESS}
                train_one_epoch(trained, losses_of, [[batch]], state, prepare, *rest, **options)

    return Contender(f"{kind}, {precision}, {backend}", run, state, clock)


def note_gradients(clock: Clock, maps: list[torch.Tensor]) -> None:
    """Once the deepest map has its gradient, only the backbone's are left to compute; shallower maps get more."""
    if maps[-1].requires_grad:
        maps[-1].register_hook(clock.timed(lambda grad: None, "maps"))


@torch.no_grad()
def deviation(model: DeformableDETR, config: Config, batch: Batch) -> float:
    """How far the naive sum of losses is from ours on the same predictions, as a part of it."""
    predictions = model(batch.images, batch.padding_mask)
    ours = sum(build_criterion(config.loss)(predictions, batch.targets).values())
    return float((sum(naive_step.losses_of(predictions, batch.targets, config.loss).values()) - ours).abs() / ours)


def make_pictures(folder: Path, size: tuple[int, int], count: int) -> None:
    """`count` JPEGs of blurred noise, height and width `size`, with `OBJECTS` boxes each, in COCO 2017 layout."""
    rng, (height, width), annotations = np.random.default_rng(0), size, []
    (folder / "annotations").mkdir()
    (folder / "train2017").mkdir()
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / "train2017" / f"{i}.jpg", quality=90)
        for extent, place in zip(rng.uniform(0.05, 0.5, (OBJECTS, 2)), rng.uniform(0, 1, (OBJECTS, 2))):
            box = np.concatenate([place * (1 - extent), extent]) * [width, height, width, height]
            ids = {"id": len(annotations), "image_id": i, "category_id": int(rng.integers(CLASSES))}
            annotations.append({**ids, "bbox": box.tolist()})
    images = [{"id": i, "file_name": f"{i}.jpg", "height": height, "width": width} for i in range(count)]
    categories = [{"id": i, "name": f"class {i}"} for i in range(CLASSES)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content))


def make_data(config: Config, size: tuple[int, int], batch: int, repeats: int) -> tuple[Batch, float]:
    """A batch at exactly this size, and ms that one process takes to load one with the preset's augmentation."""
    with tempfile.TemporaryDirectory() as folder:
        make_pictures(Path(folder), size, batch)
        config.data.root, taken = folder, []
        dataset = build_dataset(config.data, "train")
        with closing(train_loader(dataset, batch, None, workers=0, seed=0, pin_memory=False)) as loader:
            for epoch in range(repeats + 1):
                loader.batch_sampler.set_epoch(epoch)
                taken.append(1e3 * seconds(lambda: next(iter(loader)), torch.device("cpu")))
        plain = CocoDetection.from_annotations(
            dataset.image_folder, dataset.annotations, eval_transform(min(size), max(size))
        )
        return collate([plain[i] for i in range(batch)]), median(taken[1:])


def measure(contenders: list[Contender], batch: Batch, repeats: int) -> None:
    """Fill in every figure: first steps, then turns. Who runs out of memory leaves."""
    order = random.Random(0)
    for turn in range(-1, repeats):
        for c in order.sample(contenders, len(contenders)) if turn >= 0 else contenders:
            try:
                if turn < 0:
                    print(f"  {c.name}: first steps", file=sys.stderr, flush=True)
                    first_steps(c, batch)
                elif not c.failure:
                    c.step_s.append(seconds(lambda c=c: c.run(batch), c.state.device))
                    for part, ms in c.clock.take().items():
                        c.parts[part].append(ms)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                c.failure = "out of memory"


def first_steps(c: Contender, batch: Batch) -> None:
    """One step for the loss, one for the memory, one for the syncs, which compiled code hides from a CPU's stand-in."""
    device, optimizer, ema = c.state.device, c.state.optimizer, c.state.ema
    torch.manual_seed(0)  # of dropout: the losses of all differ by rounding, of the naive one by torch's own draws
    c.run(batch)
    c.loss = c.state.means.take_total(ALONE)["loss"]
    kept = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    resident = [*c.state.model.state_dict().values(), *kept, *(ema.module.state_dict().values() if ema else [])]
    c.peak_bytes = measure_peak(lambda: c.run(batch), device, resident)
    if device.type == "cuda" or "compiled" not in c.name:
        # AdamW that is not fused counts its steps on the host, also where the parameters are on a GPU.
        host = [] if optimizer.defaults["fused"] else [t for t in kept if t.dim() == 0]
        with count_syncs(device, host) as c.syncs:
            c.run(batch)
    c.clock.take()


def report(contenders: list[Contender], batch: int) -> str:
    """Tables in Markdown: the parts of a step, contenders beside the first of them, and where that one waits."""
    done = [c for c in contenders if c.step_s]
    lines = ["| part, ms (share) | " + " | ".join(c.name for c in done) + " |", "|---|" + "--:|" * len(done)]
    for part in [name for name in PARTS if any(name in c.parts for c in done)]:
        cells = [(median(c.parts[part]), 1e-3 * median(c.parts[part]) / median(c.step_s)) for c in done]
        lines.append(f"| {part} | " + " | ".join(f"{ms:.1f} ({share:.1%})" for ms, share in cells) + " |")
    lines.append("| **step** | " + " | ".join(f"**{1e3 * median(c.step_s):.1f}**" for c in done) + " |")
    lines += ["", "| contender | ms | of the first | images/s | peak MiB | host syncs | loss |", "|---|" + "--:|" * 6]
    first = median(contenders[0].step_s or [math.nan])
    for c in contenders:
        of_step = median(c.step_s or [math.nan])
        cells = [c.failure or f"{1e3 * of_step:.0f}", f"{of_step / first:.2f}", f"{batch / of_step:.2f}"]
        cells += [f"{c.peak_bytes / 2**20:.0f}" if c.peak_bytes else "-", c.syncs.total if c.syncs else "-"]
        lines.append(f"| {c.name} | {' | '.join(map(str, cells))} | {c.loss:.5f} |")
    return "\n".join(
        [*lines, "", f"Host syncs of '{contenders[0].name}':", "", str(contenders[0].syncs or "not counted")]
    )


def arguments(argv: list[str] | None) -> tuple[argparse.Namespace, Config, torch.device]:
    """Options, the preset with them applied, and the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(Path(__file__).parents[1] / "configs" / "base.yaml"), metavar="PRESET")
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=2, help="images a step (default: 2)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--backend", nargs="+", help="of the operator (default: the device's own, and reference)")
    parser.add_argument("--compile", action="store_true", help="also each precision compiled")
    parser.add_argument("--checkpoint-activations", action="store_true", help="ours compute layers again for gradients")
    parser.add_argument("--ema", action="store_true", help="with a moving average of the weights")
    parser.add_argument("--naive", action="store_true", help="also the step as it is often written")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("overrides", nargs="*", help="of the preset, after a lone --: -- --model.num_levels 1")
    args = parser.parse_args(argv)
    if min(*args.size, args.batch, args.repeats) < 1:
        parser.error("--size, --batch and --repeats must be at least 1")
    try:
        device = pick_device(args.device)
        config = cli.parse(Config, ["--config", args.config, *args.overrides], "bench_train.py")
        args.backend = args.backend or list(dict.fromkeys([selected_backend(device.type), "reference"]))
        for name in args.backend:
            selected_backend(device.type, name)
        if "fp16" in args.precision and device.type != "cuda":
            raise UserError("--precision fp16 is for CUDA")
    except (UserError, RuntimeError) as error:
        parser.error(str(error))
    if args.naive and config.loss.mimic_weight:
        parser.error("--naive has no feature mimicking; leave out loss.mimic_weight")
    config.train.ema_decay = (config.train.ema_decay or 0.9997) if args.ema else 0.0
    config.train.checkpoint_activations = args.checkpoint_activations
    return args, config, device


def main(argv: list[str] | None = None) -> int:
    """Measure and print tables in Markdown."""
    args, config, device = arguments(argv)
    torch.manual_seed(0)
    model = build_model(config.model, CLASSES, config.loss.auxiliary, "none")
    load = os.getloadavg()[0]
    batch, data_ms = make_data(config, tuple(args.size), args.batch, args.repeats)
    if args.naive:
        error = deviation(model, config, ToDevice(torch.device("cpu"))(batch))
        print(f"naive losses of the same predictions: {error:.1e} of ours apart\n", flush=True)
        if not error < 1e-5:
            print("bench_train.py: the naive losses are not ours", file=sys.stderr)
            return 1
    kinds = [("ours", precision, backend) for precision in args.precision for backend in args.backend]
    kinds += [("ours, compiled", p, args.backend[0]) for p in args.precision if args.compile]
    kinds += [("naive", "fp32", "reference")] if args.naive else []
    contenders = [make_contender(*kind, config, model, device) for kind in kinds]
    measure(contenders, batch.pin_memory() if device.type == "cuda" else batch, args.repeats)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    where = f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, load {load:.1f} before"
    what = f"{Path(args.config).name}, {args.batch} x {args.size[0]}x{args.size[1]}, {OBJECTS} objects each"
    print(f"{what}; {where}, {os.getloadavg()[0]:.1f} after; medians of {args.repeats} rounds\n")
    print(f"data: {data_ms:.1f} ms a batch in one process (read, augment, collate), which workers do beside the step\n")
    print(report(contenders, args.batch))
    if args.json:
        keys = ("name", "step_s", "parts", "loss", "peak_bytes", "failure")
        rows = [{k: getattr(c, k) for k in keys} | {"syncs": c.syncs and dict(c.syncs.places)} for c in contenders]
        about = {"settings": vars(args) | {"json": None}, "machine": machine, "torch": torch.__version__, "load": load}
        args.json.write_text(json.dumps({**about, "data_ms": data_ms, "contenders": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
