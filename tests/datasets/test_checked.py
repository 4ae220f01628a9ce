import json

import pytest

from datasets.checked import agreed, look_at_files, refuse, settle
from datasets.coco import from_coco
from datasets.dataset import CocoDetection
from datasets.images import read_image
from tests.datasets.helpers import annotation, picture, write_coco, write_json
from tests.datasets.test_inspection import save
from util.errors import UserError

OBJECTS = [annotation(1, 1, 1, [2, 2, 10, 10]), annotation(2, 2, 2, [3, 3, 12, 9]), annotation(3, 3, 2, [1, 1, 9, 9])]


def settled(dataset: CocoDetection, broken="stop", exif="auto", split="train"):
    looks = look_at_files(dataset.image_folder, dataset.annotations, exif, broken, split)
    return settle(looks, dataset.image_folder, broken, split)


def cut(path, kept=-60) -> None:
    path.write_bytes(path.read_bytes()[:kept])


@pytest.fixture
def dataset(tmp_path) -> CocoDetection:
    return CocoDetection.from_file(*write_coco(tmp_path, OBJECTS))


def test_a_good_set_stays_as_it_is_and_nothing_is_said(dataset):
    found = settled(dataset)
    assert (found.remarks, found.refusal) == ([], "")
    checked = dataset.checked(found.looks)
    assert checked.images == dataset.images
    for a, b in zip(dataset, checked):
        assert a.image.equal(b.image) and a.objects.boxes.equal(b.objects.boxes)


def test_stop_names_the_picture_and_the_option(dataset):
    cut(dataset.image_folder / "2.png")
    with pytest.raises(UserError, match=r"1 image of 3.*2\.png.*truncated.*--data\.broken_images mend.*skip"):
        refuse([settled(dataset)])


def test_mend_uses_what_can_be_decoded_and_names_it_once(dataset):
    path = dataset.image_folder / "2.png"
    cut(path)
    found = settled(dataset, "mend")
    assert found.refusal == ""
    assert found.remarks == ["train: broken, and what can be decoded is used: 1 image ('2.png')"]
    sample = dataset.checked(found.looks)[1]
    assert sample.image.numpy().transpose(1, 2, 0).tobytes() == read_image(path, lenient=True).tobytes()
    assert sample.objects.boxes.equal(dataset.checked(found.looks)[1].objects.boxes)
    with pytest.raises(UserError):
        dataset[1]


def test_skip_leaves_the_picture_and_its_objects_out(dataset):
    cut(dataset.image_folder / "2.png")
    found = settled(dataset, "skip", split="val")
    assert found.remarks == ["val: broken and left out, whose objects do not count in the scores: 1 image ('2.png')"]
    checked = dataset.checked(found.looks)
    assert [image.id for image in checked.images] == [1, 3]
    assert checked.annotations.ids == [1, 3] and checked.annotations.image_ids == [1, 3]
    assert checked.annotations.boxes.tolist() == [[2, 2, 10, 10], [1, 1, 9, 9]]
    assert [sample.objects.image_id for sample in checked] == [1, 3]
    assert checked[1].objects.labels.tolist() == [1]
    assert [image.id for image in dataset.images] == [1, 2, 3]


@pytest.mark.parametrize("broken", ["mend", "skip"])
@pytest.mark.parametrize(("count", "damaged", "fine"), [(5, 1, True), (5, 2, False), (200, 2, True), (200, 3, False)])
def test_one_in_a_hundred_may_be_broken_and_one_at_least(tmp_path, broken, count, damaged, fine):
    picture(8, 8).save(tmp_path / "0.png")
    content = (tmp_path / "0.png").read_bytes()
    for i in range(count):
        (tmp_path / f"{i}.png").write_bytes(content[:-40] if i < damaged else content)
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(count)]
    lists = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    found = settled(CocoDetection.from_annotations(tmp_path, from_coco(lists, "a")), broken)
    assert (found.refusal == "") == fine
    if not fine:
        assert f"{damaged} of {count}" in found.refusal and "1 %" in found.refusal and "0.png" in found.refusal
        with pytest.raises(UserError):
            refuse([found])


@pytest.mark.parametrize("broken", ["stop", "mend", "skip"])
def test_missing_images_and_other_sizes_are_never_passed_over(dataset, broken):
    (dataset.image_folder / "1.png").unlink()
    picture(31, 40).save(dataset.image_folder / "2.png")
    found = settled(dataset, broken)
    assert "2 images of 3" in found.refusal and "no image" in found.refusal and "31x40" in found.refusal
    assert not found.mendable


