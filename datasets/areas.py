"""What is said of areas that a file states and that none can be."""

from pathlib import Path


def remark_on_areas(unfit: int, count: int, source: str | Path) -> str:
    """A sentence on `unfit` of `count` annotations whose stated area is replaced by that of the box."""
    return (
        f"'{source}': the area of {unfit} of {count} annotations is no positive number; width x height is taken instead"
    )
