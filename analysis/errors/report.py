"""The report of errors: one HTML file that needs no other files, and can be read without scripts."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from analysis.errors.confusion import most_confused
from analysis.errors.diagnosis import Diagnosis
from analysis.errors.error_pictures import COLOURS
from analysis.errors.figures import confusion_figure, precision_recall_figure, threshold_figure
from analysis.errors.html_pieces import bar, chip, class_name, data_url, figure, hex_colour, matrix_cell, section
from analysis.errors.tide import CORRECT, IGNORED, TYPES

_TABLE = 16  # with up to so many classes the confusion matrix is a table with every count, with more a heat map
_PAIRS = 15  # how many of the most confused pairs are listed
_ASSETS = Path(__file__).parent / "assets"


def html_report(
    diagnosis: Diagnosis, subject: Mapping[str, str], pictures: Sequence[Image.Image | None], note: str = ""
) -> str:
    """The whole page.

    Args:
        diagnosis: the errors to show.
        subject: what was evaluated: name and value of each line below the title.
        pictures: pictures of `diagnosis.worst`; None for those that could not be drawn.
        note: why pictures are missing, or "".
    """
    sections = [
        _tiles(diagnosis),
        _errors(diagnosis),
        _classes(diagnosis),
        _curves(diagnosis),
        _confusion(diagnosis),
        _sizes(diagnosis),
        _worst(diagnosis, pictures, note),
    ]
    style, script = ((_ASSETS / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    lines = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in subject.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Where the detector errs</title>
<style>
{style}</style>
</head>
<body>
<main>
<header>
<h1>Where the detector errs</h1>
<dl class="subject">{lines}</dl>
</header>
{"".join(sections)}
</main>
<script>
{script}</script>
</body>
</html>
"""


def _tiles(diagnosis: Diagnosis) -> str:
    tiles = "".join(
        f'<div class="tile"><span>{escape(name.replace("_", " "))}</span><strong>{figure(value)}</strong></div>'
        for name, value in diagnosis.scores.figures.items()
    )
    return section(
        "Scores",
        "The COCO figures. AP is the mean over IoU 0.5 to 0.95, AP50 and AP75 are at one IoU; AR is the recall "
        "with so many detections an image. Small objects have less than 32² pixels, large ones more than 96².",
        f'<div class="tiles">{tiles}</div>',
    )


def _errors(diagnosis: Diagnosis) -> str:
    found = diagnosis.losses
    rows = found.rows()
    largest = max([gain for _, _, gain in rows if gain is not None] + [1e-9])
    meanings = {
        **TYPES,
        "all false positives": "all wrong detections, of any type",
        "all false negatives": "all objects that were not found",
    }
    body = "".join(
        f'<tr{" class=sum" if name not in TYPES else ""}><th scope="row">{chip(name)}{escape(name)}</th>'
        f'<td class="text">{escape(meanings[name])}</td><td>{count:,}</td>'
        f'<td class="bar">{bar(gain, largest, hex_colour(COLOURS.get(name, (97, 110, 124))))}</td></tr>'
        for name, count, gain in rows
    )
    base = "There are no objects, so there is no AP to lose." if found.ap50 is None else f"AP50 is {found.ap50:.3f}."
    return section(
        "What costs AP",
        f"{base} Each bar is the gain if only errors of this type were corrected (TIDE, Bolya et al. 2020). "
        "All detections count, also those with very low scores: many errors cost little if their scores are low. "
        "The gains do not add up to the whole loss, because correcting one error uncovers another.",
        '<div class="scroll"><table><thead><tr><th>error</th><th class="text">what it is</th><th>count</th>'
        f'<th class="bar">AP50 lost</th></tr></thead><tbody>{body}</tbody></table></div>',
    )


