"""What `scripts/bench/annotations.py` measures, each in a process of its own and with the code of any checkout.

python scripts/bench/annotation_tasks.py CHECKOUT TASK ARGUMENTS...     # prints JSON
"""

import argparse
import gc
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def reading(images: str, file: str) -> dict:
    """Processor's seconds to read a file and to index its objects, and MiB: kept, and at most beside what is there."""
    from datasets.dataset import CocoDetection
    from datasets.truth import check_learnable

    before, begun = memory(), time.process_time()
    dataset = CocoDetection.from_file(images, file)
    check_learnable(dataset.annotations)
    seconds = time.process_time() - begun
    gc.collect()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "kept": memory() - before, "peak": peak - before, "objects": len(dataset.annotations)}


def loading(images: str, file: str, method: str, batches: str) -> dict:
    """Seconds to the first batch of two workers, the images/s after it, and the private MiB of a worker."""
    from datasets.dataset import CocoDetection
    from datasets.loader import train_loader
    from datasets.transforms import eval_transform

    multiprocessing.set_start_method(method)
    with suppress(ImportError):  # of checkouts that have it
        from util.workers import prepare_workers

        prepare_workers(2, "datasets.loader")
    dataset = CocoDetection.from_file(images, file, eval_transform(240, 320))
    gc.collect()
    loader = train_loader(dataset, 4, None, workers=2, seed=0, pin_memory=False)
    begun, loaded = time.perf_counter(), 0
    for _ in loader:
        if not loaded:
            first = time.perf_counter() - begun
        loaded += 1
        if loaded == int(batches):
            break
    steady = time.perf_counter() - begun - first
    workers = [worker.pid for worker in multiprocessing.active_children()]
    private = max(memory(pid, ("Private_Clean", "Private_Dirty")) for pid in workers)
    loader.close()
    return {"first": first, "rate": 4 * (loaded - 1) / steady, "private": private}


def memory(process: int | str = "self", kinds: tuple[str, ...] = ("Rss",)) -> float:
    """MiB of a process, of these kinds that Linux counts."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
    return sum(sizes[kind] for kind in kinds)


def main(argv: Sequence[str]) -> int:
    """Do one task with the code of a checkout, and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", help="folder of the code that is measured")
    parser.add_argument("task", choices=("reading", "loading"))
    parser.add_argument("arguments", nargs="*", help="of the task")
    args = parser.parse_args(argv)
    import torch

    torch.set_num_threads(1)
    print(json.dumps({"reading": reading, "loading": loading}[args.task](*args.arguments)))
    return 0


if __name__ == "__main__":
    # The code that is measured may be that of another checkout.
    measured = next((a for a in sys.argv[1:2] if Path(a).is_dir()), str(Path(__file__).parents[2]))
    sys.path.insert(0, measured)
    from util.console import exit_quietly

    exit_quietly(main, sys.argv[1:])
