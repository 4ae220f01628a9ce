"""Which pictures and videos a path, a folder or a pattern names, and what of it is left out."""

import functools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, features

from datasets.images import read_image
from datasets.pillow import SETTINGS
from util.errors import UserError
from util.files import at_home, matches
from util.progress import progress

# Formats that Pillow names but cannot decode by itself, documents, and data that are not pictures.
NOT_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MCIDAS", "MPEG", "PDF", "SPIDER", "WMF"}
NEEDS_FEATURE = {"AVIF": "avif", "JPEG": "jpg", "JPEG2000": "jpg_2000", "WEBP": "webp"}  # of this build of Pillow
BY_CONTENT = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "JPEG2000", "AVIF")  # known for certain by first bytes
# Pictures that people hand over and Pillow cannot open. Raw files of cameras look like TIFF, with a small preview in
# place of the picture.
CAMERA_RAW = {".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw"}
UNREADABLE = CAMERA_RAW | {".eps", ".exr", ".hdr", ".heic", ".heif", ".hif", ".jxl", ".pdf", ".svg", ".avif", ".webp"}
VIDEOS = {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".webm"}
VIDEOS |= {".wmv"}


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """The suffixes, such as `.jpg`, of all formats of pictures that Pillow opens here."""
    Image.init()
    lacking = {name for name, feature in NEEDS_FEATURE.items() if not features.check(feature)}
    opened = Image.OPEN.keys() - NOT_PICTURES - lacking
    # Pillow reads .mpo as JPEG, and writes it under its own name.
    return frozenset(s for s, name in Image.registered_extensions().items() if name in opened or name == "MPO")


def list_pictures(source: str | Path) -> list[Path]:
    """The pictures that a file, a folder or a pattern names, in order. Says on stderr what of it is left out.

    A folder gives the pictures in itself, not those in its folders, which the pattern `folder/**/*` reaches. A path
    that exists is never taken for a pattern, whatever brackets it has. A file that is named itself is listed whatever
    it is, unless it is a video; of folders and patterns, a file is a picture by its suffix, or else by its first bytes.

    Args:
        source: file, folder or pattern; `~` is the home folder.

    Raises:
        UserError: nothing there, or no pictures.
    """
    path = Path(at_home(source))
    if path.is_file() and _is_video(path):
        raise UserError(f"'{source}' is a video; extract a frame of it as PNG, or let predict look at it")
    return _list(source, with_videos=False)[0]


def list_media(source: str | Path) -> tuple[list[Path], list[Path]]:
    """As `list_pictures`, and the videos, known by their suffix; beside pictures only if PyAV is installed."""
    pictures, videos = _list(source, with_videos=True)
    if pictures and videos and find_spec("av") is None:
        print(f"left out of '{source}': {_kinds(videos)}; videos need PyAV: pip install av", file=sys.stderr)
        return pictures, []
    return pictures, videos


def _list(source: str | Path, with_videos: bool) -> tuple[list[Path], list[Path]]:
    path = Path(at_home(source))
    if path.is_file():
        return ([], [path]) if with_videos and _is_video(path) else ([path], [])
    kinds = "pictures or videos" if with_videos else "pictures"
    is_folder = path.is_dir()
    found = sorted(path.iterdir()) if is_folder else matches(str(path))
    if not found and not is_folder:
        raise UserError(f"no picture, {'video, ' if with_videos else ''}folder or pattern '{source}'")
    if not is_folder and all(p.is_dir() for p in found):
        raise UserError(f"pattern '{source}' matches folders alone; '{path / '*'}' reaches the pictures in them")
    if not is_folder:
        found = [p for p in found if not p.is_dir()]
    videos = [p for p in found if p.is_file() and _is_video(p)] if with_videos else []
    pictures = [p for p in found if p.is_file() and not _is_video(p) and _is_picture(p)]
    left_out = _kinds(set(found) - set(pictures) - set(videos))
    inner = any(p.is_dir() and not p.name.startswith(".") for p in found)
    mend = (f"; '{path / '**' / '*'}' also reaches what is in folders" if inner else "") + _mend(found, with_videos)
    if not pictures and not videos:
        there = f", only {left_out}" if left_out else ""
        raise UserError(f"{'folder' if is_folder else 'pattern'} '{source}' holds no {kinds}{there}{mend}")
    if left_out:
        print(f"left out of '{source}': {left_out}{mend}", file=sys.stderr)
    return pictures, videos


def read_each(paths: Sequence[Path], description: str) -> Iterator[tuple[Path, Image.Image]]:
    """Every picture that can be read, with its path; says on stderr why the others are left out.

    Of a picture with several frames (GIF, MPO, TIFF) the first is read; that is said once.

    Raises:
        UserError: at the end, if none could be read.
    """
    read, told = 0, False
    for path in progress(paths, description):
        try:
            picture = read_image(path)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        if not told and has_several_frames(path):
            told = True
            print(f"'{path}' has several frames; of such pictures the first frame is read", file=sys.stderr)
        read += 1
        yield path, picture
    if not read:
        raise UserError(
            f"the picture '{paths[0]}' could not be read"
            if len(paths) == 1
            else f"none of the {len(paths)} pictures could be read"
        )


def has_several_frames(path: Path) -> bool:
    """Whether a file that can be read as a picture holds more than one."""
    try:
        with _opened(path) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # damaged after its first frame, which is all that is read
        return False


@contextmanager
def _opened(path: Path, formats: tuple[str, ...] | None = None) -> Iterator[Image.Image]:
    """A picture whose header alone is looked at; its size is no matter."""
    with SETTINGS.shared(), Image.open(path, formats=formats) as image:
        yield image


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS and not path.name.startswith(".")


def _is_picture(path: Path) -> bool:
    suffix = path.suffix.lower()
    if path.name.startswith("."):  # what file managers keep beside pictures
        return False
    if suffix in picture_suffixes():
        return True
    if suffix in CAMERA_RAW:
        return False
    try:
        with _opened(path, BY_CONTENT):
            return True
    except Exception:  # by the decoders' many kinds; it is a question, and the answer is no
        return False


def _kinds(paths: Iterable[Path]) -> str:
    """Counts of what is left out, by kind, the most frequent first: `3 .txt, 1 .heic, 2 folders`."""
    counts: Counter[str] = Counter()
    folders = hidden = broken = 0
    for path in paths:
        if path.name.startswith("."):
            hidden += 1
        elif path.is_dir():
            folders += 1
        elif not path.exists():
            broken += 1
        else:
            counts[path.suffix.lower() or "without a suffix"] += 1
    parts = [f"{n} {kind}" for kind, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    parts += [f"{folders} folder{'s' if folders > 1 else ''}"] if folders else []
    parts += [f"{broken} broken link{'s' if broken > 1 else ''}"] if broken else []
    parts += [f"{hidden} hidden"] if hidden else []
    return ", ".join(parts)


def _mend(paths: Iterable[Path], with_videos: bool) -> str:
    """What to do with files that cannot be opened but hold pictures."""
    there = {p.suffix.lower() for p in paths if p.is_file() and not p.name.startswith(".")} - picture_suffixes()
    unreadable, videos = sorted(there & UNREADABLE), [] if with_videos else sorted(there & VIDEOS)
    text = f"; convert {', '.join(unreadable)} to JPEG or PNG, Pillow cannot open it here" if unreadable else ""
    return text + (f"; extract the frames of {', '.join(videos)}" if videos else "")
