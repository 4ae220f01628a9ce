"""README.md and docs/ say nothing that has gone stale: what they show is run, what they name exists.

Every command and every block of Python is run as it is written, in a folder that has what the pages speak of
(`path/to/coco`, `runs/base/best.pth`, `photo.jpg`, ...), all of it tiny. A command is only made smaller, by the options
that `COMMANDS` adds to it. The shell scripts run with a stand-in for Python, which writes down what it is asked to do;
that is then run, or looked up, here.
"""

import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import is_dataclass
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image
from torch.distributed.run import parse_args as parse_torchrun

from datasets.shapes import generate
from main import main
from models.limits import check_own_model
from tests.datasets.formats import write_lvis, write_other_formats
from util import cli, command_config, config
from util.options import field_types
from util.video import VideoWriter

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OURS = (
    "ablation",
    "analysis",
    "configs",
    "datasets",
    "deformable_detr",
    "docs",
    "engine",
    "models",
    "ops",
    "scripts",
    "tests",
    "util",
)
TINY = """
model:
  backbone: {name: test_resnet, weights: none, norm: trainable, frozen_stages: 0}
  d_model: 32
  num_queries: 20
  num_heads: 4
  encoder_layers: 1
  decoder_layers: 2
  ffn_dim: 32
  norm_groups: 8
  refinement: true
data: {train_sizes: [64], eval_size: 64, max_size: 96, crop: false, workers: 0}
train: {batch_size: 4, epochs: 1, lr: 0.001, lr_backbone: 0.001, device: cpu}
"""

