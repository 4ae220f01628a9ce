"""From detections to a folder with the report of their errors."""

import json
from pathlib import Path

from PIL import Image

from analysis.errors.diagnosis import Diagnosis, diagnose
from analysis.errors.error_pictures import draw_errors
from analysis.errors.report import html_report
from datasets.image_folder import Pictures
from engine.score import Evaluation
from util.errors import UserError
from util.files import make_folder
from util.fonts import legend_of
from util.tables import table


def analyse(evaluation: Evaluation, output: Path, threshold: float = 0.5, worst: int = 8) -> str:
    """Write `report.html`, `analysis.json` and `worst/*.png`.

    Args:
        evaluation: what was found; without its pictures nothing is drawn.
        output: folder, which is there.
        threshold: see `diagnosis.diagnose`.
        worst: how many images to draw at most.

    Returns:
        The table of errors, and where the report is, to print.

    Raises:
        UserError: see `datasets.evaluation.evaluate_detections`. A picture that cannot be read is no error: the report
            says so.
    """
    rules = (evaluation.max_detections, threshold, worst, evaluation.protocol)
    diagnosis = diagnose(evaluation.annotations, evaluation.results, *rules)
    subject = evaluation.subject
    counts = {
        "images": f"{len(diagnosis.scenes):,}",
        "objects": f"{sum(len(s.truth_classes) for s in diagnosis.scenes):,}",
        "classes": f"{len(diagnosis.names):,}",
        "boxes found": f"{sum(len(s.scores) for s in diagnosis.scenes):,}",
    }
    pictures, note = _draw(diagnosis, evaluation.pictures)
    for old in (output / "worst").glob("[0-9]*.png"):  # of an earlier report
        old.unlink()
    for number, picture in enumerate(pictures, 1):
        if picture:
            picture.save(make_folder(output / "worst", "output") / f"{number:02}.png")
    text = json.dumps({"subject": {**subject, **counts}, **diagnosis.to_dict()}, allow_nan=False)
    (output / "analysis.json").write_text(text, encoding="utf-8")
    report = output / "report.html"
    report.write_text(html_report(diagnosis, {**subject, **counts}, pictures, note), encoding="utf-8")
    legend = "\n" + legend_of(dict(enumerate(diagnosis.names))) if any(pictures) else ""
    rows = [(name, n, "-" if gain is None else gain) for name, n, gain in diagnosis.losses.rows()]
    return f"{table(['error', 'count', 'AP50 lost'], rows)}\n\nthe report is {report}{legend.rstrip()}"


def _draw(diagnosis: Diagnosis, source: Pictures | None) -> tuple[list[Image.Image | None], str]:
    """A picture of each of the worst images, None where there is none; and a note on those."""
    if source is None or not source.folder.is_dir():
        where = f"no image folder '{source.folder}'" if source else "the folder of the images is not known"
        return [None] * len(diagnosis.worst), f"Not drawn: {where}; give it with --data.val_images or --data.root."
    pictures: list[Image.Image | None] = []
    unread: list[str] = []
    for rank in diagnosis.worst:
        scene, verdict = diagnosis.scenes[rank.index], diagnosis.verdicts[rank.index]
        image = scene.image
        try:
            picture = source.read(image)
        except UserError as error:
            pictures.append(None)
            unread.append(str(error))
        else:
            pictures.append(draw_errors(picture, scene, verdict, diagnosis.names, diagnosis.threshold))
    return pictures, "Not drawn: " + "; ".join(unread) + "." if unread else ""
