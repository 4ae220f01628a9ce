"""Times the forward pass of a whole R50 detector beside transformers' implementation with the same weights.

    python scripts/bench/model.py                          # one image of 800x1333, fp32, on the CPU
    python scripts/bench/model.py --device cuda --dtype bfloat16 --batch 2

Contenders take turns in a new order every round; the figures are medians over rounds. Outputs are compared first.
This needs the test dependencies (`scripts/setup.sh --test`).
"""

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import ops
from models.load import load_detector
from scripts.bench import timing
from util.console import exit_quietly

VARIANTS = {
    "base": {},
    "refinement": {"with_box_refine": True},
    "two_stage": {"with_box_refine": True, "two_stage": True},
}


def their_detector(variant: str):
    """transformers' R50 detector with random weights. Offsets and attention weights vary, as they do after training."""
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    torch.manual_seed(0)
    settings: dict[str, Any] = {"backbone": "resnet50", "use_timm_backbone": True, "use_pretrained_backbone": False}
    settings |= {"num_labels": 91, **VARIANTS[variant]}
    model = DeformableDetrForObjectDetection(DeformableDetrConfig(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sampling_offsets" in name or "attention_weights" in name:
                parameter.add_(torch.randn_like(parameter) * 0.01)
    return model


def our_detector(theirs):
    """Our detector with the same weights, read by the importer of checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return load_detector(folder).model.eval()


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(
        prog="bench/model.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", choices=VARIANTS, default="base")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 uses autocast")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1333], metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
    if importlib.util.find_spec("transformers") is None:
        parser.error("transformers is missing: run scripts/setup.sh --test, or pip install transformers")
    if args.device not in ("cpu", "cuda") or (args.device == "cuda" and not torch.cuda.is_available()):
        parser.error(f"--device {args.device}: take cpu, or cuda where torch sees a GPU")

    device = torch.device(args.device)
    theirs = their_detector(args.variant)
    ours = our_detector(theirs).to(device)
    theirs = theirs.to(device)
    images = torch.randn(args.batch, 3, *args.size, device=device)
    padding_mask = torch.zeros(args.batch, *args.size, dtype=torch.bool, device=device)
    compiled = ops.selected_backend(device.type)

    def run_ours(backend: str):
        with timing.forced_backend(backend):
            return ours(images, padding_mask).logits[-1]

    contenders = {f"ours, {compiled}": lambda: run_ours(compiled)}
    if compiled != "reference":
        contenders["ours, reference"] = lambda: run_ours("reference")
    contenders["transformers"] = lambda: theirs(pixel_values=images, pixel_mask=(~padding_mask).long()).logits

    what = f"R50 {args.variant}, {args.batch} x {args.size[0]}x{args.size[1]}, {args.dtype}"
    print(f"{what}; {timing.machine_line(timing.machine(device))}; medians of {args.repeats} rounds\n", flush=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bfloat16"):
        outputs = {name: run().float() for name, run in contenders.items()}  # also warms up
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for name in timing.in_turns(list(contenders), args.repeats):
            times[name].append(timing.seconds(contenders[name], device))
    ours_name, exact = next(iter(contenders)), outputs["transformers"]
    rows = []
    for name, measured in times.items():
        ratio = median(measured) / median(times[ours_name])
        error = float((outputs[name] - exact).abs().max())
        rows.append([name, f"{median(measured):.3f}", f"{ratio:.2f}", f"{error:.1e}"])
    print(timing.markdown_table(["", "seconds", "of ours", "largest deviation of logits"], rows))
    return 0


if __name__ == "__main__":
    exit_quietly(main, sys.argv[1:])
