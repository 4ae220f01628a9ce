"""What `scripts/bench/scale.py` measures, each in a process of its own and with the code of any checkout.

python scripts/bench/scale_tasks.py CHECKOUT TASK ARGUMENTS...     # prints JSON

Seconds are the processor's, of all threads, unless they are called `clock`; memory is in MiB.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import ModuleType

HERE = Path(__file__).parent
TRAIN, VAL = 256, 64  # generated shapes


def scoring(images: str, objects: str, found: str, classes: str, analysed: str = "") -> dict:
    """Score made-up detections as `eval` does, with the analysis of errors or without."""
    from analysis.errors.analyse import analyse
    from datasets.coco import from_coco
    from datasets.evaluation import evaluate_detections

    try:
        from engine.score import Evaluation
    except ImportError:  # of older checkouts
        from engine.evaluate import Evaluation

    lists = of_this_checkout("scoring")
    truth, results = lists.make_lists(*map(int, (images, objects, found, classes)))
    annotations = from_coco(truth, "truth.json")
    clock, begun = time.perf_counter(), time.process_time()
    scores = evaluate_detections(annotations, results)
    if analysed:
        with TemporaryDirectory() as folder:
            analyse(Evaluation(scores, results, annotations, None, {}), Path(folder))
    seconds = {"clock": time.perf_counter() - clock, "seconds": time.process_time() - begun}
    return seconds | {"AP": scores.figures["AP"], "peak": lists.peak()}


def crowd(images: str, queries: str, objects: str, tokens: str) -> dict:
    """Match six layers, and make losses and gradients of what was matched; the median of three rounds."""
    import torch

    from models.from_config import build_criterion
    from util.config import LossConfig

    sizes = int(images), int(queries), int(objects), 6, int(tokens), 91
    crowds = of_this_checkout("crowds")
    predictions, truth = crowds.make_batch(*sizes)
    groups, criterion = predictions.groups, build_criterion(LossConfig())
    truths = [truth if group.objects is None else group.objects for group in groups]
    matcher, cpu = criterion.matcher, torch.device("cpu")
    matches = matcher(groups, truths)

    def lose() -> None:
        criterion.matcher = lambda *_: matches
        for group in groups:
            group.logits.grad = group.boxes.grad = None
        sum(criterion(predictions, truth).values(), torch.zeros(())).backward()

    def match() -> None:
        matcher(groups, truths)

    return {
        "matching": median(crowds.spent(match) for _ in range(3)),
        "losses": median(crowds.spent(lose) for _ in range(3)),
        "matching peak": memory_of(match, cpu, []) / 2**20,
        "losses peak": memory_of(lose, cpu, []) / 2**20,
    }


def saving(preset: str) -> dict:
    """Clock seconds for which training stands still in an epoch that improves, and MiB that are written."""
    from engine.run import Run
    from scripts.bench.timing import seconds
    from scripts.bench.train_contenders import make_contender
    from scripts.bench.train_data import make_data
    from util.distributed import ALONE

    config, model, device = detector(preset)
    state = make_contender("ours", "fp32", "cpu", config, model, device)
    state.run(make_data(config, (96, 128), 1, 1)[0])  # which gives the optimizer its moments
    with TemporaryDirectory() as folder:
        run = Run(Path(folder), state.state, config, "", (), ALONE, resumed=False)
        finish = getattr(run, "wait", lambda: None)
        still, written = [], []
        for _ in range(3):
            before = bytes_written()
            first = seconds(run.save, device)
            finish()  # as the evaluation gives it the time
            still.append(first + seconds(lambda: run.save(best=True, instead=True), device))
            finish()
            written.append(bytes_written() - before)
    return {"clock": median(still), "written": median(written) / 2**20}


def forward(preset: str, height: str, width: str) -> dict:
    """A forward pass of the preset's detector as `eval` and `predict` make it, and the peak of its tensors."""
    import torch

    _, model, device = detector(preset)
    model.eval()
    try:
        from models.folded_norms import fold_for_inference

        fold_for_inference(model)
    except ImportError:  # of older checkouts
        pass
    images, mask = torch.rand(1, 3, int(height), int(width)), torch.zeros(1, int(height), int(width), dtype=torch.bool)
    with torch.inference_mode():
        model(images, mask)
        used = memory_of(lambda: model(images, mask), device, [*model.parameters(), *model.buffers()]) / 2**20
        return timed(lambda: model(images, mask)) | {"peak": used}


