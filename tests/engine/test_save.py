"""What `predict` writes beside the drawn pictures."""

import pytest
from PIL import Image

from main import main


@pytest.mark.parametrize(
    ("name", "option", "said"),
    [
        ("classes.jpg", "save_txt", "classes.jpg' and the names of the classes would both be labels/classes.txt"),
        ("classes.png", "save_conf", "classes.png' and the names of the classes would both be labels/classes.txt"),
        ("classes.jpg", "save_coco", "no checkpoint"),
        ("classes_2.jpg", "save_txt", "no checkpoint"),
    ],
)
def test_a_picture_with_the_name_of_the_class_list_is_refused_before_anything_is_read(
    tmp_path, capsys, name, option, said
):
    """Its labels and the names of the classes would be one file. What is refused later names the checkpoint."""
    (tmp_path / "photos").mkdir()
    for file in ("a.jpg", name):
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / file)
    output = tmp_path / "drawn"
    argv = ["predict", "--input", str(tmp_path / "photos"), "--checkpoint", "none.pth", "--output", str(output)]
    assert main([*argv, f"--{option}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not output.exists()
