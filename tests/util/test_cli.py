import dataclasses
import re
import typing

import pytest
import yaml

from main import COMMANDS, main
from util import cli
from util.arguments import peek, with_auto_batch
from util.command_config import EvalConfig, PredictConfig
from util.config import Config
from util.config_files import to_yaml
from util.errors import UserError
from util.options import from_dict


def parse(*argv: str, kind=Config, base=None):
    return cli.parse(kind, list(argv), "main.py test", base=base)


@pytest.fixture
def file(tmp_path):
    def write(text: str, name: str = "a.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_without_arguments_every_option_has_its_default():
    assert parse() == Config()
    assert parse(kind=EvalConfig) == EvalConfig()


def test_options_win_over_later_files_over_earlier_files_over_the_base_over_defaults(file):
    first = file("train: {lr: 0.1, epochs: 11, batch_size: 12}\nmodel: {d_model: 64}", "first.yaml")
    second = file("train: {lr: 0.2, epochs: 21}", "second.yaml")
    base = {"train": {"lr": 0.3, "epochs": 31, "batch_size": 32, "seed": 33}, "model": {"backbone": {"name": "base"}}}
    config = parse("--config", first, "--train.lr", "0.5", "--config", second, base=base)
    assert config.train.lr == 0.5
    assert config.train.epochs == 21
    assert config.train.batch_size == 12
    assert config.train.seed == 33
    assert config.model.d_model == 64
    assert config.model.backbone.name == "base"
    assert config.train.weight_decay == 1e-4


def test_the_order_of_files_and_options_on_the_line_does_not_matter(file):
    path = file("train: {lr: 0.1, seed: 5}")
    assert parse("--train.lr=0.5", f"--config={path}") == parse("--config", path, "--train.lr", "0.5")


def test_of_two_equal_options_the_last_wins():
    assert parse("--train.seed", "1", "--train.seed", "2").train.seed == 2


def test_base_keys_that_a_command_does_not_have_are_left_out():
    base = {"data": {"eval_size": 96, "gone": 1}, "train": {"lr": 1.0}}
    config = parse(kind=EvalConfig, base=base)
    assert config.data.eval_size == 96


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--train.fast_dev_run"], True),
        (["--train.fast_dev_run", "--train.seed", "3"], True),
        (["--train.seed", "3", "--train.fast_dev_run"], True),
        (["--train.fast_dev_run", "false"], False),
        (["--train.fast_dev_run=true"], True),
        ([], False),
    ],
)
def test_a_flag_alone_means_true(argv, expected):
    assert parse(*argv).train.fast_dev_run is expected


def test_a_flag_that_is_true_can_be_turned_off():
    assert parse("--data.crop", "false").data.crop is False


@pytest.mark.parametrize(
    ("argv", "expected"),
    [(["--model.num_points", "6"], 6), (["--model.num_points", "[1,2,3,4]"], [1, 2, 3, 4])],
)
def test_a_number_or_a_list(argv, expected):
    assert parse(*argv).model.num_points == expected


def test_lists_replace_the_default_whole():
    assert parse("--data.train_sizes", "[96]").data.train_sizes == [96]
    assert parse("--train.drop_epochs=[]").train.drop_epochs == []
    assert parse().data.train_sizes == [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]


def test_null_takes_a_value_back(file):
    path = file("model: {encoder_heads: 4, backbone: {output_stride: 16}}\ndata: {root: some/where}")
    assert parse("--config", path).model.encoder_heads == 4
    config = parse("--config", path, "--model.encoder_heads", "null", "--data.root", "null")
    assert config.model.encoder_heads is None
    assert config.data.root is None
    assert config.model.backbone.output_stride == 16
    assert (
        parse("--config", path, "--config", file("model: {encoder_heads: null}", "b.yaml")).model.encoder_heads is None
    )


def test_empty_files_and_sections_change_nothing(file):
    assert parse("--config", file("")) == parse("--config", file("# nothing\ntrain:\nmodel:\n", "b.yaml")) == Config()


@pytest.mark.parametrize("text", ["train: {lr: 1e-4}", "train: {lr: 1.0e-4}", "train: {lr: 0.0001}", "train.lr: 1e-4"])
def test_numbers_are_numbers_however_yaml_writes_them(file, text):
    lr = parse("--config", file(text)).train.lr
    assert lr == 0.0001
    assert isinstance(lr, float)


@pytest.mark.parametrize("value", ["123", "true", "[ab]*.jpg", "a: b", "a #b", "{x}", "1e5", "2024-01-01", "a b"])
def test_text_stays_as_it_was_written(file, value):
    assert parse("--input", value, kind=PredictConfig).input == value
    assert parse("--config", file(yaml.safe_dump({"input": value})), kind=PredictConfig).input == value


