"""Annotations and detections to analyse: by hand, and at random with errors of every kind."""

import numpy as np

from analysis.errors.scenes import Scene, scenes_of
from datasets.annotations import Annotations
from datasets.coco import from_coco
from datasets.evaluation import match_detections


def truth_of(annotations: list[dict], images: int = 1, names: tuple[str, ...] = ("cat", "dog")) -> dict:
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 400, "height": 300} for i in range(1, images + 1)],
        "categories": [{"id": 10 * (k + 1), "name": name} for k, name in enumerate(names)],
        "annotations": [a | {"id": i} for i, a in enumerate(annotations, 1)],
    }


def thing(category: int, bbox: list, image: int = 1, crowd: int = 0) -> dict:
    return {
        "image_id": image,
        "category_id": category,
        "bbox": bbox,
        "area": bbox[2] * bbox[3],
        "iscrowd": crowd,
    }


def found(category: int, bbox: list, score: float, image: int = 1) -> dict:
    return {"image_id": image, "category_id": category, "bbox": bbox, "score": score}


def random_data(seed: int, images: int = 12, crowds: float = 0.15) -> tuple[dict, list[dict]]:
    """Objects of three classes; detections that are near, far, doubled, of the wrong class, or on nothing."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 7)):
            bbox = [float(v) for v in (*rng.uniform(0, 200, 2), *rng.uniform(20, 150, 2))]
            category = int(rng.choice([10, 20, 30]))
            annotations.append(thing(category, bbox, image, int(rng.random() < crowds)))
            for _ in range(rng.integers(0, 4)):
                moved = np.array(bbox) + rng.normal(0, rng.choice([3, 20]), 4)
                moved = [float(v) for v in (*moved[:2], *np.maximum(moved[2:], 5))]
                other = int(rng.choice([10, 20, 30])) if rng.random() < 0.3 else category
                results.append(found(other, moved, float(rng.random()), image))
        for _ in range(rng.integers(0, 6)):
            bbox = [float(v) for v in (*rng.uniform(0, 300, 2), *rng.uniform(5, 90, 2))]
            results.append(found(int(rng.choice([10, 20, 30])), bbox, float(rng.random()), image))
    return truth_of(annotations, images, ("cat", "dog", "cow")), results


def scenes_from(truth: dict, results: list[dict], max_detections: int = 100) -> list[Scene]:
    return scenes_of(match_detections(read(truth), results, max_detections))


def read(truth: dict) -> Annotations:
    """What a file with this content says."""
    return from_coco(truth, "truth.json")
