"""Names of timm's backbones: an architecture, and after a dot the tag of one of its weights (`resnet50.tv_in1k`)."""

import timm
from timm.models import split_model_name_tag

from util.config import BackboneConfig
from util.errors import UserError


def architecture(name: str) -> str:
    """A backbone's name without the tag of its weights."""
    return split_model_name_tag(name)[0]


def name_weights(config: BackboneConfig, brought_by: str | None = None) -> None:
    """Put the weights that a backbone starts from into its name, so that what is saved tells them.

    timm's default weights of an architecture change from version to version.

    Args:
        config: the `model.backbone` section, whose name may lack a tag.
        brought_by: name of the backbone in a checkpoint that brings the weights, if there is one. It counts where
            both are one architecture.
    """
    if brought_by and architecture(brought_by) == architecture(config.name):
        config.name = brought_by
    elif config.weights == "timm" and timm.is_model(config.name) and "." not in config.name:
        default = timm.get_pretrained_cfg(config.name)
        if default is not None and default.tag:
            config.name = f"{config.name}.{default.tag}"


def known_name(name: str, pretrained: bool) -> str:
    """A name that timm can build.

    A tag that this version of timm does not know stands in the way of its weights alone: without them the architecture
    is built.

    Raises:
        UserError: timm has the architecture, but no such weights, and they are wanted.
    """
    try:
        timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:  # so timm says that it knows the architecture, but not the tag
        base = architecture(name)
        if not pretrained:
            return base
        tags = [split_model_name_tag(known)[1] for known in timm.list_pretrained(f"{base}.*")]
        raise UserError(
            f"model.backbone.name: timm has no weights '{name}'; of {base} it has {', '.join(tags) or 'none'}"
        ) from None
    return name
