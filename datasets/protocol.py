"""By whose rules detections are scored: COCO's, or LVIS's for data whose images are not searched for all classes."""

from datasets.annotations import Annotations
from util.errors import UserError

COCO, LVIS = "coco", "lvis"
MAX_DETECTIONS = {COCO: 100, LVIS: 300}  # of an image, unless another number is asked for


def protocol_for(annotations: Annotations, chosen: str = "auto") -> str:
    """`coco` or `lvis`.

    Args:
        annotations: the truth.
        chosen: one of the two, or `auto`: LVIS's if the file says which classes are not in an image and how frequent
            each class is, as LVIS's files do.

    Raises:
        UserError: LVIS's protocol is chosen for a file that does not say which classes are not in an image.
    """
    federated = annotations.federated
    if chosen == LVIS and federated is None:
        raise UserError(
            f"the images of '{annotations.source}' do not all have the lists neg_category_ids and "
            "not_exhaustive_category_ids, which LVIS's protocol needs; take --data.protocol coco"
        )
    if chosen == "auto":
        return LVIS if federated is not None and federated.frequencies else COCO
    return chosen


def check_scorer(scorer: str, protocol: str) -> None:
    """Refuse a library where it is not used for the protocol.

    Raises:
        UserError: another scorer than our own for LVIS's.
    """
    if protocol == LVIS and scorer != "own":
        raise UserError(
            f"--scorer {scorer} is for COCO's protocol, but these data are scored by LVIS's; take --scorer own, or "
            "--data.protocol coco"
        )