# What is added to the options of main.py, for each kind of command.
TRAIN = "--config tiny.yaml --train.output runs/new"
RESUME = "--train.epochs 2"  # of a run of one epoch, in place of its fifty
EVAL = "--data.workers 0"
# What sweeps do is in tests/ablation.
PLAN = "--config tiny.yaml --data.root coco --output runs/sweep --repeats 1 --dry-run"
# Every command that is shown, and what is added to make it small.
COMMANDS = {
    "scripts/quickstart.sh": "--config tiny.yaml --data.root coco",
    "scripts/setup.sh --pretrained": "",
    "scripts/test.sh": "",
    "scripts/test.sh --slow": "",
    "scripts/test.sh tests/ops -k gradients": "",
    "scripts/test.sh tests/models -k losses": "",
    "scripts/gpu_check.sh": "",
    "scripts/train_dist.sh 8 --config configs/base.yaml --data.root coco --train.resume auto": RESUME,
    "NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 scripts/train_dist.sh 8 --config configs/base.yaml"
    " --data.root coco": TRAIN,
    "sbatch --nodes 4 --gpus-per-node 8 scripts/train_slurm.sh --config configs/base.yaml --data.root coco": TRAIN,
    "torchrun --nproc-per-node 8 main.py train --config configs/base.yaml --data.root coco": TRAIN,
    "torchrun --nproc-per-node 8 main.py eval --checkpoint runs/base/best.pth --data.root coco": EVAL,
    # train
    "python main.py train --config configs/base.yaml --data.root path/to/coco": TRAIN,
    "python main.py train --config configs/base.yaml --data.root coco": TRAIN,
    "python main.py train --config configs/base.yaml --data.root coco --train.fast_dev_run": TRAIN,
    "python main.py train --config configs/base.yaml --data.root coco --train.padding batch"
    " --train.max_images_per_device 4": TRAIN,
    "python main.py train --config configs/base.yaml --data.root coco --train.resume auto": RESUME,
    "python main.py train --train.resume runs/base --train.epochs 60": RESUME,
    'python main.py train --config configs/finetune.yaml --data.root path/to/coco'
    ' --model.init_from r50_deformable_detr.pth --train.freeze "[backbone,encoder]" --train.early_stop 5': TRAIN,
    "python main.py train --config configs/finetune.yaml --model.init_from r50_deformable_detr.pth"
    " --data.train_images my/train --data.train_annotations my/train.json"
    " --data.val_images my/val --data.val_annotations my/val.json": TRAIN,
    "python main.py train --config configs/finetune_small.yaml"
    " --data.train_images my/train --data.train_annotations my/train.json"
    " --data.val_images my/val --data.val_annotations my/val.json": TRAIN,
    "python main.py train --config configs/base.yaml --data.root path/to/coco"
    " --model.backbone.name tf_efficientnet_lite0 --model.backbone.weights package": TRAIN,
    "python main.py train --config configs/bccd.yaml"
    " --data.train_images my/train --data.train_annotations my/train.json"
    " --data.val_images my/val --data.val_annotations my/val.json": TRAIN,
    "python main.py train --config configs/base.yaml --data.root path/to/coco --model.backbone.dcn v2"
    " --model.backbone.dcn_initial_modulation 0.95": TRAIN,
    "python main.py train --config configs/base.yaml --data.root path/to/coco --model.backbone.dcn v2"
    " --loss.mimic_weight 0.1": f"{TRAIN} --loss.mimic_size 32",
    # the modern recipe
    "python main.py train --config configs/two_stage.yaml --data.root coco --model.query_selection mixed"
    " --model.proposal_head class --model.look_forward 2 --model.denoising_queries 100": TRAIN,
    "python main.py train --config configs/refinement.yaml --data.root coco --model.reference box"
    " --model.denoising_queries 100": TRAIN,
    "python main.py train --config configs/two_stage.yaml --data.root coco --data.mosaic 0.5 --data.mixup 0.5"
    " --loss.classification mal": TRAIN,
    "python main.py train --config configs/two_stage.yaml --data.root coco --data.large_scale_jitter 0.5"
    " --data.copy_paste 0.5 --data.strong_until 1": TRAIN,
    "python main.py train --config configs/two_stage.yaml --data.root coco"
    " --model.backbone.name vit_small_patch14_dinov2 --model.backbone.frozen_stages 0"
    " --train.lr_backbone 1e-4 --train.layer_decay 0.8": f"{TRAIN} --model.backbone.name test_vit",
    "python main.py ablate --config configs/quickstart.yaml --config configs/ablations/recipe.yaml --seeds 3": PLAN,
    "python main.py train --config configs/two_stage.yaml --model.proposal_head class --loss.federated true"
    " --data.train_images path/to/coco --data.train_annotations lvis_v1_train.json"
    " --data.val_images path/to/coco --data.val_annotations lvis_v1_val.json --train.best_metric APr": TRAIN,
    # eval and predict
    "python main.py eval --checkpoint runs/base/best.pth --data.root path/to/coco": EVAL,
    "python main.py eval --checkpoint r50_deformable_detr-checkpoint.pth --data.root path/to/coco": EVAL,
    "python main.py eval --checkpoint r50_deformable_detr-checkpoint.pth --data.root path/to/coco"
    " --padding batch --batch_size 2": EVAL,
    "python main.py eval --checkpoint r50_deformable_detr-checkpoint.pth --data.root path/to/coco --match ids": EVAL,
    "python main.py predict --checkpoint r50_deformable_detr-checkpoint.pth --input photo.jpg"
    " --classes my/train.json": "",
    "python main.py eval --detections runs/eval/detections.json --data.val_annotations instances_val2017.json": "",
    "python main.py eval --checkpoint runs/base/best.pth --data.root path/to/coco --tta.flip true": EVAL,
    "python main.py eval --checkpoint runs/base/best.pth --data.root path/to/coco"
    ' --tta.flip true --tta.sizes "[640,800,960]" --tta.merge soft_nms': f"{EVAL} --tta.sizes [48,64,80]",
    "python main.py eval --checkpoint runs/base/best.pth --data.root path/to/coco --analyse": f"{EVAL} --worst 1",
    "python main.py eval --detections runs/eval/detections.json --data.root path/to/coco --analyse": "--worst 1",
    'python main.py predict --checkpoint runs/base/best.pth --input "photos/*.jpg" --output drawn': "",
    "python main.py predict --checkpoint runs/base/best.pth --input clip.mp4 --output drawn": "",
    # visualize; drawing is slow, so every kind of picture is drawn once
    "python main.py visualize --checkpoint runs/base/best.pth --input photo.jpg --explore":
        "--top_k 1 --maps [locations,gradient]",
    "python main.py visualize --checkpoint runs/quickstart/best.pth --input photo.jpg --output runs/visualize":
        "--top_k 1 --maps [heads,boxes]",
    'python main.py visualize --checkpoint runs/quickstart/best.pth --input photo.jpg --queries "[3,17]"'
    ' --pixel "[120,80]"': "--maps [encoder]",
    "python main.py visualize --config configs/base.yaml --input photo.jpg":
        "--config tiny.yaml --size 64 --top_k 1 --maps [decoder]",
    "python main.py visualize --checkpoint runs/quickstart/best.pth --input photo.jpg --explore":
        "--maps [boxes] --top_k 1",
    "python main.py visualize --checkpoint runs/quickstart/best.pth --input photo.jpg --explore"
    " --compare runs/base/best.pth": "--maps [boxes] --top_k 1",
    'python main.py visualize --checkpoint runs/quickstart/best.pth --input photo.jpg --maps "[saliency]" --bound 0.1':
        "--top_k 1 --cells 2",
    'python main.py visualize --checkpoint runs/quickstart/best.pth --input photo.jpg --maps "[backbone]"': "--top_k 1",
    "python scripts/compare_backbones.py --checkpoint regular=A.pth v1=B.pth v2=C.pth --input photo.jpg"
    " --box 120,40,360,300 --output backbones.png": "--points 20",
    # ablate
    "python main.py ablate --config configs/quickstart.yaml --grid model.num_points=1,2,4 --seeds 3": PLAN,
    "python main.py ablate --config configs/quickstart.yaml --grid model.num_points=1,2,4 --grid model.num_heads=2,4"
    " --seeds 3 --jobs 2 --output runs/k_m": PLAN,
    "python main.py ablate --config configs/quickstart.yaml --grid model.num_points=1,2,4 --grid model.num_heads=2,4"
    " --seeds 3 --jobs 2 --train.epochs 8 --train.eval_every 4": PLAN,
    'python main.py ablate --config configs/quickstart.yaml --grid "model.num_points=[4,4,4],[8,2,1]"': PLAN,
    "python main.py ablate --config configs/base.yaml --config configs/ablations/table2.yaml --data.root coco": PLAN,
    "python main.py ablate --config configs/quickstart.yaml --config configs/ablations/dcn.yaml"
    " --data.root data/shapes_turned --loss.mimic_size 96 --train.eval_every 15 --seeds 3 --jobs 2": PLAN,
    "python main.py ablate --eval-only --checkpoint runs/base/best.pth --grid model.num_points=4,3,2,1"
    " --data.root coco": f"{EVAL} --output runs/sweep --repeats 1",
    # data, costs, the operator
    "python main.py check-data --data.root path/to/coco": "",
    "python main.py check-data --data.root path/to/coco --fix mended": "",
    "python main.py train --config configs/bccd.yaml --data.root my/voc": TRAIN,
    "python main.py check-data --data.train_images my/yolo/images/train"
    " --data.train_annotations my/yolo/labels/train": "",
    "python main.py convert-data --from voc --input my/voc/Annotations --images my/voc/JPEGImages"
    " --output train.json": "",
    "python main.py convert-data --from yolo --input my/yolo/data.yaml --split val --output val.json": "",
    "python main.py predict --checkpoint runs/base/best.pth --input photos --output drawn --save_txt --save_coco": "",
    "python main.py profile --config configs/base.yaml": "--config tiny.yaml --sizes [64x64] --repeats 1",
    "python main.py profile --plan nodes=8,gpus=8 --precision bf16": "--config tiny.yaml --plan gpus=1,decode_ms=10",
    "python -m datasets.shapes --output data/shapes": "--output data/new --train 2 --val 2",
    "python -m datasets.shapes --output data/shapes_turned --turn 3.14159 --spread 6":
        "--output data/new --train 2 --val 2",
    "python -m ops.build": "",
    "python -m ops.build --arch 80,90": "",
    "python -m ops.check": "",
    "python scripts/bench/op.py --help": "",
    "python scripts/bench/model.py --help": "",
    "python scripts/bench/inference.py --help": "",
    "python scripts/bench/learning.py --help": "",
    "python scripts/bench/torchvision_detectors.py --help": "",
    "python scripts/bench/train.py --config configs/base.yaml":
        "--size 64 64 --batch 1 --repeats 1 --backend reference -- --config tiny.yaml",
    "python scripts/bench/deform.py": "--repeats 1",
    "python scripts/bench/shift.py": "--repeats 1 --shape 1x4x8x8",
}  # fmt: skip
STAND_IN = """#!/usr/bin/env bash
printf "%q " "$(basename "$0")" "$@" >> asked.txt
echo >> asked.txt
"""
EXPORTS = "tests/engine/test_export.py does it with a smaller detector"
LARGE = ("fiftyone", "supervision")  # what a block may import that is too large, or too much, to ask for
NOT_RUN = {
    "python scripts/bench/annotations.py --before ../older-checkout --chart docs/scaling.png "
    "--output annotations.json": "it writes gigabytes, and measures for half an hour",
    "python main.py export --checkpoint runs/base/best.pth --format onnx --output exported": EXPORTS,
    "tensorboard --logdir runs": "it serves pages until it is stopped",
    "pip install -e path/to/deformable-detr": "tests/test_library.py installs it",
    "python main.py export --checkpoint runs/quickstart/best.pth": EXPORTS,
    "python main.py export --checkpoint runs/quickstart/best.pth --format torch": EXPORTS,
    "python main.py export --checkpoint runs/quickstart/best.pth --format transformers --output runs/hub": EXPORTS,
    "python main.py eval --checkpoint runs/export/model.onnx --data.root path/to/coco": EXPORTS,
    "python main.py predict --checkpoint runs/export/model.onnx --input photo.jpg": EXPORTS,
}
# What takes minutes and has no option to make it small, by module.
SMALLER = {
    "scripts.bench.deform": {"CONVOLUTIONS": [(1, 4, 8, 8, 1)], "POOLED": (2, 4, 8, 8)},
    # What they compile is in tests/ops/test_build.py.
    "ops.build": {"build_cpu": lambda arguments, folder: None, "build_cuda": lambda arguments, folder: None},
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """A page without its blocks of code and diagrams."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def shown() -> list[str]:
    """Every command of every page once, on one line, without its comment."""
    lines = [
        line for page in PAGES for block in blocks(page, "bash") for line in re.sub(r"\\\n", "", block).splitlines()
    ]
    plain = [" ".join(re.sub(r"(^|\s)#.*", "", line).split()) for line in lines]
    return list(dict.fromkeys(line for line in plain if line))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """A folder with everything that the pages speak of."""
    folder = tmp_path_factory.mktemp("docs") / "folder"
    shapes = generate(folder.parent / "shapes", train=8, val=4, size=64)
    for link in ("coco", "path/to/coco", "data/shapes", "data/shapes_turned"):
        (folder / link).parent.mkdir(parents=True, exist_ok=True)
        (folder / link).symlink_to(shapes)
    for name in (*OURS, "main.py", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "my").mkdir()
    for split in ("train", "val"):
        (folder / "my" / split).symlink_to(shapes / f"{split}2017")
        (folder / "my" / f"{split}.json").symlink_to(shapes / "annotations" / f"instances_{split}2017.json")
        write_lvis(folder / "my" / f"{split}.json", f"{split}2017", folder / f"lvis_v1_{split}.json")
    write_other_formats(shapes, folder / "my" / "voc", folder / "my" / "yolo")
    (folder / "instances_val2017.json").symlink_to(shapes / "annotations" / "instances_val2017.json")
    with Image.open(shapes / "val2017" / "000000.png") as picture:
        picture.resize((400, 320)).save(folder / "photo.jpg")
    with VideoWriter(folder / "clip.mp4", Fraction(5), Fraction(1, 5)) as writer:
        for i in range(2):
            writer.write(Image.new("RGB", (64, 48)), i)
    (folder / "photos").mkdir()
    (folder / "photos" / "one.jpg").symlink_to(folder / "photo.jpg")
    (folder / "tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_main(shlex.split("train --config tiny.yaml --data.root coco --train.output runs/base"))
        run_main(shlex.split("eval --checkpoint runs/base/best.pth --data.root coco --data.workers 0"))
    shutil.copytree(folder / "runs" / "base", folder / "runs" / "quickstart")
    for name in ("A", "B", "C", "r50_deformable_detr", "r50_deformable_detr-checkpoint"):
        os.link(folder / "runs" / "base" / "best.pth", folder / f"{name}.pth")
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "nvidia-smi", "compute-sanitizer"):
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    return folder


@pytest.fixture
def folder(prepared, tmp_path, monkeypatch) -> Path:
    """A copy of the folder to work in."""

    def copy(source: str, target: str) -> None:
        # Checkpoints are replaced, never written into.
        (os.link if source.endswith(".pth") else shutil.copy2)(source, target)

    shutil.copytree(prepared, tmp_path / "folder", symlinks=True, copy_function=copy)
    monkeypatch.chdir(tmp_path / "folder")
    return tmp_path / "folder"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.removeprefix("python ")[:90])
def test_a_command_that_is_shown_runs(command, folder, monkeypatch):
    words, added = shlex.split(command), shlex.split(COMMANDS[command])
    if words[:2] == ["python", "main.py"]:
        run_main([*words[2:], *added])
    elif words[:2] == ["python", "-m"]:
        run_module(words[2], [*words[3:], *added], monkeypatch)
    elif words[0] == "python":
        run_module(words[1].removesuffix(".py").replace("/", "."), [*words[2:], *added], monkeypatch)
    elif words[0] == "torchrun":
        run_main([*of_torchrun(words[1:]), *added])
    elif words[0] == "sbatch":  # the script runs in tests/test_launch.py
        options, script = words[1:5], words[5]
        assert options == ["--nodes", "4", "--gpus-per-node", "8"] and os.access(script, os.X_OK)
        run_main(["train", *words[6:], *added])
    elif "scripts/train_dist.sh" in words:
        (asked,) = asked_by(command)
        assert Path(asked[1]).samefile(ROOT / "scripts" / "launch.py")
        run_main([*of_torchrun(asked[2:]), *added])
    elif command == "scripts/quickstart.sh":
        shutil.rmtree("runs/quickstart")
        for asked in asked_by(command):
            if asked[:2] == ["python", "main.py"]:
                run_main([*asked[2:], *(added if asked[2] == "train" else [])])
        assert Path("runs/quickstart/pictures/predictions.json").is_file()
    elif words[0] == "scripts/test.sh":
        (tests,) = (asked for asked in asked_by(command) if asked[:3] == ["python", "-m", "pytest"])
        assert ("not slow" in tests) == ("--slow" not in words)
        assert set(words[1:]) - {"--slow"} <= set(tests)
    elif words[0] == "scripts/setup.sh":
        asked, extras = asked_by(command), [word.removeprefix("--") for word in words[1:]]
        assert ["python", "-", *extras] in asked and any(a[:4] == ["python", "-m", "pip", "install"] for a in asked)
        project = (ROOT / "pyproject.toml").read_text()
        assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras)
    else:
        assert len(asked_by(command)) > 5


def run_main(argv: Sequence[str]) -> None:
    assert main(argv) == 0


def run_module(name: str, argv: Sequence[str], monkeypatch) -> None:
    """As `python -m NAME` or `python NAME.py`."""
    module = importlib.import_module(name)
    for attribute, value in SMALLER.get(name, {}).items():
        monkeypatch.setattr(module, attribute, value)
    monkeypatch.setattr(sys, "argv", [name, *argv])
    try:
        if hasattr(module, "main"):
            code = module.main(list(argv))
        else:
            runpy.run_path(module.__file__, run_name="__main__")
            code = 0
    except SystemExit as end:
        code = end.code
    assert not code


def of_torchrun(argv: Sequence[str]) -> list[str]:
    """What eight processes would each get; what they do together is in tests/test_distributed.py."""
    options = parse_torchrun(argv)
    assert options.nproc_per_node == "8" and Path(options.training_script).samefile(ROOT / "main.py")
    return options.training_script_args


def asked_by(command: str) -> list[list[str]]:
    """What a script asks Python and the tools of a GPU to do, run with stand-ins for them."""
    programs = Path(".venv/bin").resolve()
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHON": str(programs / "python")}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    asked = [shlex.split(line) for line in Path("asked.txt").read_text().splitlines()]
    for words in asked:
        if words[1:2] == ["-m"]:
            assert importlib.util.find_spec(words[2]), words
        for file in (word for word in words if re.fullmatch(r"[\w/]+\.(py|yaml)", word)):
            assert Path(file).is_file(), words
    return asked


def test_every_command_that_is_shown_is_run_or_is_not_for_a_reason():
    assert sorted(shown()) == sorted([*COMMANDS, *NOT_RUN])


@pytest.mark.parametrize("line", re.findall(r"^`(--.*)`$", (ROOT / "docs" / "recipe.md").read_text(), re.MULTILINE))
def test_an_option_of_the_recipe_is_taken_with_two_stages(line):
    argv = ["--config", str(ROOT / "configs" / "two_stage.yaml"), *shlex.split(line)]
    check_own_model(cli.parse(config.Config, argv, "train"))


@pytest.mark.parametrize(
    "block",
    [pytest.param(block, id=f"{page.stem}-{i}") for page in PAGES for i, block in enumerate(blocks(page, "python"))],
)
def test_python_that_is_shown_runs(block, folder, monkeypatch):
    for package in LARGE:
        if f"import {package}" in block:
            pytest.importorskip(package)
    monkeypatch.setattr(sys, "path", list(sys.path))
    exec(compile(block, "block", "exec"), {"__name__": "__main__"})


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub links to them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            linked = (page.parent / file).resolve() if file else page
            assert linked.is_file(), target
            assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_options_that_are_named_are_there(page):
    text = page.read_text()
    for file in re.findall(rf"(?<![\w./-])(?:main|(?:{'|'.join(OURS)})/[\w/]+)\.(?:py|sh|yaml|md)\b", text):
        assert (ROOT / file).is_file() or Path(file).stem == "NAME", file  # which stands for the reader's own
    classes = (vars(config) | vars(command_config)).values()
    kinds = [kind for kind in classes if is_dataclass(kind) and kind.__name__.endswith("Config")]
    known = {option for kind in kinds for option in field_types(kind)} | {"config", "help", "install"}
    scripts = "".join(file.read_text() for part in ("ops", "scripts") for file in (ROOT / part).rglob("*.py"))
    for option in re.findall(r"--(\w[\w.-]*\w)", prose(page)):
        assert option.replace("-", "_") in known or f'"--{option}"' in scripts, option


def test_the_readme_is_one_page_and_links_every_other():
    readme = PAGES[0].read_text()
    assert len(readme.splitlines()) <= 150
    for page in PAGES[1:]:
        assert f"]({page.relative_to(ROOT)})" in readme
        assert "README.md" in page.read_text().split("\n## ")[0]
