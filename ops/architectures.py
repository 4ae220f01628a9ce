"""The GPUs that the CUDA library is built for."""

import os
import re
from collections.abc import Iterable

import torch

from ops.compilers import BuildError, Nvcc

ARCHITECTURES = ["75", "80", "86", "89", "90", "100", "120"]  # `--arch all`: Turing to Blackwell


def choose_architectures(asked: str | None, nvcc: Nvcc) -> list[str]:
    """The architectures to build for, such as "90".

    Args:
        asked: "all", or a list such as "80,90"; None takes TORCH_CUDA_ARCH_LIST, such as "8.0;9.0+PTX", or else this
            machine's cards.
        nvcc: the compiler. Architectures in `asked` that it does not know are an error. Those in TORCH_CUDA_ARCH_LIST,
            which container images set for every program, are left out with a message.

    Returns:
        Sorted numbers; empty if none are asked for and there is no card.

    Raises:
        BuildError: `asked` is not a list of architectures, or has one that nvcc does not make code for.
    """
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if asked is None and listed.strip():
        numbers = architecture_numbers(listed)
        known = sorted(set(numbers) & set(nvcc.supported), key=int)
        if len(known) < len(set(numbers)) or not known:
            print(f"cuda: nvcc knows {', '.join(known) or 'nothing'} of TORCH_CUDA_ARCH_LIST={listed}", flush=True)
        if known:
            return known
    if asked is None:
        count = torch.cuda.device_count()
        cards = sorted({"".join(map(str, torch.cuda.get_device_capability(i))) for i in range(count)}, key=int)
        # A card newer than nvcc runs the PTX of the newest architecture below it.
        older = [[a for a in nvcc.supported if int(a) <= int(card)] for card in cards]
        return sorted({max(archs, key=int) for archs in older if archs}, key=int)
    if asked == "all":
        return [arch for arch in ARCHITECTURES if arch in nvcc.supported]
    numbers = architecture_numbers(asked)
    unknown = [number for number in numbers if number not in nvcc.supported]
    if unknown or not numbers:
        raise BuildError(
            f"nvcc {nvcc.version} does not make code for '{', '.join(unknown) or asked}'; it does for "
            f"{', '.join(nvcc.supported)}. Give a list as --arch 80,90"
        )
    return sorted(set(numbers), key=int)


def architecture_numbers(listed: str) -> list[str]:
    """The entries of a list such as "8.0;9.0+PTX", "sm_90" or "80,90", as "80" and "90"."""
    parts = (part for part in re.split(r"[\s,;]+", listed) if part)
    return [part.replace("+PTX", "").replace("sm_", "").replace(".", "") for part in parts]


def architecture_flags(architectures: Iterable[str]) -> list[str]:
    """nvcc's options for machine code of every architecture, and for PTX of the last, which newer cards compile."""
    architectures = list(architectures)
    code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]
    return [*code, f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}"]
