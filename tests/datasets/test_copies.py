from pathlib import Path

import pytest

from datasets.copies import copies_of
from util.errors import UserError


@pytest.mark.parametrize(
    ("splits", "fix", "output", "said"),
    [
        (("train", "val"), "out.json", None, "is one file, but there are two splits"),
        (("val",), "val.json", None, "would overwrite the annotation file"),
        (("val",), "sub/../val.json", None, "would overwrite the annotation file"),
        (("val",), "linked.json", None, "would overwrite the annotation file"),
        (("val", "train"), ".", None, "would overwrite the annotation file"),
        (("val",), "out.json", "out.json", "name the same file"),
        (("val",), None, "val.json", "--output .* would overwrite the annotation file"),
        (("val",), "folder.json", None, "is a folder"),
    ],
)
def test_the_source_is_never_overwritten(tmp_path, monkeypatch, splits, fix, output, said):
    monkeypatch.chdir(tmp_path)
    for split in splits:
        Path(f"{split}.json").write_text("{}")
    Path("linked.json").hardlink_to("val.json") if "val" in splits else None
    Path("folder.json").mkdir()
    Path("sub").mkdir()
    with pytest.raises(UserError, match=said):
        copies_of({split: Path(f"{split}.json") for split in splits}, fix, output)


def test_where_the_copies_go():
    sources = {"train": Path("t/a.json"), "val": Path("v/a.json")}
    assert copies_of(sources, "out") == {"train": Path("out/train.json"), "val": Path("out/val.json")}
    assert copies_of({"val": Path("v/a.json")}, "o.json", "report.json") == {"val": Path("o.json")}
    assert copies_of(sources, None, "report.json") == {}