def _classes(diagnosis: Diagnosis) -> str:
    heads = ["class", "objects", "AP", "AP50", "AP75", "best F1", "at score", "precision", "recall", *TYPES]
    rows = []
    for k, name in enumerate(diagnosis.names):
        errors = [int(diagnosis.losses.counts[t][k]) for t in TYPES]
        if not any(errors) and not diagnosis.scores.per_class[name]["objects"]:
            continue
        figures, curve = diagnosis.scores.per_class[name], diagnosis.curves[k]
        best = curve.best if curve else None
        point = [None] * 4 if best is None else [best.f1, best.threshold, best.precision, best.recall]
        cells = [figure(figures[f]) for f in ("AP", "AP50", "AP75")] + [figure(v) for v in point]
        row = "".join(f"<td>{c}</td>" for c in [f"{figures['objects']:,}", *cells])
        row += "".join(f"<td>{n:,}</td>" if n else '<td class="zero">0</td>' for n in errors)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{row}</tr>')
    absent = len(diagnosis.names) - len(rows)
    left_out = f" {absent} classes without objects and detections are left out." if absent else ""
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    overall = diagnosis.overall.best if diagnosis.overall else None
    advice = (
        f" With one threshold for all classes, F1 is best at {overall.threshold:.3f}: precision "
        f"{overall.precision:.3f}, recall {overall.recall:.3f}, F1 {overall.f1:.3f}."
        if overall
        else ""
    )
    return section(
        "By class",
        "“At score” is the score threshold with the best F1 at IoU 0.5; precision and recall are at this threshold. "
        "The last columns count errors: wrong detections by the detection's class, missed objects by the object's. "
        f"A click on a heading sorts.{left_out}{escape(advice)}",
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>",
    )


def _curves(diagnosis: Diagnosis) -> str:
    if diagnosis.overall is None:
        return section("Curves", "There are no objects, so there is nothing to draw.", "")
    return section(
        "Precision and recall",
        "The mean height of a curve is the AP of its class. A curve that ends early has objects that are never found; "
        "one that falls early has confident mistakes.",
        f'<div class="figure">{precision_recall_figure(diagnosis.precision, diagnosis.names)}</div>',
    ) + section(
        "Choosing a score threshold",
        "Precision, recall and F1 at IoU 0.5 if only detections from this score on are kept. A dotted line marks the "
        "best F1.",
        f'<div class="figure">{threshold_figure(diagnosis.curves, diagnosis.overall, diagnosis.names)}</div>',
    )


def _confusion(diagnosis: Diagnosis) -> str:
    matrix, names = diagnosis.confusion, [*diagnosis.names, "background"]
    last = len(names) - 1
    present = [k for k in range(last) if matrix[k].any() or matrix[:, k].any()] + [last]
    absent = last + 1 - len(present)
    part = matrix[np.ix_(present, present)]
    labels = [names[k] for k in present]
    shares = part / np.maximum(part.sum(1, keepdims=True), 1)
    left_out = f" {absent} classes without either are left out." if absent else ""
    about = (
        f"Objects and the classes they were taken for. Detections with a score from {diagnosis.threshold:g} on, the "
        "best first, each take the object of any class that they overlap most, at IoU 0.5 or more. Objects in the "
        f"column “background” were missed; detections in the row “background” are spurious.{left_out}"
    )
    if len(present) - 1 <= _TABLE:
        about += " Shades are shares of a row."
        head = "".join(f'<th scope="col">{class_name(label, k, last)}</th>' for label, k in zip(labels, present))
        body = "".join(
            f'<tr><th scope="row">{class_name(label, k, last)}</th>'
            + "".join(
                matrix_cell(int(part[i, j]), float(shares[i, j]), i == j, i == j == len(part) - 1)
                for j in range(len(part))
            )
            + "</tr>"
            for i, (label, k) in enumerate(zip(labels, present))
        )
        shown = f'<div class="scroll"><table class="matrix"><thead><tr><th class="text">object ↓ taken for →</th>{head}'
        shown += f"</tr></thead><tbody>{body}</tbody></table></div>"
    else:
        about += " Shades are square roots of the shares of a row, to make rare mistakes visible."
        shown = f'<div class="figure">{confusion_figure(shares, labels, labels)}</div>'
    pairs = most_confused(matrix, _PAIRS)
    if pairs and len(present) > 3:
        body = "".join(
            f'<tr><th scope="row">{escape(names[r])}</th><td class="text">{escape(names[c])}</td><td>{n:,}</td>'
            f"<td>{n / matrix[r].sum():.1%}</td></tr>"
            for r, c, n in pairs
        )
        shown += (
            '<h3>Most confused</h3><div class="scroll"><table class="narrow"><thead><tr><th>object</th>'
            '<th class="text">taken for</th>'
            f"<th>times</th><th>of its objects</th></tr></thead><tbody>{body}</tbody></table></div>"
        )
    return section("What is taken for what", about, shown)


