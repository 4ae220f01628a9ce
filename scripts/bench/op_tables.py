"""The report of the benchmark of the operator as text and tables in Markdown."""

from collections.abc import Callable, Sequence

from scripts.bench.op_contenders import PACKAGE, label
from scripts.bench.timing import figure, machine_line, markdown_table

DIRECTIONS = ("forward", "backward")
RIVALS = ("reference", "package")


def markdown(report: dict) -> str:
    """The machine, the backends, the tables and the notes of a report (the content of the JSON file)."""
    about, settings = report["machine"], report["settings"]
    small = ", **small maps (--quick)**" if settings["quick"] else ""
    method = f"Batch {settings['batch']}, medians of {settings['repeats']} rounds{small}."
    lines = [f"{machine_line(about)}, {about['date'][:10]}. {method}", ""]
    lines += [f"- {label(name)}: {text}" for name, text in about["backends"].items()]
    main_cases = [c for c in report["cases"] if c["case"] != "overhead"]
    tiny_cases = [c for c in report["cases"] if c["case"] == "overhead"]
    if main_cases:
        columns = [f"{d} ms" for d in DIRECTIONS] + [f"{who} / this, {d}" for who in RIVALS for d in DIRECTIONS]
        lines += ["", "Time; a ratio above 1 means that this contender is faster.", ""]
        lines.append(_table([*columns, "largest error"], main_cases, _times))
        columns = [f"{d} {what}" for d in DIRECTIONS for what in ("MB", "floor ms", "GB/s", "of floor")]
        heading = "Compulsory traffic, beside a copy (read + write) timed in the same rounds; 1 is the copy's speed."
        lines += ["", heading, "", _table(["copy GB/s", *columns], main_cases, _traffic)]
    if tiny_cases:
        both = ("forward", "forward + backward")
        columns = [f"{d} µs" for d in both] + [f"{who} / this, {d}" for who in RIVALS for d in both]
        heading = "A call's overhead: one map of 2x2, 2 queries, 2 heads of 4 channels."
        lines += ["", heading, "", _table(columns, tiny_cases, _overhead)]
    if report["notes"]:
        lines += ["", *(f"- {note}" for note in report["notes"])]
    return "\n".join(lines)


def _table(columns: Sequence[str], cases: Sequence[dict], cells: Callable[[dict, dict], list[str]]) -> str:
    """A row for each case and contender; `cells` makes the figures of a row from both."""
    rows = []
    for case in cases:
        for row in case["contenders"]:
            name = row["label"] + (f" ({row['failure']})" if row["failure"] else "")
            rows.append([case["case"], case["dtype"], name, *cells(case, row)])
    return markdown_table(["case", "dtype", "contender", *columns], rows, words=3)


def _times(case: dict, row: dict) -> list[str]:
    cells = [_figure(row, d, "seconds", 1e3) for d in DIRECTIONS]
    cells += [_figure(row, d, f"{who}_ratio") for who in RIVALS for d in DIRECTIONS]
    error = row.get("largest_error")
    return [*cells, "-" if error is None else f"{error:.1e}"]


def _traffic(case: dict, row: dict) -> list[str]:
    cells = [_figure({"copy": case}, "copy", "copy_bytes_per_second", 1e-9)]
    for d in DIRECTIONS:
        cells += [_figure(row, d, "bytes", 1e-6), _figure(row, d, "floor_seconds", 1e3)]
        cells += [_figure(row, d, "bytes_per_second", 1e-9), _figure(row, d, "of_floor")]
    return cells


def _overhead(case: dict, row: dict) -> list[str]:
    cells = [_figure(row, d, "seconds", 1e6) for d in ("forward", "both")]
    return cells + [_figure(row, d, f"{who}_ratio") for who in RIVALS for d in ("forward", "both")]


def _figure(row: dict, direction: str, key: str, factor: float = 1) -> str:
    number = row.get(direction, {}).get(key)
    return figure(None if number is None else number * factor)


def notes(report: dict, names: Sequence[str], missing: dict[str, str]) -> list[str]:
    """Sentences that a reader of the tables must know.

    Args:
        report: the report, with machine, settings and cases.
        names: names of the contenders that were measured.
        missing: the contenders that cannot run, with the reason.
    """
    settings, device = report["settings"], report["machine"]["device"]
    found = ["Caches are not flushed between calls: small cases may be read from them, and be faster than the floor."]
    if "package" in names and {"bfloat16", "float16"} & set(settings["dtype"]):
        found.append(
            f"In half precision {PACKAGE} takes locations and weights in the value's dtype, rounded and with fewer "
            "bytes; ours and the reference take them in fp32."
        )
    absent = [name for name in missing if not settings["backends"] and name in (device.split(":")[0], "package")]
    found += [f"Not measured: {missing[name]}." for name in absent]
    noisy = []
    for case in report["cases"]:
        for row in case["contenders"]:
            for direction, words in (("forward", "forward"), ("both", "forward + backward")):
                low, _, high = row.get(direction, {}).get("quartiles", (1, 1, 1))
                if high > 1.3 * low:
                    noisy.append(f"{case['case']} {case['dtype']} {row['label']} {words} {high / low:.1f}")
    if noisy:
        found.append(f"Noisy, measure again on a quieter machine (upper over lower quartile): {'; '.join(noisy)}.")
    return found
