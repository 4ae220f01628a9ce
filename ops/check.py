"""Checks that the operator works on this machine: `python -m ops.check`.

Every backend that can run here is compared with the reference in float64, forward and backward, in every dtype. The
exit code is 0 if a compiled backend works on every device that there is, else 1.
"""

import argparse
import signal
import sys

import torch

from ops import backends, functional

# The rounding error of outputs near 1; gradients are sums of some hundred of them.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
SHAPES, POINTS = [(19, 23), (10, 12), (5, 6)], [4, 4, 2]


def example(dtype: torch.dtype, device: str, channels: int = 32, batch: int = 2, queries: int = 50, heads: int = 4):
    """Random arguments of `ms_deform_attn`. Some locations lie outside the maps, one far away; one is not a number."""
    generator = torch.Generator().manual_seed(0)
    tokens, points = sum(h * w for h, w in SHAPES), sum(POINTS)
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    value = torch.randn(batch, tokens, heads, channels, generator=generator).to(device, dtype)
    locations = torch.rand(batch, queries, heads, points, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    locations[0, 0, 0, 0], locations[0, 0, 0, 1] = 1e30, float("nan")
    weights = torch.rand(batch, queries, heads, points, generator=generator, dtype=torch.float64).softmax(-1)
    return value, SHAPES, locations.to(device, compute), weights.to(device, compute), POINTS


def results(arguments, backend: str) -> list[torch.Tensor]:
    """The output, and the gradients of value, locations and weights."""
    value, shapes, locations, weights, points = arguments
    wanted = [t.detach().requires_grad_() for t in (value, locations, weights)]
    out = functional.ms_deform_attn(wanted[0], shapes, wanted[1], wanted[2], points, backend=backend)
    grad = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, wanted, grad)]


def largest_error(backend: str, dtype: torch.dtype, device: str) -> float:
    """The largest deviation from the reference in float64, relative to the largest entry of each result."""
    arguments = example(dtype, device)
    exact = results([a.cpu().double() if isinstance(a, torch.Tensor) else a for a in arguments], "reference")
    return max(
        float((ours.cpu().double() - theirs).abs().max() / theirs.abs().max())
        for ours, theirs in zip(results(arguments, backend), exact)
    )


def check(name: str, device: str) -> bool:
    """Check one backend, print the results, and return whether it is good."""
    good = True
    for dtype, tolerance in TOLERANCES.items():
        if dtype is torch.float64 and (device == "mps" or (name, device) == ("reference", "cpu")):
            continue  # MPS has no float64, and all others are compared with the reference on the CPU
        try:
            error = largest_error(name, dtype, device)
        except (RuntimeError, TypeError) as failure:
            print(f"  {str(dtype)[6:]:9} FAILED: {str(failure).splitlines()[0]}")
            good = False
            continue
        fine = error <= tolerance
        good &= fine
        print(f"  {str(dtype)[6:]:9} {'ok    ' if fine else 'WRONG '} largest relative error {error:.1e}")
    return good


def main(argv: list[str] | None = None) -> int:
    """Check every backend and print the results; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ops.check", description=__doc__)
    parser.parse_args(argv)
    print(f"torch {torch.__version__} on {backends.this_machine()}")
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        print(f"{torch.cuda.get_device_name()}, sm_{major}{minor}, CUDA {torch.version.cuda}")
    good = True
    for name in ("cpu", "cuda"):
        compiled = backends.load(name)
        print(f"{name}: {compiled.detail}" + (f", for {', '.join(compiled.targets)}" if compiled.loaded else ""))
        if compiled.loaded and (name == "cpu" or torch.cuda.is_available()):
            good &= check(name, name)
        elif name == "cpu" or torch.cuda.is_available():
            good = False
        else:
            print("  not checked: no GPU here")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    for device in sorted({"cpu", accelerator.type if accelerator else "cpu"}):
        print(f"reference: PyTorch on {device}")
        good &= check("reference", device)
    print("the operator is in order" if good else "the operator is NOT in order, see above")
    return int(not good)


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # end as other tools do when the reader of the output has gone
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
