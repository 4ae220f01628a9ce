"""Pascal VOC: an XML file for each picture.

A box is named by the pixels at its corners. Pixels are counted from 1, and both corners belong to the box (VOC
development kit: an object from xmin to xmax is xmax - xmin + 1 pixels wide). On the axis of edges on which boxes lie
here, pixel 1 reaches from 0 to 1. So a box reaches from xmin - 1 to xmax, and 1, 1, W, H is the whole picture.

Many tools write other numbers into the same file: edges counted from 0, as COCO has them. Nothing in the file tells.
`corners="edges"` reads those.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from datasets.annotations import Annotations, CategoryEntry
from datasets.labelled import LabelledObject, LabelledPicture, Tally, to_annotations
from datasets.listing import class_list_near, files_below, pictures_below, read_class_list, read_lines
from datasets.pictures import picture_suffixes
from datasets.values import as_flag, as_float, as_whole, stated_size
from datasets.xml_file import Element, read_xml
from util.errors import UserError
from util.progress import progress

Corners: TypeAlias = Literal["pixels", "edges"]
EDGES = ("xmin", "ymin", "xmax", "ymax")
NO_BOX = "objects without <bndbox> are left out"
NO_SIZE = "files state no possible size; it is read from the pictures"
RENAMED = "files name another picture than the one that has their own name, which is taken"
NAMELESS = "files name no picture; the one that has their own name is taken"
FROM_ZERO = (
    "boxes that begin before pixel 1, as of tools that count edges from 0 (convert-data --voc_corners edges reads "
    "those)"
)
TWICE = "lines name a picture for the second time, and are left out"


def read_voc(
    path: Path, images: Path | None = None, corners: Corners = "pixels", classes: Path | None = None
) -> Annotations:
    """What the XML files of Pascal VOC say. An object that is `difficult` is read as a crowd: it is left alone.

    Classes are numbered from 1 in the order of their names, or of `classes.txt` beside the files or up to two folders
    above. Those of a list are numbered like those of the whole folder.

    Args:
        path: a folder of XML files; a list of names, one a line, as in `ImageSets/Main`; one file; or the folder that
            holds `Annotations`.
        images: the image folder; None takes `JPEGImages` or `images` beside the files, else their own folder.
        corners: `pixels` as the format means them; `edges` for x and y of edges, counted from 0.
        classes: a list of classes, one on each line, in place of `classes.txt`.

    Raises:
        UserError: a file is missing or malformed; names the line.
    """
    tally = Tally()
    folder, files = _files_of(path, images, tally)
    pictures = _Pictures(folder, images)
    read = [_VocFile(folder / file, corners, tally) for file in progress(files, "reading XML files")]
    names = _class_names(
        folder, read, classes or class_list_near(folder), whole=len(files) == len(files_below(folder, [".xml"]))
    )
    number_of = {name: number for number, name in enumerate(names, 1)}
    labelled = []
    for file, content in zip(files, read):
        objects = [LabelledObject(number_of[name], box, difficult) for name, box, difficult in content.objects]
        labelled.append(LabelledPicture(pictures.name_of(file, content.picture, tally), content.size, objects))
    _refuse_shared(files, labelled, folder)
    return to_annotations(
        path, [CategoryEntry(k, name) for name, k in number_of.items()], labelled, tally.remarks(path)
    )


class _VocFile:
    """One XML file.

    Attributes:
        path: the XML file.
        picture: the file that it names; empty if it names none.
        size: (width, height) in pixels, if it is stated.
        objects: name of the class, box [x, y, width, height] and whether it is difficult.
        lines: where each object begins.
    """

    def __init__(self, path: Path, corners: Corners, tally: Tally):
        root = read_xml(path)
        if root.tag != "annotation":
            raise UserError(f"'{path}', line {root.line}: <{root.tag}> is no <annotation> of Pascal VOC")
        self.path, self.picture = path, root.text_of("filename").replace("\\", "/").rsplit("/", 1)[-1]
        self.size = _size_of(root.first("size"))
        if self.size is None:
            tally.add(NO_SIZE, path.name)
        self.objects: list[tuple[str, tuple[float, float, float, float], bool]] = []
        self.lines: list[int] = []
        for element in root.all("object"):
            where = f"{path.name}, line {element.line}"
            bndbox = element.first("bndbox")  # parts of an object have their own, further below
            if bndbox is None:
                tally.add(NO_BOX, where)
                continue
            name, difficult = element.text_of("name"), as_flag(element.text_of("difficult") or "0")
            if not name:
                raise UserError(f"'{path}', line {element.line}: the object has no <name>")
            if difficult is None:
                raise UserError(f"'{path}', line {element.line}: <difficult> of the object must be 0 or 1")
            box, from_zero = _box_of(bndbox, path, corners)
            if from_zero:
                tally.add(FROM_ZERO, where)
            self.objects.append((name, box, difficult))
            self.lines.append(element.line)


def _box_of(bndbox: Element, path: Path, corners: Corners) -> tuple[tuple[float, float, float, float], bool]:
    """[x, y, width, height] of a `<bndbox>` as it is written, and whether it begins where no pixel of VOC is."""
    values = []
    for tag in EDGES:
        child = bndbox.first(tag)
        value = as_float(child.text) if child else None
        if value is None:
            line, said = (child.line, f"is '{child.text[:40]}'") if child else (bndbox.line, "is missing")
            raise UserError(f"'{path}', line {line}: <{tag}> {said}; it must be a number")
        values.append(value)
    x0, y0, x1, y1 = values
    if corners == "edges":
        return (x0, y0, x1 - x0, y1 - y0), False
    return (x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1), x0 < 1 or y0 < 1


def _size_of(element: Element | None) -> tuple[int, int] | None:
    return stated_size({tag: as_whole(element.text_of(tag)) for tag in ("width", "height")} if element else {})


def _files_of(path: Path, images: Path | None, tally: Tally) -> tuple[Path, list[str]]:
    """The folder of the XML files, and those that are meant, relative to it."""
    if path.is_dir():
        folder = path / "Annotations" if (path / "Annotations").is_dir() else path
        files = [file for some in files_below(folder, [".xml"]).values() for file in some]
        if not files:
            raise UserError(f"folder '{folder}' holds no XML files of Pascal VOC")
        return folder, files
    if path.suffix.lower() == ".xml":
        return path.parent, [path.name]
    return _listed(path, images, tally)


def _listed(path: Path, images: Path | None, tally: Tally) -> tuple[Path, list[str]]:
    """The folder of the XML files, and those that a list names.

    A list of one class, such as `cat_train.txt`, has -1, 0 or 1 behind each name: whether the class is there.
    """
    around = [*path.absolute().parents[:3], *(images.absolute().parents[:1] if images else ())]
    folder = next((place / "Annotations" for place in around if (place / "Annotations").is_dir()), None)
    if folder is None:
        raise UserError(
            f"'{path}' is taken for a list of Pascal VOC (ImageSets), but there is no folder 'Annotations' near it; "
            "name the folder of the XML files itself"
        )
    files: dict[str, int] = {}
    for number, line in enumerate(read_lines(path, "annotation file"), 1):
        words = line.split()
        name = line if len(words) < 2 or words[-1] not in ("-1", "0", "1") else line[: -len(words[-1])].strip()
        if not name:
            continue
        stem = name[: -len(".xml")] if name.lower().endswith(".xml") else name
        if not (folder / f"{stem}.xml").is_file():
            raise UserError(f"'{path}', line {number}: there is no '{folder / stem}.xml'")
        if f"{stem}.xml" in files:
            tally.add(TWICE, f"line {number}")
        files.setdefault(f"{stem}.xml", number)
    if not files:
        raise UserError(f"'{path}' is taken for a list of Pascal VOC (ImageSets), but it is empty")
    return folder, list(files)


def _class_names(folder: Path, read: Sequence[_VocFile], listed: Path | None, whole: bool) -> list[str]:
    """The names of the classes in the order of their numbers."""
    found = {name for file in read for name, _, _ in file.objects}
    if listed is not None:
        names = read_class_list(listed)
        for file in read:
            for (name, _, _), line in zip(file.objects, file.lines):
                if name not in names:
                    raise UserError(f"'{file.path}', line {line}: the class '{name}' is not listed in '{listed}'")
        return names
    if not whole:  # another list of the same files must number them alike
        for some in files_below(folder, [".xml"]).values():
            for name in some:
                found |= {element.text_of("name") for element in read_xml(folder / name).all("object")}
    return sorted(found - {""})


class _Pictures:
    """Which picture an XML file is of."""

    def __init__(self, folder: Path, images: Path | None):
        beside = [folder.parent / name for name in ("JPEGImages", "images")]
        self._folder = images or next((place for place in beside if place.is_dir()), folder)
        self._there: dict[str, list[str]] | None = None

    def name_of(self, file: str, stated: str, tally: Tally) -> str:
        """The picture's name: as it is stated, unless that is of another picture than the XML file and the latter's is
        there, as after renaming; or nothing is stated.
        """
        stem = file[: -len(".xml")]
        inner, _, own = stem.rpartition("/")
        prefix = f"{inner}/" if inner else ""
        named = Path(stated).suffix.lower() in picture_suffixes()
        if named and Path(stated).stem == own:
            return prefix + stated
        if self._there is None:
            self._there = pictures_below(self._folder)
        there = self._there.get(stem) or self._there.get(own) or []
        if there:
            tally.add(RENAMED if named else NAMELESS, file)
            return there[0]
        if named:
            return prefix + stated
        tally.add(NAMELESS, file)
        return f"{stem}.jpg"


def _refuse_shared(files: Sequence[str], pictures: Sequence[LabelledPicture], folder: Path) -> None:
    first: dict[str, str] = {}
    for file, picture in zip(files, pictures):
        other = first.setdefault(picture.file_name, file)
        if other != file:
            raise UserError(f"'{folder / other}' and '{folder / file}' are both of the picture '{picture.file_name}'")
