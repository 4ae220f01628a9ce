"""Where the parts of a data set of YOLO are: pictures, label files, and the names of its classes.

The label file of `.../images/train/a.jpg` is `.../labels/train/a.txt`: the last folder `images` of the path is
replaced. Where there is none, labels lie beside the pictures. Names are in `data.yaml`, or in `classes.txt`, one on
each line.
"""

import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from datasets.listing import class_list_near, read_class_list
from datasets.values import as_text, as_whole
from util.errors import UserError

YAML = (".yaml", ".yml")
NAME_IT = "name one image folder, convert-data with --images, other commands with --data.train_images or val_images"
LEVELS = 3  # folders above the labels in which data.yaml is looked for


class _Loader(yaml.SafeLoader):
    """YAML in which `on`, `off`, `yes` and `no` are text, for they are names of classes: True and False are none."""

    def __init__(self, stream: bytes):
        super().__init__(stream)
        self.yaml_implicit_resolvers = {
            letter: [(tag, pattern) for tag, pattern in some if tag != "tag:yaml.org,2002:bool"]
            for letter, some in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }


@dataclass(frozen=True)
class Layout:
    """A split of a data set of YOLO.

    Attributes:
        images, labels: its folders.
        names: of the classes, by their numbers.
        keypoints: numbers that describe the keypoints of an object and stand behind its box.
    """

    images: Path
    labels: Path
    names: dict[int, str]
    keypoints: int = 0


def layout_of(path: Path, images: Path | None = None, split: str = "train", classes: Path | None = None) -> Layout:
    """Where everything is.

    Args:
        path: `data.yaml`, a folder that holds it, or the folder of the label files.
        images: the image folder; None finds it.
        split: key of `data.yaml` that names the image folder if `images` does not.
        classes: a list of classes in place of the names that lie near.

    Raises:
        UserError: a file or folder is missing, or nothing names the classes.
    """
    if path.is_dir() and "labels" not in path.absolute().parts[-2:]:
        path = description_in(path) or path
    if path.suffix.lower() in YAML and not path.is_dir():
        images = images or image_folder(path, read_description(path), split)
        labels, classes = _other(images, "images", "labels"), classes or path
        described: Path | None = path
    elif not path.is_dir():
        raise UserError(f"'{path}' is no data.yaml and no folder of YOLO's label files")
    else:
        images, labels = images or _other(path, "labels", "images"), path
        if not images.is_dir():
            raise UserError(f"no image folder '{images}' for the labels in '{path}'; {NAME_IT}")
        around = (description_in(place) for place in (path, *path.absolute().parents[:LEVELS]))
        described = next((file for file in around if file), None)
        classes = classes or class_list_near(path, 0) or described or class_list_near(path, LEVELS)
    if classes is None:
        raise UserError(
            f"nothing names the classes of the labels in '{labels}': put data.yaml or classes.txt, with a name on each "
            "line, beside them or above"
        )
    names = _names(classes) if classes == described else dict(enumerate(read_class_list(classes)))
    return Layout(images, labels, names, _keypoints(described) if described else 0)


def read_description(path: Path) -> dict[str, Any]:
    """The content of a `data.yaml`.

    Raises:
        UserError: no such file, or no YAML of keys and values.
    """
    if not path.is_file():
        raise UserError(f"no annotation file '{path}'")
    try:
        content = yaml.load(path.read_bytes(), _Loader)
    except RecursionError:
        raise UserError(f"'{path}' is nested too deeply to be read") from None
    except (yaml.YAMLError, ValueError) as error:  # the latter of no UTF-8, and of values such as a 13th month
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"'{path}'{line}: not YAML: {getattr(error, 'problem', None) or error}") from None
    names = content.get("names") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(names, list | dict) or not names:
        raise UserError(f"'{path}' is taken for the data.yaml of a YOLO data set, but it has no 'names'")
    return content


def image_folder(path: Path, content: dict[str, Any], split: str) -> Path:
    """The image folder of a split that a `data.yaml` names.

    Raises:
        UserError: it names none, or none that is there.
    """
    stated = content.get(split)
    if not isinstance(stated, str) or stated.endswith(".txt"):
        kind = "nothing" if stated is None else "several folders" if isinstance(stated, list) else "a list of files"
        raise UserError(f"'{path}' names {kind} as '{split}'; {NAME_IT}")
    root, here = content.get("path"), path.parent
    places = [here / str(root) / stated] if root else []
    # Exports of Roboflow say ../train/images and mean the folder beside data.yaml.
    places += [here / stated, here / stated.removeprefix("../")]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise UserError(f"'{path}' names '{stated}' as '{split}', but there is no folder '{places[0]}'")
    return found


def description_in(folder: Path) -> Path | None:
    """The file in a folder that describes a data set of YOLO; of several `data.yaml`, else the first."""
    some = [file for file in folder.iterdir() if file.suffix.lower() in YAML and file.is_file()]
    for file in sorted(some, key=lambda file: (file.stem != "data", file.name)):
        try:
            read_description(file)
        except UserError:  # of another kind
            continue
        return file
    return None


def _other(folder: Path, name: str, replacement: str) -> Path:
    """The folder with the last part of this name replaced; itself, if there is none or nothing is there."""
    parts = list(folder.absolute().parts)
    if name not in parts:
        return folder
    last = len(parts) - 1 - parts[::-1].index(name)
    other = Path(*parts[:last], replacement, *parts[last + 1 :])
    if not folder.is_absolute() and other.is_relative_to(Path.cwd()):
        other = other.relative_to(Path.cwd())
    return other if other.is_dir() else folder


def _names(path: Path) -> dict[int, str]:
    listed = read_description(path)["names"]
    names: dict[int, str] = {}
    for key, name in listed.items() if isinstance(listed, dict) else enumerate(listed):
        number = as_whole(key)
        if number is None or number < 0 or isinstance(name, dict | list) or name is None:
            raise UserError(
                f"'{path}': 'names' has {_shown(key)}: {_shown(name)}; it needs the number of a class and its name"
            )
        names[number] = as_text(name)
    return names


def _keypoints(path: Path) -> int:
    """How many numbers stand behind the box of an object."""
    shape = read_description(path).get("kpt_shape")
    if shape is None:
        return 0
    if not isinstance(shape, list) or len(shape) != 2 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise UserError(f"'{path}': kpt_shape is {_shown(shape)}; it must be [number of keypoints, 2 or 3]")
    return shape[0] * shape[1]


def _shown(value: object) -> str:
    """A value for an error, cut short: a few bytes of YAML can stand for gigabytes of nested lists."""
    short = reprlib.Repr()
    short.maxlevel = 2
    return short.repr(value)
