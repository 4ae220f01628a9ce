"""Annotation files for benchmarks: as large as those of COCO, LVIS and Objects365, of random boxes and polygons."""

import json
from pathlib import Path

import numpy as np

COCO = (118_287, 860_001, 80, 23)  # images, objects, classes, points of a polygon: train2017 has 447 MB
LVIS = (100_170, 1_270_141, 1_203, 23)  # v1, training
OBJECTS365 = (217_000, 3_100_000, 365, 0)  # an eighth of Objects365: 450 MB, no polygons


def write_annotations(
    file: Path, images: int, objects: int, classes: int, points: int, seed: int = 0, lists: bool = False
) -> None:
    """Write a COCO file, a part at a time.

    Args:
        file: where to.
        images: number of images, 640x480 pixels or upright, whose files are `000000000001.jpg` and so on.
        objects: number of objects in all; 1 in 100 is a crowd.
        classes: number of classes, all equally frequent.
        points: of each object's polygon; 0 writes none.
        seed: of the random numbers.
        lists: write what LVIS has beside COCO: 10 negatives of each image, in every second one a class that is not
            exhaustively listed, an address in the place of the file name, and how frequent classes are.
    """
    rng, of_lists = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    upright = upright_images(images)
    with file.open("w") as out:
        out.write('{"info": {"description": "made up"}, "licenses": [], "images": [')
        for i in range(images):
            size = (480, 640) if upright[i] else (640, 480)
            entry = {"license": 3, "file_name": f"{i + 1:012d}.jpg", "height": size[1], "width": size[0]}
            entry |= {"date_captured": "2013-11-14 17:02:52", "id": i + 1}
            if lists:
                listed = (of_lists.choice(classes, 10 + (i + 1) % 2, replace=False) + 1).tolist()
                entry |= {"neg_category_ids": listed[:10], "not_exhaustive_category_ids": listed[10:]}
                entry["coco_url"] = f"http://images.cocodataset.org/train2017/{entry.pop('file_name')}"
            out.write(f"{', ' if i else ''}{json.dumps(entry)}")
        out.write('], "annotations": [')
        for first in range(0, objects, 10_000):
            count = min(10_000, objects - first)
            of_image = rng.integers(0, images, count)
            places = rng.uniform(0, 300, (count, 2)).round(2)
            extents = rng.uniform(8, 170, (count, 2)).round(2)
            polygons = (
                np.tile(places, points) + rng.uniform(0, 1, (count, 2 * points)) * np.tile(extents, points)
            ).round(2)
            kinds, crowds = rng.integers(1, classes + 1, count).tolist(), (rng.random(count) < 0.01).tolist()
            entries = []
            for k, (box, polygon) in enumerate(zip(np.concatenate([places, extents], 1).tolist(), polygons.tolist())):
                segments = f'"segmentation": [{json.dumps(polygon)}], ' if points else ""
                area = round(0.6 * box[2] * box[3], 4)
                entries.append(
                    f'{{{segments}"area": {area}, "iscrowd": {int(crowds[k])}, "image_id": {of_image[k] + 1}, '
                    f'"bbox": {json.dumps(box)}, "category_id": {kinds[k]}, "id": {first + k + 1}}}'
                )
            out.write((", " if first else "") + ", ".join(entries))
        out.write('], "categories": [')
        kinds_of = ({"supercategory": "thing", "id": k, "name": f"class {k}"} for k in range(1, classes + 1))
        named = (entry | ({"frequency": "rcf"[entry["id"] % 3]} if lists else {}) for entry in kinds_of)
        out.write(", ".join(map(json.dumps, named)) + "]}")


def upright_images(count: int) -> np.ndarray:
    """`[count]`, which images are 480 wide and 640 high."""
    return np.random.default_rng(0).random(count) < 0.3
