"""Pillow's process-wide settings, as they must be while a picture is read here, and as they were afterwards."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageFile, PngImagePlugin

# Pillow's own limits speak of attacks, and are lower than some orthophotos and than what Photoshop notes in a PNG.
LIMITS = (
    (Image, "MAX_IMAGE_PIXELS", None),  # `datasets.images` has a limit of its own
    (PngImagePlugin, "MAX_TEXT_CHUNK", 2**26),
    (PngImagePlugin, "MAX_TEXT_MEMORY", 2**28),
)


class Settings:
    """Holds the settings while pictures are read, in any number of threads.

    Pillow keeps them in module variables. Readers share them: the first one sets them, the last one restores them. A
    reader that accepts what is left of a damaged file is alone, or another thread would accept damage, too.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers, self._alone, self._waiting = 0, False, 0
        self._before: list = []

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Read with others: a damaged file is an error."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not self._waiting)
            self._enter()
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def lenient(self) -> Iterator[None]:
        """Read alone: what can be decoded of a damaged file is the picture."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not self._readers)
            finally:
                self._waiting -= 1
            self._alone = True
            self._enter()
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before
            self._leave()

    def _enter(self) -> None:
        if not self._readers:
            self._before = [getattr(module, name) for module, name, _ in LIMITS]
            for module, name, value in LIMITS:
                setattr(module, name, value)
        self._readers += 1

    def _leave(self) -> None:
        with self._changed:
            self._readers, self._alone = self._readers - 1, False
            if not self._readers:
                for (module, name, _), value in zip(LIMITS, self._before):
                    setattr(module, name, value)
            self._changed.notify_all()


SETTINGS = Settings()


def _anew() -> None:
    """In a process that was forked while a thread was reading: that thread is not here, and will never leave."""
    SETTINGS.__init__()  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)
