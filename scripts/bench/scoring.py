"""Times the scoring of detections: ours, faster-coco-eval and pycocotools side by side, on made-up objects and boxes.

    python scripts/bench/scoring.py                        # as large as COCO val: 5,000 images, 500,000 boxes
    python scripts/bench/scoring.py --images 500 --found 300 --classes 1203 --objects 12      # like LVIS
    python scripts/bench/scoring.py --images 500 --found 300 --classes 1203 --objects 12 --lvis   # by LVIS's protocol
    python scripts/bench/scoring.py --images 1000 --analyse                # also with the analysis of errors

Each contender has a process of its own. Ours starts from annotations as they are read and a list of detections, as
`eval` does: it checks them, scores them and sums up. The libraries start from the same lists, with `COCO`, `loadRes`,
`evaluate`, `accumulate` and `summarize`, or what the `lvis` package calls so. Seconds are those of the clock and, in
brackets, of the processor, which a busy machine changes less. The peak of memory is that of the whole process; `the
lists alone` is a process that only makes them; ours also imports torch. If an AP differs by more than 1e-12, the exit
code is 1.
"""

import argparse
import contextlib
import io
import json
import logging
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from util.console import exit_quietly

PROG = "bench/scoring.py"
ALONE, OURS, ANALYSED = "the lists alone", "ours", "ours, with --analyse"
LIBRARIES = ("faster-coco-eval", "pycocotools")
LVIS = "lvis"


def make_lists(
    images: int, objects: int, found: int, classes: int, federated: bool = False, seed: int = 0
) -> tuple[dict, list[dict]]:
    """A COCO file, and detections of its images in COCO result format.

    Of the detections 4 in 10 lie near an object, mostly of its class; the others lie anywhere and have low scores.

    Args:
        images: number of images, 640x640 pixels.
        objects: mean number of objects in an image; 2 in 100 are crowds.
        found: detections of an image.
        classes: number of classes C, all equally frequent.
        federated: whether images have LVIS's lists, of 10 negatives and, in every second one, of a class that is not
            exhaustively listed, and classes their frequencies. Then there are no crowds, which LVIS does not have.
        seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)
    annotations: list[dict] = []
    results: list[dict] = []
    for image in range(1, images + 1):
        count = int(rng.poisson(objects))
        truth = np.concatenate([rng.uniform(0, 500, (count, 2)), rng.uniform(8, 250, (count, 2))], 1)
        kinds, crowds = rng.integers(1, classes + 1, count), rng.random(count) < 0.02
        boxes = np.concatenate([rng.uniform(0, 500, (found, 2)), rng.uniform(8, 250, (found, 2))], 1)
        labels, scores = rng.integers(1, classes + 1, found), rng.random(found) ** 3
        if count:
            near, of = rng.random(found) < 0.4, rng.integers(0, count, found)
            boxes = np.where(near[:, None], truth[of] + rng.normal(0, 12, (found, 4)), boxes)
            boxes[:, 2:] = np.maximum(boxes[:, 2:], 2)
            labels = np.where(near & (rng.random(found) < 0.8), kinds[of], labels)
            scores = np.where(near, scores**0.5, scores)
        for box, kind, crowd in zip(truth.tolist(), kinds.tolist(), crowds.tolist()):
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": kind, "bbox": box}
            annotations.append(entry | {"area": 0.6 * box[2] * box[3], "iscrowd": int(crowd)})
        results += [
            {"image_id": image, "category_id": label, "bbox": box, "score": score}
            for box, label, score in zip(boxes.tolist(), labels.tolist(), scores.tolist())
        ]
    content = {
        "info": {},
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 640} for i in range(1, images + 1)],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, classes + 1)],
        "annotations": annotations,
    }
    if federated:
        add_lvis_lists(content, rng)
    return content, results


def add_lvis_lists(content: dict, rng: np.random.Generator) -> None:
    """What LVIS's files have beside COCO's, see `make_lists`."""
    positive: dict[int, list[int]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0
        positive[annotation["image_id"]].append(annotation["category_id"])
    every = len(content["categories"])
    for image in content["images"]:
        of_image = positive[image["id"]]
        drawn = rng.choice(every, min(every, len(of_image) + 10), replace=False) + 1
        image["neg_category_ids"] = [k for k in drawn.tolist() if k not in of_image][:10]
        image["not_exhaustive_category_ids"] = of_image[: image["id"] % 2]
    for i, category in enumerate(content["categories"]):
        category["frequency"] = "rcf"[i % 3]


def by_us(truth: dict, results: list[dict], analysed: bool) -> Callable[[], float]:
    """What scores the lists as `eval` does, and returns AP."""
    from analysis.errors.analyse import analyse
    from datasets.coco import from_coco
    from datasets.evaluation import evaluate_detections
    from engine.score import Evaluation

    annotations = from_coco(truth, "truth.json")

    def score() -> float:
        scores = evaluate_detections(annotations, results)
        if analysed:
            with TemporaryDirectory() as folder:
                analyse(Evaluation(scores, results, annotations, None, {}), Path(folder))
        return scores.figures["AP"]

    return score


def by_library(name: str, truth: dict, results: list[dict]) -> Callable[[], float]:
    """The same by a library."""
    if name == LVIS:
        return by_lvis(truth, results)
    if name == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval

    def score() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = truth
            coco.createIndex()
            run = COCOeval(coco, coco.loadRes(results), iouType="bbox")
            run.evaluate()
            run.accumulate()
            run.summarize()
        return float(run.stats[0])

    return score


def by_lvis(truth: dict, results: list[dict]) -> Callable[[], float]:
    """The same by LVIS's own package."""
    sys.modules.setdefault("cv2", ModuleType("cv2"))  # which only its pictures need
    np.float = float  # type: ignore[attr-defined]  # which NumPy had when the package was written
    import lvis

    def score() -> float:
        of_file = lvis.LVIS.__new__(lvis.LVIS)  # which reads files alone
        of_file.logger, of_file.dataset = logging.getLogger("lvis"), truth
        of_file._create_index()
        run = lvis.LVISEval(of_file, lvis.LVISResults(of_file, results), "bbox")
        run.run()
        return float(run.get_results()["AP"])

    return score


