"""From swept options to cells."""

import pytest

from ablation.grid import Variant, cells_of, parse_grid, variants_of
from util.config import Config
from util.errors import UserError


def test_values_keep_their_types_and_lists_stand_in_brackets():
    grid = parse_grid(["model.num_points=1,[4,4,4,4],[8,4,2,1]", "model.two_stage=true,false", "train.schedule=cosine"])
    assert grid == {
        "model.num_points": [1, [4, 4, 4, 4], [8, 4, 2, 1]],
        "model.two_stage": [True, False],
        "train.schedule": ["cosine"],
    }


def test_all_combinations_for_each_seed_the_first_seed_first():
    variants = variants_of({"model.num_points": [1, 2], "model.num_heads": [4, 8]}, {})
    assert [v.name for v in variants] == [
        "num_points=1,num_heads=4",
        "num_points=1,num_heads=8",
        "num_points=2,num_heads=4",
        "num_points=2,num_heads=8",
    ]
    cells = cells_of(Config(), variants, 2)
    assert [c.seed for c in cells] == [42] * 4 + [43] * 4
    assert cells[5].name == "num_points=1,num_heads=8/seed43"
    model, train = cells[5].config.model, cells[5].config.train
    assert (model.num_points, model.num_heads, train.seed) == (1, 8, 43)
    assert cells[0].config.model.num_heads == 4 and cells[0].config.train.seed == 42


def test_named_variants_are_combined_with_the_grid():
    named = {"plain": {}, "refined, twice": {"model.refinement": True}}
    variants = variants_of({"model.num_points": [[4, 2], [1, 1]]}, named)
    assert [v.name for v in variants] == [
        "plain,num_points=4-2",
        "plain,num_points=1-1",
        "refined, twice,num_points=4-2",
        "refined, twice,num_points=1-1",
    ]
    assert variants[2].values == {"model.refinement": True, "model.num_points": [4, 2]}
    assert variants[2].folder == "refined,_twice,num_points=4-2"


def test_options_of_one_name_are_told_apart():
    names = [v.name for v in variants_of({"model.dropout": [0.0], "loss.l1_cost": [5.0], "loss.l1_weight": [2.0]}, {})]
    assert names == ["dropout=0.0,l1_cost=5.0,l1_weight=2.0"]
    assert variants_of({"model.backbone.name": ["a"], "x.name": ["b"]}, {})[0].name == "model.backbone.name=a,x.name=b"


def test_no_grid_at_all_is_one_variant():
    assert variants_of({}, {}) == [Variant("base", {})]


def test_long_names_are_shortened_and_stay_apart():
    values = [[i] * 100 for i in range(3)]
    folders = [v.folder for v in variants_of({"data.train_sizes": values}, {})]
    assert len(set(folders)) == 3 and max(map(len, folders)) <= 120


@pytest.mark.parametrize(
    "texts, said",
    [
        (["model.num_points"], "write an option and its values"),
        (["model.num_points="], "write an option and its values"),
        (["a=1", "a=2"], "names a twice"),
        (["a=[1,2"], "is no list of values"),
    ],
)
def test_grids_that_cannot_be_read(texts, said):
    with pytest.raises(UserError, match=said):
        parse_grid(texts)


@pytest.mark.parametrize(
    "grid, named, said",
    [
        ({"model.num_points": 4}, {}, "no list of values"),
        ({"model.num_points": []}, {}, "no list of values"),
        ({"model.num_points": [4, 4]}, {}, "lists a value twice"),
        ({"train.seed": [1, 2]}, {}, "give --seeds"),
        ({}, {"a": {"train.output": "x"}}, "folder of its own"),
        ({}, {"a": 3}, "must map options to values"),
        ({"model.num_points": [1]}, {"a": {"model.num_points": 2}}, "is in the grid and in the variant 'a'"),
        ({}, {"K 4": {}, "k/4": {}}, "would share the folder"),
    ],
)
def test_sweeps_that_mean_nothing(grid, named, said):
    with pytest.raises(UserError, match=said):
        variants_of(grid, named)


def test_a_misspelt_option_names_the_nearest_and_the_variant():
    with pytest.raises(UserError, match=r"variant 'num_point=1': unknown option '--model.num_point'.*model.num_points"):
        cells_of(Config(), variants_of({"model.num_point": [1]}, {}), 1)
    with pytest.raises(UserError, match=r"model\.num_heads is 'many', but must be a whole number"):
        cells_of(Config(), variants_of({"model.num_heads": ["many"]}, {}), 1)


@pytest.mark.parametrize(
    "grid, said",
    [
        ({"train.eval_every": [0]}, "variant 'eval_every=0': train.eval_every is 0; it must be at least 1"),
        ({"data.eval_size": [0, 64]}, "data.eval_size is 0"),
        ({"train.lr": ["1e-4", 0.0001]}, "'lr=1e-4' and 'lr=0.0001' come to the same configuration"),
    ],
)
def test_values_that_cannot_be_or_are_there_twice(grid, said):
    with pytest.raises(UserError, match=said):
        cells_of(Config(), variants_of(grid, {}), 1)


def test_values_are_as_the_configuration_has_them():
    """YAML takes 1e-4 for text; a plot would not find it on its axis."""
    cells = cells_of(Config(), variants_of(parse_grid(["train.lr=1e-4,2e-4,1"]), {}), 1)
    assert [c.variant.values["train.lr"] for c in cells] == [1e-4, 2e-4, 1.0]
    assert [c.variant.name for c in cells] == ["lr=1e-4", "lr=2e-4", "lr=1"]


@pytest.mark.parametrize("option", ["fast_dev_run", "resume"])
def test_a_base_that_would_spoil_every_run_is_refused(option):
    config = Config()
    setattr(config.train, option, "auto" if option == "resume" else True)
    with pytest.raises(UserError, match=rf"train.{option} cannot be used in a sweep"):
        cells_of(config, variants_of({}, {}), 1)