def _sizes(diagnosis: Diagnosis) -> str:
    figures = diagnosis.scores.figures
    sizes = "".join(
        f'<tr><th scope="row">{size}</th><td class="bar">{bar(figures[f"AP_{size}"], 1, "#0072b2")}</td>'
        f'<td class="bar">{bar(figures[f"AR_{size}"], 1, "#56b4e9")}</td></tr>'
        for size in ("small", "medium", "large")
    )
    counts = "".join(
        f'<tr><th scope="row">{b.name}</th><td>{b.images:,}</td><td>{b.objects:,}</td>'
        f'<td class="bar">{bar(b.figures["AP"], 1, "#0072b2")}</td><td>{figure(b.figures["AP50"])}</td>'
        f"<td>{b.spurious:.2f}</td></tr>"
        for b in diagnosis.bins
    )
    return section(
        "By size and by number of objects",
        "Images with a similar number of objects are scored together; AP of few images is noisy. “Spurious” is the "
        f"average number of wrong detections in an image, with a score from {diagnosis.threshold:g} on.",
        '<div class="columns"><div class="scroll"><table><thead><tr><th>object size</th><th class="bar">AP</th>'
        f'<th class="bar">AR</th></tr></thead><tbody>{sizes}</tbody></table></div>'
        '<div class="scroll"><table><thead><tr><th>objects in image</th><th>images</th><th>objects</th>'
        f'<th class="bar">AP</th><th>AP50</th><th>spurious</th></tr></thead>'
        f"<tbody>{counts}</tbody></table></div></div>",
    )


def _worst(diagnosis: Diagnosis, pictures: Sequence[Image.Image | None], note: str) -> str:
    about = (
        "Ranked by penalty: 1 for each object that was not found with a score from "
        f"{diagnosis.threshold:g} on, and the score of each wrong detection from there on. "
        "The ground truth is on the left, the detections are on the right."
    )
    if not diagnosis.worst:
        return section("Worst images", "No image has an overlooked object or a confident mistake.", "")
    kinds = [CORRECT, *TYPES, IGNORED]
    names = {"missed": "missed object", IGNORED: "on a crowd, ignored"}
    legend = "".join(f"<li>{chip(kind)}{escape(names.get(kind, kind))}</li>" for kind in kinds)
    shown = f'<ul class="legend">{legend}</ul>' if any(pictures) else ""
    if note:
        shown += f'<p class="note">{escape(note)}</p>'
    for number, (rank, picture) in enumerate(zip(diagnosis.worst, pictures), 1):
        name = diagnosis.scenes[rank.index].image.file_name
        image = f'<img alt="ground truth and detections" src="{data_url(picture)}">' if picture else ""
        shown += (
            f"<figure>{image}<figcaption><b>{number}. {escape(name)}</b> penalty {rank.penalty:.2f}: "
            f"{rank.unfound} not found, {rank.wrong} wrong</figcaption></figure>"
        )
    return section("Worst images", about, shown)
