"""The names that predictions are shown with: the checkpoint's, a file's, or COCO's, which is said."""

import pytest

from datasets.categories import foreign_categories
from engine.predict import named
from tests.datasets.helpers import write_coco


@pytest.mark.parametrize(
    ("count", "first", "said"),
    [(91, "person", "assumed to be COCO's; --classes FILE.json"), (4, "", "numbers stand for them; --classes")],
)
def test_classes_without_names(tmp_path, capsys, count, first, said):
    classes = foreign_categories(count, {})
    found = {c.id: c.name for c in named(classes, f"{count}.pth", None)}
    assert found[1] == first and said in capsys.readouterr().err
    _, file = write_coco(tmp_path, [])
    found = {c.id: c.name for c in named(classes, f"{count}.pth", str(file))}
    assert (found[1], found[2], found[3]) == ("circle", "square", "")
    assert not capsys.readouterr().err


def test_names_that_are_kept_are_shown_without_a_word(capsys):
    classes = foreign_categories(91, {1: "cell"})
    assert named(classes, "x.pth", None) == classes and not capsys.readouterr().err