def measure(name: str, sizes: tuple[int, int, int, int], federated: bool = False) -> dict:
    """Seconds, processor's seconds, AP and the peak in MiB of one contender; called in a process of its own."""
    truth, results = make_lists(*sizes, federated)
    if name == ALONE:
        return {"peak": peak()}
    call = by_library(name, truth, results) if name in (*LIBRARIES, LVIS) else by_us(truth, results, name == ANALYSED)
    clock, processor = time.perf_counter(), time.process_time()
    ap = call()
    seconds = {"seconds": time.perf_counter() - clock, "processor": time.process_time() - processor}
    return seconds | {"ap": ap, "peak": peak()}


def peak() -> float:
    """The largest memory of this process so far, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main(argv: Sequence[str]) -> int:
    """Run every contender and print the table."""
    parser = argparse.ArgumentParser(PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--objects", type=int, default=7, help="mean number of objects in an image")
    parser.add_argument("--found", type=int, default=100, help="detections of an image")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--lvis", action="store_true", help="by LVIS's protocol, beside its own package")
    parser.add_argument("--analyse", action="store_true", help="also with the analysis of errors")
    parser.add_argument("--contender", help=argparse.SUPPRESS)  # for the processes
    options = parser.parse_args(argv)
    sizes = (options.images, options.objects, options.found, options.classes)
    if options.contender:
        print(json.dumps(measure(options.contender, sizes, options.lvis)))
        return 0
    from scripts.bench.timing import load, markdown_table  # torch, which would add to the contenders' memory

    rows, aps, before = [], [], load()
    libraries = [LVIS] if options.lvis else LIBRARIES
    for name in [ALONE, OURS, *([ANALYSED] if options.analyse else []), *libraries]:
        command = [sys.executable, __file__, "--contender", name, *(["--lvis"] if options.lvis else [])]
        for option, value in zip(("--images", "--objects", "--found", "--classes"), sizes):
            command += [option, str(value)]
        got = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        spent = f"{got['seconds']:.1f} ({got['processor']:.1f})" if "seconds" in got else ""
        rows.append([name, spent, f"{got['peak']:,.0f}"])
        aps += [got["ap"]] if "ap" in got else []
    told = "" if before is None else f"; load {before:.1f} before"
    print(f"{sizes[0]:,} images, {sizes[0] * sizes[2]:,} boxes, {sizes[3]:,} classes, AP {aps[0]:.6f}{told}\n")
    print(markdown_table(("scored by", "s (of the processor)", "peak MiB"), rows))
    return int(max(aps) - min(aps) > 1e-12)


if __name__ == "__main__":
    exit_quietly(main, sys.argv[1:])
