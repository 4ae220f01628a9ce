"""Where mended copies of annotation files go, and that nothing is overwritten."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from util.errors import UserError
from util.files import make_folder


def copies_of(sources: Mapping[str, Path], fix: str | None, output: str | None = None) -> dict[str, Path]:
    """Where the mended copy of each split goes.

    Args:
        sources: annotation file of each split.
        fix: a JSON file, if there is one split; or a folder for a file by the name of each split. None mends nothing.
        output: the file of the report.

    Raises:
        UserError: several splits and one file; or a source, or the report, would be overwritten.
    """
    if fix is None:
        copies = {}
    elif Path(fix).suffix.lower() != ".json":
        copies = {split: Path(fix) / f"{split}.json" for split in sources}
    elif len(sources) == 1:
        copies = dict.fromkeys(sources, Path(fix))
    else:
        raise UserError(
            f"--fix '{fix}' is one file, but there are two splits; name a folder for train.json and val.json, or one "
            "split alone (--data.train_images and --data.train_annotations, or --data.val_*)"
        )
    targets = [("--fix", copy) for copy in copies.values()] + [("--output", Path(o)) for o in (output,) if o]
    for option, target in targets:
        if any(_same(target, source) for source in sources.values()):
            raise UserError(f"{option} '{target}' would overwrite the annotation file; name another file")
    for copy in copies.values():
        if copy.is_dir():
            raise UserError(f"--fix '{copy}' is a folder; name another file")
        if output and _same(copy, Path(output)):
            raise UserError(f"--fix and --output name the same file '{copy}'")
    return copies


def write_copy(content: dict[str, Any], file: Path, option: str = "fix") -> None:
    """Write the content of a COCO file; until it is whole, there is none by its name. `option` names it in errors."""
    make_folder(file.parent, option)
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps(content), encoding="utf-8")
    part.replace(file)


def _same(path: Path, other: Path) -> bool:
    """Whether two paths lead to one file, by whatever name."""
    if path.exists() and other.exists():
        return path.samefile(other)
    return path.resolve() == other.resolve()