def test_a_date_in_a_file_is_text(file):
    assert parse("--config", file("train: {output: 2024-01-31}")).train.output == "2024-01-31"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--train.lrr", "1"], "unknown option '--train.lrr'; did you mean 'train.lr'?"),
        (["--train.epoch=1"], "unknown option '--train.epoch'; did you mean 'train.epochs'?"),
        (["--weight_decay", "1"], "unknown option '--weight_decay'; did you mean 'train.weight_decay'?"),
        (["--model.lr", "1"], "unknown option '--model.lr'; did you mean 'train.lr'?"),
        (["--model.backbone.nam", "x"], "unknown option '--model.backbone.nam'; did you mean 'model.backbone.name'?"),
        (["--zzzzzz", "1"], "unknown option '--zzzzzz'; see --help for all"),
        (["train.lr", "1"], "'train.lr' is no option; options are written --name value"),
        (["-lr", "1"], "'-lr' is no option; options are written --name value"),
        (["--train.lr"], "option --train.lr needs a value"),
        (["--config"], "option --config needs a value"),
    ],
)
def test_unknown_options_name_the_nearest(argv, said):
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        parse(*argv)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {lrr: 1}", "unknown key 'train.lrr'; did you mean 'train.lr'?"),
        ("model: {backbone: {nme: x}}", "unknown key 'model.backbone.nme'; did you mean 'model.backbone.name'?"),
        ("model: {weight_decay: 1}", "unknown key 'model.weight_decay'; did you mean 'train.weight_decay'?"),
        ("num_queries: 3", "unknown key 'num_queries'; did you mean 'model.num_queries'?"),
        ("zzzzzz: 3", "unknown key 'zzzzzz'; see --help for all"),
        ("7: 3", "unknown key '7'; see --help for all"),
        ("train: {output: null}", "train.output is null, but must be text"),
    ],
)
def test_unknown_keys_name_the_file_and_the_nearest(file, text, said):
    path = file(text)
    with pytest.raises(UserError, match=f"^{re.escape(f'{path}: {said}')}$"):
        parse("--config", path)


@pytest.mark.parametrize("text", ["train: {lr: [", "- a list", "just text", "a: b: c", "\x00"])
def test_a_file_that_is_no_configuration_is_named(file, text):
    path = file(text)
    with pytest.raises(UserError, match=re.escape(path)):
        parse("--config", path)


def test_a_section_is_no_value(file):
    with pytest.raises(UserError, match=r"'model\.backbone' is a section"):
        parse("--config", file("model: {backbone: resnet50}"))


def test_a_missing_file_is_named_with_the_nearest_preset():
    with pytest.raises(
        UserError, match=r"no configuration file 'quikstart\.yaml'; did you mean configs/quickstart\.yaml"
    ):
        parse("--config", "quikstart.yaml")
    with pytest.raises(UserError, match=r"no configuration file 'qqq'$"):
        parse("--config", "qqq")


WRONG = [
    ("train.lr", "fast", "a number"),
    ("train.epochs", "1.5", "a whole number"),
    ("train.epochs", "ten", "a whole number"),
    ("train.epochs", "null", "a whole number"),
    ("train.fast_dev_run", "maybe", "true or false"),
    ("train.precision", "int8", "one of 'fp32', 'bf16', 'fp16', 'fp64'"),
    ("data.train_sizes", "96", "a list of int, like [1,2]"),
    ("data.train_sizes", "[a]", "a list of int, like [1,2]"),
    ("model.num_points", "few", "a whole number or a list of int, like [1,2]"),
    ("model.encoder_heads", "many", "a whole number or null"),
]


@pytest.mark.parametrize(("option", "value", "kind"), WRONG)
def test_a_value_of_the_wrong_type_is_named_with_what_it_must_be(file, option, value, kind):
    with pytest.raises(UserError, match=rf"^{re.escape(option)} is .* must be {re.escape(kind)}$"):
        parse(f"--{option}", value)
    section, name = option.split(".")
    with pytest.raises(UserError, match=rf"{re.escape(option)} is .* must be {re.escape(kind)}$"):
        parse("--config", file(f"{section}: {{{name}: {value}}}"))


def test_to_yaml_reads_back_as_the_same_configuration(file):
    argv = [
        "--train.lr",
        "3e-5",
        "--model.num_points",
        "[1,2,3,4]",
        "--model.encoder_heads",
        "4",
        "--data.crop",
        "false",
    ]
    argv += ["--data.root", "a: b #c", "--train.output", "true", "--train.drop_epochs", "[]", "--train.fast_dev_run"]
    config = parse(*argv)
    again = parse("--config", file(to_yaml(config)))
    assert again == config
    assert again.model.num_points == [1, 2, 3, 4]
    assert again.data.root == "a: b #c"
    assert again.train.output == "true"
    assert yaml.safe_load(to_yaml(config))["train"]["lr"] == 3e-5


