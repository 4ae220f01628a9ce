"""Numbers out of range are refused in a sentence, and no number of the configuration goes without a range."""

import math
import re
import typing
from dataclasses import dataclass, field
from typing import Annotated

import pytest

from analysis.looks.selection import choose_layers, choose_pixel, choose_queries
from main import COMMANDS
from models.from_config import build_model
from models.limits import check_model
from models.predictions import PredictionGroup, Predictions
from util import config
from util.config import BackboneConfig, Config, ModelConfig
from util.errors import UserError
from util.options import field_types, from_dict
from util.ranges import Range, check_ranges, ranges_of

AT_LEAST_0, AT_LEAST_1, SHARE = (0, math.inf), (1, math.inf), (0, 1)
# Written down by hand: what stands beside an option in util/config.py and util/command_config.py must be this.
TABLE = {
    "batch_size": AT_LEAST_1,
    "bound": SHARE,
    "cells": (1, 512),
    "data.color_jitter": AT_LEAST_0,
    "data.copy_paste": SHARE,
    "data.crop_range": AT_LEAST_1,
    "data.crop_sizes": AT_LEAST_1,
    "data.eval_size": AT_LEAST_1,
    "data.horizontal_flip": SHARE,
    "data.large_scale_jitter": SHARE,
    "data.max_size": AT_LEAST_1,
    "data.mixup": SHARE,
    "data.mosaic": SHARE,
    "data.strong_until": SHARE,
    "data.train_sizes": AT_LEAST_1,
    "data.vertical_flip": SHARE,
    "data.workers": AT_LEAST_0,
    "jobs": AT_LEAST_1,
    "loss.class_cost": AT_LEAST_0,
    "loss.class_weight": AT_LEAST_0,
    "loss.denoising_box_noise": AT_LEAST_0,
    "loss.denoising_label_noise": SHARE,
    "loss.distillation_weight": AT_LEAST_0,
    "loss.fgl_weight": AT_LEAST_0,
    "loss.focal_alpha": SHARE,
    "loss.focal_gamma": AT_LEAST_0,
    "loss.giou_cost": AT_LEAST_0,
    "loss.giou_weight": AT_LEAST_0,
    "loss.hybrid_repeats": AT_LEAST_1,
    "loss.hybrid_weight": AT_LEAST_0,
    "loss.l1_cost": AT_LEAST_0,
    "loss.l1_weight": AT_LEAST_0,
    "loss.mimic_regions": AT_LEAST_1,
    "loss.mimic_size": (32, 2048),
    "loss.mimic_weight": AT_LEAST_0,
    "model.backbone.dcn_initial_modulation": (0.001, 0.999),
    "model.backbone.dcn_offset_groups": AT_LEAST_1,
    "model.backbone.frozen_stages": AT_LEAST_0,
    "model.backbone.mean": SHARE,
    "model.backbone.output_stride": AT_LEAST_1,
    "model.backbone.std": (1e-6, math.inf),
    "model.box_epsilon": (1e-7, 0.1),
    "model.position_offset": (-1, 1),
    "model.position_temperature": (1.001, math.inf),
    "num_classes": AT_LEAST_1,
    "repeats": AT_LEAST_1,
    "seeds": AT_LEAST_1,
    "show": AT_LEAST_0,
    "size": AT_LEAST_1,
    "threshold": SHARE,
    "top_k": AT_LEAST_1,
    "train.batch_size": AT_LEAST_1,
    "train.clip_norm": AT_LEAST_0,
    "train.drop_epochs": AT_LEAST_0,
    "train.ema_decay": SHARE,
    "train.flat_share": SHARE,
    "train.layer_decay": (0.01, 1),
    "train.epochs": AT_LEAST_1,
    "train.eval_batch_size": AT_LEAST_1,
    "train.eval_every": AT_LEAST_1,
    "train.early_stop": AT_LEAST_1,
    "train.keep_checkpoints": AT_LEAST_1,
    "train.log_every": AT_LEAST_1,
    "train.lr": AT_LEAST_0,
    "train.lr_backbone": AT_LEAST_0,
    "train.lr_offset_factor": AT_LEAST_0,
    "train.max_images_per_device": AT_LEAST_1,
    "train.save_every": AT_LEAST_1,
    "train.seed": (0, 4294967295),
    "train.warmup_steps": AT_LEAST_0,
    "train.weight_decay": AT_LEAST_0,
    "tta.iou": SHARE,
    "tta.sigma": (0.01, math.inf),
    "tta.sizes": AT_LEAST_1,
    "worst": AT_LEAST_0,
}


def untrained() -> Predictions:
    import torch

    logits, boxes = torch.zeros(1, 1, 3, 2), torch.full((1, 1, 3, 4), 0.5)
    return Predictions([PredictionGroup("queries", logits, boxes)])


# Numbers that only the model, or the picture, can judge: what refuses -1.
JUDGED_LATER = {
    "model.backbone.dcn_stages": lambda: build_model(
        ModelConfig(backbone=BackboneConfig("test_resnet", "none", dcn="v2", dcn_stages=[-1])), 3
    ),
    "queries": lambda: choose_queries(untrained(), 0.5, 3, [-1]),
    "layers": lambda: choose_layers(6, [-1]),
    "pixel": lambda: choose_pixel([-1, 5], None, (10, 10)),
}


@dataclass
class Section:
    """A section"""

    shares: list[Annotated[float, Range(0, 1)]] = field(default_factory=lambda: [0.5])
    """numbers"""


