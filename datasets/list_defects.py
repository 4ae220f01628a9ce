"""What is wrong with the lists of classes and of images."""

from collections import Counter
from typing import Any

from datasets.data_report import DataReport
from datasets.findings import Defect
from datasets.lvis import LISTS, is_list_of_ids
from datasets.values import as_text, is_id, is_name, stated_size, typed


def check_categories(entries: list, report: DataReport) -> dict:
    """Add what is wrong with the list of classes to the report; the names of those that can be read, by their ids."""
    names: dict[Any, str] = {}
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not is_id(entry.get("id")) or not is_name(entry.get("name")):
            detail = f"entry {i} needs 'id', a number, and 'name', text"
            report.defects.append(Defect("malformed category", None, None, detail))
        elif entry["id"] in names:
            report.defects.append(
                Defect(
                    "duplicate category id", None, None, f"{entry['id']} is {names[entry['id']]} and {entry['name']}"
                )
            )
        else:
            names[entry["id"]] = as_text(entry["name"])
    for name, count in Counter(names.values()).items():
        if count > 1:
            report.defects.append(Defect("duplicate category name", None, None, f"'{name}' names {count} categories"))
    return names


def check_entries(entries: list, report: DataReport) -> dict:
    """Add what is wrong with the list of images to the report; copies of the entries that can be read, by their ids."""
    images: dict[Any, dict] = {}
    files: Counter[str] = Counter()
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not is_id(entry.get("id")) or not isinstance(entry.get("file_name"), str):
            detail = f"entry {i} needs 'id', a number, and 'file_name', text"
            report.defects.append(Defect("malformed image entry", None, None, detail))
            continue
        files[entry["file_name"]] += 1
        for key in LISTS:  # of LVIS
            if entry.get(key) is not None and not is_list_of_ids(entry[key]):
                detail = f"{key} {typed(entry[key])} must be a list of ids"
                report.defects.append(Defect("malformed image entry", entry["file_name"], None, detail))
        if entry["id"] in images:
            report.defects.append(
                Defect(
                    "duplicate image id",
                    entry["file_name"],
                    None,
                    f"id {entry['id']} is also of {images[entry['id']]['file_name']}",
                )
            )
        else:
            images[entry["id"]] = dict(entry)
            stated = (entry.get("width"), entry.get("height"))
            if stated_size(entry) is None and stated != (None, None):
                detail = f"width {stated[0]!r} and height {stated[1]!r} must be whole numbers of pixels"
                report.defects.append(Defect("malformed image entry", entry["file_name"], None, detail))
    report.defects += [
        Defect("image listed twice", file, None, f"listed {n} times") for file, n in files.items() if n > 1
    ]
    report.images = len(images)
    return images
