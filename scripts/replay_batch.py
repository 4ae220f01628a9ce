"""Computes a step again that was not finite, and shows where NaN or infinity first appeared.

    python scripts/replay_batch.py runs/base/nonfinite_step1234_rank0.pth
    python scripts/replay_batch.py runs/base/nonfinite_step1234_rank0.pth --precision fp32

Training writes such a file when losses or gradients hold NaN or infinity. It has the augmented images of one process,
the weights before the step, and the random state. The exit code is 0 if the step is not finite again, and 1 if it is
finite this time. Trained batch norms take the statistics of this process alone, not those of all processes.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from datasets.batch import Batch
from datasets.device import ToDevice
from engine.random_state import set_random_state
from models.from_config import as_trained, build_criterion, build_model
from util.checkpoint import read_checkpoint
from util.config import LossConfig, ModelConfig
from util.console import exit_quietly
from util.devices import AUTOCAST, autocast, pick_device
from util.errors import NonFinite, UserError
from util.objects import Objects
from util.options import from_dict
from util.weights import load_weights


def watch(model: torch.nn.Module) -> list[str]:
    """Names of the modules whose output is not finite, in running order; a run of the model fills the list."""
    broken: list[str] = []

    def look(name: str):
        def hook(module, inputs, output):
            parts = output if isinstance(output, tuple | list) else [output]
            tensors = [t for t in parts if torch.is_tensor(t) and t.is_floating_point()]
            if not all(torch.isfinite(t).all() for t in tensors):
                broken.append(f"{name} ({type(module).__name__})")

        return hook

    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(look(name))
    return broken


def main(argv: list[str] | None = None) -> int:
    """Replay one file, and print the losses of each micro-batch and what was not finite; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="nonfinite_*.pth in a run's folder")
    parser.add_argument(
        "--precision", choices=AUTOCAST, help="another precision than the run's, to see whether that is the cause"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    options = parser.parse_args(argv)
    try:
        return replay(options.file, options.precision, pick_device(options.device))
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2


def replay(file: str, precision: str | None, device: torch.device) -> int:
    """Compute the step of a file; returns the exit code."""
    raw = read_checkpoint(file)
    if "culprit" not in raw.content:
        raise UserError(f"'{file}' is no step that was not finite; training writes nonfinite_*.pth for one")
    config, culprit = raw.content["config"], raw.content["culprit"]
    precision = precision or config["train"]["precision"]
    dtype = torch.float64 if precision == "fp64" else torch.float32
    num_classes = 1 + max(c["label"] for c in raw.content["categories"])
    loss_config = from_dict(LossConfig, config["loss"])
    model_config = from_dict(ModelConfig, config["model"])
    detector = build_model(model_config, num_classes, loss_config, "none")
    load_weights(detector, raw.content["model"], file)
    model, branch = as_trained(loss_config, model_config, detector)
    if branch:
        load_weights(branch, raw.content["branch"], file)
    model.to(device, dtype).train()
    criterion, prepare = (
        build_criterion(loss_config),
        ToDevice(device, detector.backbone.mean, detector.backbone.std, dtype),
    )
    scale = raw.content["scaler"].get("scale", 1.0) if precision == "fp16" else 1.0
    size = tuple(culprit["size"]) if config["train"]["padding"] == "batch" else None
    print(f"step {culprit['step']}, {precision} on {device}: {culprit['reason']}\n")

    set_random_state(culprit["random_state"], device)
    broken, finite = watch(model), True
    for i, kept in enumerate(culprit["micro_batches"]):
        objects = [Objects(**target) for target in kept["targets"]]
        batch = Batch(kept["images"], kept["padding_mask"], objects, [])
        batch = prepare(batch, size)
        print(f"micro-batch {i}, images {', '.join(str(o.image_id) for o in objects)}")
        try:
            with autocast(device, precision):
                predictions = model(batch.images, batch.padding_mask, batch.objects)
            losses = criterion(predictions, batch.objects, culprit["num_boxes"])
        except NonFinite as error:
            print(f"  {error}")
            finite = False
            break
        for name, loss in losses.items():
            print(f"  {name:<20} {loss.item():.6g}")
        finite = finite and all(torch.isfinite(loss).item() for loss in losses.values())
        (sum(losses.values()) * scale * culprit["processes"]).backward()
    if broken:
        print(f"\nthe first output that is not finite: {broken[0]}, of {len(broken)}")
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    wrong = [n for n, gradient in gradients.items() if not torch.isfinite(gradient).all()]
    weights = [n for n, t in model.state_dict().items() if not torch.isfinite(t).all()]
    for what, names in (("gradients", wrong), ("weights before the step", weights)):
        if names:
            print(f"\n{what} that are not finite: {len(names)}, the first {names[0]}")
    finite = finite and not wrong
    print("\nthe step is finite this time" if finite else "\nnot finite again")
    return 1 if finite else 0


if __name__ == "__main__":
    exit_quietly(main, sys.argv[1:])