def step(preset: str, height: str, width: str) -> dict:
    """A training step of one image with seven objects, and the peak of its tensors."""
    from scripts.bench.train_contenders import make_contender
    from scripts.bench.train_data import make_data

    config, model, device = detector(preset)
    contender = make_contender("ours", "fp32", "cpu", config, model, device)
    batch = make_data(config, (int(height), int(width)), 1, 1)[0]
    contender.run(batch)
    tensors = [*contender.state.model.parameters(), *contender.state.model.buffers()]
    tensors += [t for s in contender.state.optimizer.state.values() for t in s.values() if hasattr(t, "device")]
    used = memory_of(lambda: contender.run(batch), device, tensors) / 2**20
    return timed(lambda: contender.run(batch)) | {"peak": used}


def operator(channels: str) -> dict:
    """A call of the operator by every pixel of a picture of 800x1066, points near it, by its number of channels."""
    import torch

    from ops import ms_deform_attn

    torch.manual_seed(0)
    maps, heads, points, width = ((100, 134), (50, 67), (25, 34), (13, 17)), 8, 4, int(channels)
    tokens = sum(h * w for h, w in maps)
    grids = [torch.meshgrid(torch.arange(h) / h, torch.arange(w) / w, indexing="ij") for h, w in maps]
    centres = torch.cat([torch.stack([x, y], -1).flatten(0, 1) for y, x in grids])
    locations = centres[None, :, None, None] + 0.02 * torch.randn(1, tokens, heads, len(maps) * points, 2)
    value, weights = torch.randn(1, tokens, heads, width), torch.rand(1, tokens, heads, len(maps) * points).softmax(-1)
    arguments = value, maps, locations, weights, [points] * len(maps)
    with torch.inference_mode():
        ms_deform_attn(*arguments)
        return timed(lambda: ms_deform_attn(*arguments), rounds=7)


def quickstart(checkout: str, epochs: str) -> dict:
    """The command `train` on a few generated shapes: seconds, the processor's of all its processes, images/s."""
    from datasets.shapes import generate

    with TemporaryDirectory() as folder:
        root, train = generate(Path(folder) / "shapes", TRAIN, VAL), TRAIN
        command = [sys.executable, "main.py", "train", "--config", "configs/quickstart.yaml", "--data.root", root]
        command += ["--train.output", Path(folder) / "run", "--train.epochs", epochs, "--train.device", "cpu"]
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([*map(str, command)], cwd=checkout, check=True, stdout=subprocess.DEVNULL)
        clock, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"clock": clock, "seconds": seconds, "images/s": int(epochs) * train / clock}


TASKS = {task.__name__: task for task in (scoring, crowd, saving, forward, step, operator, quickstart)}


def memory_of(call: Callable[[], object], device, resident: Sequence) -> int:
    """The most bytes of tensors of a warm call."""
    try:
        from util.measuring import measure_peak
    except ImportError:  # of older checkouts
        from util.profiling import measure_peak
    return measure_peak(call, device, resident)


def detector(preset: str) -> tuple:
    """A preset of the checkout, its detector with random weights, and the CPU."""
    import torch

    from models.from_config import build_model
    from util import cli
    from util.config import Config

    torch.manual_seed(0)
    config = cli.parse(Config, ["--config", preset], "scale")
    return config, build_model(config.model, 91, config.loss, "none"), torch.device("cpu")


def of_this_checkout(name: str) -> ModuleType:
    """A module beside this file, though the code that is measured may be of another checkout."""
    spec = importlib.util.spec_from_file_location(f"{name}_of_this_checkout", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.append(str(HERE.parents[1]))  # for what older checkouts have not
    spec.loader.exec_module(module)
    return module


def timed(call: Callable[[], object], rounds: int = 5) -> dict[str, float]:
    """Median seconds of a warm call, by the clock and of the processor."""
    found = []
    for _ in range(rounds):
        clock, begun = time.perf_counter(), time.process_time()
        call()
        found.append((time.perf_counter() - clock, time.process_time() - begun))
    clocks, seconds = zip(*found)
    return {"clock": median(clocks), "seconds": median(seconds)}


def bytes_written() -> int:
    """What this process has written into files, as Linux counts it."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))


def main(argv: Sequence[str]) -> int:
    """Do one task with the code of a checkout, and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", help="folder of the code that is measured")
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("arguments", nargs="*", help="of the task")
    args = parser.parse_args(argv)
    print(json.dumps(TASKS[args.task](*args.arguments)))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, next((a for a in sys.argv[1:2] if Path(a).is_dir()), str(HERE.parents[1])))
    from util.console import exit_quietly

    exit_quietly(main, sys.argv[1:])