@dataclass
class Options:
    """Options"""

    steps: Annotated[int, Range(1)] | None = None
    """a number, or none"""
    points: Annotated[int, Range(1)] | list[Annotated[int, Range(1)]] = 4
    """a number, or a list"""
    name: str = "x"
    """text"""
    section: Section = field(default_factory=Section)


def found() -> dict[str, tuple[float, float]]:
    """The ranges of every command's options."""
    every = {}
    for command in COMMANDS.values():
        for option, allowed in ranges_of(command.options).items():
            assert every.setdefault(option, allowed) == allowed, f"{option} has two ranges"
    return {option: (r.smallest, r.largest) for option, r in every.items()}


def with_value(kind: type, option: str, value: float) -> typing.Any:
    """Options of which one has a value of its own, in a list where it takes a list."""
    nested = [value] if "list" in str(field_types(kind)[option]) else value
    for part in reversed(option.split(".")):
        nested = {part: nested}
    return from_dict(kind, nested)


def takes_numbers(hint: typing.Any) -> bool:
    return hint in (int, float) or any(map(takes_numbers, typing.get_args(hint)))


def test_a_range_is_found_in_a_list_an_alternative_and_a_section():
    expected = {"steps": Range(1), "points": Range(1), "section.shares": Range(0, 1)}
    assert ranges_of(Options) == expected
    assert field_types(Options)["points"] == int | list[int]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(steps=0), "steps is 0; it must be at least 1"),
        (Options(points=[3, 0]), "points is [3, 0]; it must be at least 1"),
        (Options(section=Section([0.2, 1.5])), "section.shares is [0.2, 1.5]; it must be between 0 and 1"),
        (Options(section=Section([math.nan])), "section.shares is [nan]; it must be between 0 and 1"),
    ],
)
def test_what_lies_outside_is_named_with_its_range(options, said):
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        check_ranges(options)


def test_what_lies_inside_passes_and_so_does_null():
    check_ranges(Options())
    check_ranges(Options(steps=1, points=[1, 9], section=Section([0.0, 1.0])))


def test_every_option_has_the_range_that_it_should():
    assert found() == TABLE


@pytest.mark.parametrize("option", TABLE)
def test_both_ends_are_taken_and_what_lies_beyond_is_refused(option):
    smallest, largest = TABLE[option]
    bound = f"at least {smallest}" if largest == math.inf else f"between {smallest} and {largest}"
    for command in COMMANDS.values():
        types = field_types(command.options)
        if option not in types:
            continue
        step = 1 if "int" in str(types[option]) else 0.0001
        inside, outside = [smallest, min(largest, smallest + 1)], [smallest - step]
        if largest < math.inf:
            inside, outside = [*inside, largest], [*outside, largest + step]
        for value in inside:
            check_ranges(with_value(command.options, option, value))
        for value in outside:
            with pytest.raises(UserError, match=rf"^{re.escape(option)} is .*; it must be {re.escape(bound)}$"):
                check_ranges(with_value(command.options, option, value))


def test_commands_check_the_ranges_of_options_and_files(tmp_path):
    (tmp_path / "a.yaml").write_text("train: {drop_epochs: [30, -1]}")
    for argv in (["--config", str(tmp_path / "a.yaml")], ["--train.drop_epochs", "[30, -1]"]):
        with pytest.raises(UserError, match=r"^train.drop_epochs is \[30, -1\]; it must be at least 0$"):
            COMMANDS["train"].parse("train", argv)


def test_a_misspelt_range_cannot_be_written():
    """It stands where the type stands, and not under a name that nothing has."""
    names = dict(vars(config))
    exec("class Right:\n    steps: Positive = 1", names)
    with pytest.raises(NameError, match="Positve"):
        exec("class Wrong:\n    steps: Positve = 1", names)


def test_no_number_goes_without_a_range():
    """Numbers of the model are checked together, and a few others by those that know what there is."""
    numbers = {o for c in COMMANDS.values() for o, hint in field_types(c.options).items() if takes_numbers(hint)}
    together = {o for o in field_types(Config) if o.startswith("model.") and o.count(".") == 1}
    together &= numbers - set(TABLE)
    assert numbers == set(TABLE) | together | set(JUDGED_LATER)
    for option in together:
        with pytest.raises(UserError, match=rf"^{re.escape(option)} is -1"):
            check_model(ModelConfig(**{option.removeprefix("model."): -1}))


@pytest.mark.parametrize("option", JUDGED_LATER)
def test_what_has_no_range_is_refused_where_it_is_used(option):
    with pytest.raises(UserError, match=r"-1"):
        JUDGED_LATER[option]()


def test_a_metadata_that_is_no_range_would_be_seen():
    """What stands beside a type and is not a `Range` checks nothing; there is no such option."""
    for command in COMMANDS.values():
        assert not list(other_metadata(command.options))

    @dataclass
    class Wrong:
        """Options"""

        steps: Annotated[int, (1, math.inf)] = 1
        """a number"""

    assert list(other_metadata(Wrong)) == ["steps"]


def other_metadata(kind: type) -> typing.Iterator[str]:
    hints = typing.get_type_hints(kind, include_extras=True)
    plain = typing.get_type_hints(kind)
    ranged = ranges_of(kind)
    for name, hint in hints.items():
        if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__"):
            yield from (f"{name}.{inner}" for inner in other_metadata(hint))
        elif hint != plain[name] and name not in ranged:
            yield name
