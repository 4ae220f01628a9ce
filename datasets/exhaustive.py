"""Classes of which every object of a picture is listed, for data whose images are not searched for all (LVIS).

Of a class that was looked for and not found, all objects are listed: none. Of all others but these and those that have
objects nothing is known, and a class of which some objects are listed may have more of them in the same image.
"""

from collections.abc import Sequence

import numpy as np
import torch

from datasets.annotations import Annotations
from datasets.by_image import ByImage
from datasets.federated import LookedFor
from datasets.truth import possible_objects
from util.errors import UserError

KEY = "exhaustive"  # of a view's target: `[V]`, int64, labels; not there where nobody asks for it


def exhaustive_labels(annotations: Annotations, labels: np.ndarray) -> ByImage:
    """The labels of each image's classes of which every object is listed, in rising order of the file's classes.

    With P the classes that the image has objects or crowds of, N its `neg_category_ids` and E its
    `not_exhaustive_category_ids`, they are those of P and N without those of E: of these, LVIS's protocol calls a
    detection that finds no object wrong.

    Args:
        annotations: images, objects and lists.
        labels: `[C]`, of the file's classes, in its order.

    Raises:
        UserError: the images do not all have the lists.
    """
    if annotations.federated is None:
        raise UserError(
            f"loss.federated penalises classes that were looked for, but the images of '{annotations.source}' do not "
            "all have the lists neg_category_ids and not_exhaustive_category_ids, as LVIS's do; leave it out"
        )
    looked_for = LookedFor(annotations.federated, annotations.images, annotations.categories)
    objects = possible_objects(annotations)
    of_objects = looked_for.pairs(annotations.image_at[objects].astype(np.int64), annotations.class_at[objects])
    listed = np.setdiff1d(np.union1d(of_objects, looked_for.negatives), looked_for.not_exhaustive)
    images, classes = np.divmod(listed, looked_for.num_classes)
    return ByImage(labels[classes].astype(np.int32), images, len(annotations.images))


def exhaustive_in_all(targets: Sequence[dict]) -> dict:
    """What a picture made of several knows: a class counts if it does in each, for its objects are those of all.

    Args:
        targets: of the parts, at least one.

    Returns:
        An entry of the whole's target; none if the parts have none.
    """
    first, *others = targets
    if KEY not in first:
        return {}
    known = first[KEY]
    for other in others:
        known = known[torch.isin(known, other[KEY])]
    return {KEY: known}