def test_what_cannot_be_decoded_at_all_cannot_be_mended_but_left_out(dataset):
    (dataset.image_folder / "2.png").write_text("text")
    assert "not a picture" in settled(dataset, "mend").refusal
    assert settled(dataset, "skip").refusal == ""


def test_a_set_of_which_nothing_is_left_is_refused(tmp_path):
    dataset = CocoDetection.from_file(*write_coco(tmp_path, [], sizes=((8, 8),)))
    cut(dataset.image_folder / "1.png")
    assert "no image is left" in settled(dataset, "skip").refusal


def test_all_splits_are_refused_at_once_with_the_first_five(tmp_path):
    several = [CocoDetection.from_file(*write_coco(tmp_path, [], ((8, 8),) * 9, split=s)) for s in ("train", "val")]
    for dataset, gone in zip(several, (7, 2)):
        for i in range(gone):
            (dataset.image_folder / f"{i + 1}.png").unlink()
    with pytest.raises(UserError) as raised:
        refuse([settled(dataset, split=split) for dataset, split in zip(several, ("train", "val"))])
    said = str(raised.value)
    assert "train: 7 images of 9" in said and "and 2 more" in said and "val: 2 images of 9" in said
    assert "check-data" in said and "5.png" in said and "6.png" not in said


def test_all_missing_is_summed_up(dataset):
    for path in dataset.image_folder.iterdir():
        path.rename(path.with_name("other" + path.name))
    said = settled(dataset, split="val").refusal
    assert said == (
        f"val: all 3 images are missing; the first is looked for at '{dataset.image_folder / '1.png'}'; "
        f"data.val_images (or data.root) names '{dataset.image_folder}', which holds 3 files, such as 'other1.png'"
    )


def test_other_spellings_are_used_and_said_once(tmp_path):
    images, file = write_coco(tmp_path, OBJECTS)
    content = json.loads(file.read_text())
    for entry in content["images"][:2]:
        entry["file_name"] = "images\\" + entry["file_name"]
    dataset = CocoDetection.from_file(images, write_json(file, content))
    (remark,) = settled(dataset).remarks
    assert "2 images" in remark and "'images\\1.png'" in remark and str(images / "1.png") in remark
    assert dataset[0].image.equal(dataset.checked(settled(dataset).looks)[0].image)


def test_boxes_of_an_upright_picture_of_stated_raw_size_are_clipped_to_the_upright_one(tmp_path):
    """Stored 40 wide and 30 high, shown 30 wide and 40 high."""
    boxes = [[2, 20, 10, 18], [25, 3, 9, 9]]
    objects = [annotation(i, 1, 1, box) for i, box in enumerate(boxes)]
    images, file = write_coco(tmp_path, objects, sizes=((40, 30),))
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = "1.jpg"
    save(images / "1.jpg", orientation=6)
    dataset = CocoDetection.from_file(images, write_json(file, content))
    found = settled(dataset, exif="upright")
    sample = dataset.checked(found.looks)[0]
    assert sample.image.shape == (3, 40, 30) and sample.original_size == (40, 30)
    corners = [[(x, y), (min(30, x + w), y + h)] for x, y, w, h in boxes]
    expected = [
        pytest.approx([(x0 + x1) / 60, (y0 + y1) / 80, (x1 - x0) / 30, (y1 - y0) / 40], abs=1e-6)
        for (x0, y0), (x1, y1) in corners
    ]
    assert sample.objects.boxes.tolist() == expected
    assert "read upright, against the annotated size" in found.remarks[0]
    assert dataset.checked(settled(dataset, exif="raw").looks)[0].image.shape == (3, 30, 40)


def test_a_guess_is_said_with_the_option(tmp_path):
    images, file = write_coco(tmp_path, [annotation(1, 1, 1, [2, 2, 9, 9])], sizes=((40, 30),))
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = "1.jpg"
    save(images / "1.jpg", orientation=6)
    (remark,) = settled(CocoDetection.from_file(images, write_json(file, content))).remarks
    assert "at unrotated size" in remark and "1 image ('1.jpg')" in remark and "--data.exif upright" in remark


def test_a_fault_on_one_machine_is_one_on_all(dataset):
    good = look_at_files(dataset.image_folder, dataset.annotations, "auto", "skip", "train")
    cut(dataset.image_folder / "3.png")
    bad = look_at_files(dataset.image_folder, dataset.annotations, "auto", "skip", "train")
    for machines in ([good, bad], [bad, good]):
        found = settle(agreed(machines), dataset.image_folder, "skip", "train")
        assert [look.entry.id for look in found.looks] == [1, 2]
