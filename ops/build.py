"""Compiles the operator: `python -m ops.build`.

The CPU library is always built. The CUDA library is built where torch has CUDA and an nvcc is found: in CUDA_HOME, on
PATH, or in the package `nvidia-cuda-nvcc`, which needs no CUDA toolkit on the system. Both go to `ops/lib/` and work
with every torch from 2.10 on. A library that is up to date is not built again. Importing `ops` never compiles.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ops import backends
from ops.architectures import choose_architectures
from ops.compile_commands import Command, cpu_commands, cpu_variants, cuda_commands
from ops.compilers import BuildError, compiler_version, find_cxx, find_nvcc, nvcc_packages


def run_all(commands: Sequence[Command], jobs: int, verbose: bool) -> None:
    """Run commands side by side.

    Raises:
        BuildError: a command failed; the message holds its output.
    """

    def run(command: Command) -> None:
        if verbose:
            print("  " + " ".join(map(str, command)), flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            output = "\n".join(done.stdout.splitlines()[:40])
            raise BuildError(f"this command failed:\n  {' '.join(map(str, command))}\n{output}")
        if verbose and done.stdout.strip():
            print(done.stdout.rstrip(), flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, commands))


def build(name: str, commands: Sequence[Command], link: Command, record: dict, jobs: int, verbose: bool) -> None:
    """Run a library's commands and put the result in place. The old record is removed first, the new one written last.

    Raises:
        BuildError: a command failed; the library that was there stays.
    """
    started = time.perf_counter()
    run_all(commands, jobs, verbose)
    run_all([link], 1, verbose)
    target = backends.FOLDER / f"{name}.so"
    target.with_suffix(".json").unlink(missing_ok=True)
    Path(link[-1]).replace(target)
    seconds = time.perf_counter() - started
    record = {
        **record,
        "torch": torch.__version__,
        "machine": backends.this_machine(),
        "sources": backends.sources_hash(name),
        "bytes": target.stat().st_size,
        "seconds": round(seconds, 1),
    }
    target.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"  {seconds:.1f} s -> {target} ({target.stat().st_size / 1024:.0f} KiB)", flush=True)


def up_to_date(name: str, expected: dict) -> bool:
    """Whether the library in place loads, and was built from these sources, for this machine, as `expected`."""
    target = backends.FOLDER / f"{name}.so"
    record = backends.read_record(target)
    expected = {**expected, "machine": backends.this_machine(), "sources": backends.sources_hash(name)}
    return all(record.get(key) == wanted for key, wanted in expected.items()) and backends.load(name).loaded


def build_cpu(args: argparse.Namespace, folder: Path) -> None:
    """Compile the CPU library if it is not up to date."""
    cxx = find_cxx()
    record = {"compiler": compiler_version(cxx), "targets": cpu_variants()}
    if not args.force and up_to_date("cpu", record):
        print("cpu: up to date", flush=True)
        return
    commands, link = cpu_commands(cxx, folder)
    print(f"cpu: compiling with {record['compiler']}", flush=True)
    build("cpu", commands, link, record, args.jobs, args.verbose)


def build_cuda(args: argparse.Namespace, folder: Path) -> None:
    """Compile the CUDA library if it is not up to date and can be built; otherwise print why not."""
    if torch.version.cuda is None:
        print(f"cuda: skipped, torch {torch.__version__} is built without CUDA", flush=True)
        return
    nvcc = find_nvcc()
    if nvcc is None:
        packages = " ".join(f"'{package}'" for package in nvcc_packages())
        mend = f"`{sys.executable} -m pip install {packages}`" if packages else f"CUDA toolkit {torch.version.cuda}"
        message = (
            "no nvcc in CUDA_HOME, on PATH or in Python's packages; without one, CUDA tensors take the slower "
            f"reference. {mend} brings one"
        )
        if args.arch or torch.cuda.device_count():
            raise BuildError(f"cuda: {message}")
        print(f"cuda: skipped, {message}", flush=True)
        return
    if float(nvcc.version.split(".")[0]) > float(torch.version.cuda.split(".")[0]):
        print(
            f"cuda: nvcc is {nvcc.version} and torch's CUDA {torch.version.cuda}: the GPU's driver must be recent "
            "enough for the former, else set CUDA_HOME to a toolkit of torch's version",
            flush=True,
        )
    architectures = choose_architectures(args.arch, nvcc)
    if not architectures:
        print(
            "cuda: skipped, there is no GPU here; to build for another machine name its architecture, as --arch 90 "
            "(H100, H200), 80 (A100), 89 (RTX 40), a list of them, or all",
            flush=True,
        )
        return
    cxx = find_cxx()
    names = [f"sm_{arch}" for arch in architectures]
    record = {"compiler": f"nvcc {nvcc.version}", "targets": [*names, f"PTX {architectures[-1]}"]}
    if not args.force and up_to_date("cuda", record):
        print("cuda: up to date", flush=True)
        return
    commands, link = cuda_commands(cxx, nvcc, architectures, folder)
    print(f"cuda: compiling with nvcc {nvcc.version} ({nvcc.path}) for {', '.join(record['targets'])}", flush=True)
    build("cuda", commands, link, record, args.jobs, args.verbose)


def main(argv: list[str] | None = None) -> int:
    """Build what the command line asks for.

    Returns:
        The exit code: 1 if something could not be built, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m ops.build", description=__doc__)
    parser.add_argument("--backend", choices=["cpu", "cuda"], help="build only this library")
    parser.add_argument(
        "--arch",
        help="CUDA architectures, such as 80,90, or all; PTX of the last is for newer cards "
        "(default: TORCH_CUDA_ARCH_LIST, else those of this machine's cards)",
    )
    parser.add_argument("--force", action="store_true", help="also build what is up to date")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), metavar="N", help="compilers that run at once (default: all cores)"
    )
    parser.add_argument("--verbose", action="store_true", help="show the commands and the compilers' output")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f"argument --jobs: must be 1 or more, got {args.jobs}")

    failed = False
    for name, build_one in (("cpu", build_cpu), ("cuda", build_cuda)):
        if args.backend in (None, name):
            try:
                backends.FOLDER.mkdir(exist_ok=True)
                with tempfile.TemporaryDirectory(prefix="build-", dir=backends.FOLDER) as folder:
                    build_one(args, Path(folder))
            except BuildError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                failed = True
            except OSError as error:
                print(f"error: cannot write {backends.FOLDER} ({error}): make it writable", file=sys.stderr, flush=True)
                failed = True
    return int(failed)


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # end as other tools do when the reader of the output has gone
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
