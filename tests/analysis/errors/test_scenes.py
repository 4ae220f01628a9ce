import numpy as np

from tests.analysis.errors.scenery import random_data, scenes_from


def test_ids_of_both_types_lead_to_the_same_scenes():
    truth, results = random_data(4)
    expected = scenes_from(truth, results)
    written = {2: "x2", 7: 2**70, 9: 9.0}
    for entry in truth["images"]:
        entry["id"] = written.get(entry["id"], entry["id"])
    for entry in truth["annotations"] + results:
        entry["image_id"] = written.get(entry["image_id"], entry["image_id"])
    by_file = {scene.image.file_name: scene for scene in scenes_from(truth, results)}
    assert by_file["2.png"].image.id == "x2" and len(by_file) == len(expected)
    for scene in expected:
        other = by_file[scene.image.file_name]
        for column in ("truth_boxes", "truth_classes", "crowd_boxes", "boxes", "classes", "scores", "matches"):
            assert np.array_equal(getattr(scene, column), getattr(other, column))