@pytest.mark.parametrize("kind", [Config, *(command.options for command in COMMANDS.values())])
def test_the_defaults_read_back(file, kind):
    assert parse("--config", file(to_yaml(kind())), kind=kind) == kind()


def test_from_dict_takes_what_it_knows():
    config = from_dict(Config, {"model": {"d_model": 64, "old": 1, "backbone": {"name": "x"}}, "other": 2})
    assert (config.model.d_model, config.model.backbone.name, config.model.num_heads) == (64, "x", 8)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--checkpoint", "a"], "a"),
        (["--checkpoint=a=b"], "a=b"),
        (["--output", "o"], None),
        (["--checkpoint"], None),
        (["--config", "FILE"], "from file"),
        (["--config", "FILE", "--checkpoint", "line"], "line"),
    ],
)
def test_peek(file, argv, expected):
    path = file("checkpoint: from file")
    assert peek([path if a == "FILE" else a for a in argv], "checkpoint") == expected


def test_peek_finds_nested_options_in_the_last_file_that_has_them(file):
    files = [file("train: {resume: one}", "1.yaml"), file("train: {resume: two}", "2.yaml"), file("train:", "3.yaml")]
    assert peek([a for f in files for a in ("--config", f)], "train.resume") == "two"


def options_of(kind: type, prefix: str = "") -> list[str]:
    hints, names = typing.get_type_hints(kind), []
    for field in dataclasses.fields(kind):
        nested = dataclasses.is_dataclass(hints[field.name])
        names += (
            options_of(hints[field.name], f"{prefix}{field.name}.")
            if nested
            else [prefix + field.name.removesuffix("_")]
        )
    return names


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_option_with_its_meaning(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    options = options_of(COMMANDS[command].options)
    assert len(options) >= 7
    for option in options:
        assert re.search(rf"^ +--{re.escape(option)}\b.*\n? +\S", text, re.MULTILINE), option
    assert f"python main.py {command}" in text
    flat = " ".join(text.split())
    known = ("auto takes a GPU", "defects, and changes, of each kind to print", "counted from 0, as LabelImg")
    known += ("smallest score to draw, kept with the file",)
    assert any(said in flat for said in known)
    assert "--config FILE" in flat


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_main_without_a_command_names_all_of_them(argv, capsys):
    assert main(argv) == (0 if argv else 2)
    text = capsys.readouterr().out
    assert all(f"main.py {command}" in text for command in COMMANDS)


def test_the_home_folder_in_options_files_and_the_name_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("data: {root: ~/coco, val_images: a~b}\nmodel: {backbone: {weights: ~/w.pth}}")
    argv = ["--config=~/a.yaml", "--train.output=~/run", "--model.init_from", "~/x.pth"]
    found = cli.parse(Config, argv, "main.py train")
    assert (found.data.root, found.model.backbone.weights) == (f"{tmp_path}/coco", f"{tmp_path}/w.pth")
    assert (found.train.output, found.model.init_from) == (f"{tmp_path}/run", f"{tmp_path}/x.pth")
    assert found.data.val_images == "a~b"  # the home folder is meant at the start alone
    assert peek(argv, "model.init_from") == found.model.init_from
    assert peek(["--checkpoint=~/x.pth"], "checkpoint") == f"{tmp_path}/x.pth"
    assert cli.parse(PredictConfig, ["--input=~"], "").input == str(tmp_path)
    assert peek(argv, "data.root") == f"{tmp_path}/coco"


def test_a_path_that_exists_under_that_name_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~" / "a").mkdir(parents=True)
    assert cli.parse(PredictConfig, ["--input=~/a", "--output=~/new"], "").input == "~/a"


def test_files_that_the_shell_made_of_a_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.jpg").touch()
    with pytest.raises(UserError, match=r"'b\.jpg' is no option.*a pattern of files is quoted"):
        cli.parse(PredictConfig, ["--input", "a.jpg", "b.jpg"], "")


@pytest.mark.parametrize("given", [["--train.batch_size", "auto"], ["--train.batch-size=auto"]])
def test_an_automatic_batch_keeps_the_batch_and_asks_what_fits(given):
    written = with_auto_batch(["--train.batch_size=8", *given, "--train.lr", "auto"])
    options = parse(*written[:-2], "--train.epochs", "3").train
    assert (options.batch_size, options.max_images_per_device, options.epochs) == (8, "auto", 3)
    assert written[-2:] == ["--train.lr", "auto"]
    assert with_auto_batch(["--train.batch_size", "8"]) == ["--train.batch_size", "8"]
