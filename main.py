"""Deformable DETR: train, evaluate, predict, ablate, check data and profile from one command line."""

import json
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation.grid import with_grid
from models.limits import check_own_model
from util import cli, config
from util.command import Command, required
from util.console import exit_quietly, is_unread
from util.errors import PeerLost, UserError
from util.exported import check_no_export
from util.files import make_folder

if TYPE_CHECKING:
    from util.distributed import World

# Commands import what they use: torch alone takes seconds, and help and mistakes on the line need none of it.


def train(options: config.Config, world: "World") -> int:
    """Train a detector, evaluating as it goes; the run's folder gets checkpoints, figures and the configuration."""
    from engine.train import train

    return train(options, world)


def evaluate(options: config.EvalConfig, world: "World") -> int:
    """Score a checkpoint, or saved detections: COCO's or LVIS's figures, AP by class and, if asked, where it errs."""
    from engine.score import score_checkpoint, score_detections

    evaluation = score_detections(options, world) if options.detections else score_checkpoint(options, world)
    output = make_folder(options.output, "output")
    if world.is_main:
        evaluation.write(output)
    print(evaluation.text(output))
    if options.analyse and world.is_main:
        from analysis.errors.analyse import analyse

        print("\n" + analyse(evaluation, output, options.threshold, options.worst))
    return 0


def predict(options: config.PredictConfig) -> int:
    """Draw what is found in pictures and videos, and list it in JSON; exits with 1 if one could not be read whole."""
    from engine.predict import load_predictor, predict_pictures
    from engine.predict_video import predict_videos
    from engine.save import media_of, save_predictions
    from engine.tta import MultiView

    pictures, videos = media_of(options)
    checkpoint = required(options.checkpoint, "checkpoint")
    predictor = load_predictor(checkpoint, options.device, options.size, options.weights, options.tta, options.classes)
    output = make_folder(options.output, "output")
    shown = options.threshold, options.top_k
    done = predict_videos(predictor, videos, output, *shown, options.batch_size, not pictures) if videos else 0
    if pictures:
        listed = predict_pictures(predictor, pictures, output, *shown)
        print(save_predictions(options, listed, len(pictures), predictor, output))
        done += len(listed)
    if isinstance(predictor.model, MultiView):
        print(predictor.model.cost_line())
    return int(done < len(pictures) + len(videos))


def visualize(options: config.VisualizeConfig) -> int:
    """Draw where a detector looks on every picture; exits with 1 if a picture could not be read."""
    from analysis.looks.look import check_maps
    from analysis.looks.visualize import look_at_pictures, predictors_of
    from datasets.pictures import list_pictures

    check_maps(options.maps)
    check_no_export(options.checkpoint or "")
    pictures = list_pictures(required(options.input, "input"))
    predictor, other = predictors_of(options)
    seen = look_at_pictures(predictor, pictures, make_folder(options.output, "output"), options, other)
    return int(seen < len(pictures))


def ablate(options: config.AblateConfig) -> int:
    """Train every variant with every seed, going on where an earlier call ended, and compare them; 1 if any failed."""
    from ablation.eval_only import ablate_trained
    from ablation.train import ablate_training

    if options.eval_only:
        return ablate_trained(options)
    if options.checkpoint:
        raise UserError("--checkpoint is for --eval_only; to start runs from its weights, give --model.init_from")
    return ablate_training(options)


def check_data(options: config.CheckDataConfig) -> int:
    """Report classes, counts, sizes and every defect of the splits that are named; exits with 1 if any are left."""
    from datasets.defects import check_splits

    reports = check_splits(options.data, options.fix, options.output)
    print("\n\n".join(f"{split}: {report.text(options.show)}" for split, report in reports.items()))
    if options.output:
        file = make_folder(Path(options.output).parent, "output") / Path(options.output).name
        file.write_text(json.dumps({s: r.to_dict() for s, r in reports.items()}, indent=1))
    return int(any(r.remaining for r in reports.values()))


def convert_data(options: config.ConvertDataConfig) -> int:
    """Write data of another format as one COCO file."""
    from datasets.convert import convert

    print(convert(options, required(options.input, "input"), required(options.output, "output")))
    return 0


def export(options: config.ExportConfig) -> int:
    """Write a detector as ONNX, a torch program or a transformers folder, and compare that with it on pictures."""
    from engine.export.command import export

    print(export(options))
    return 0


def profile(options: config.ProfileConfig) -> int:
    """Print what a model costs, by part and by image size."""
    from engine.profile import profile

    print(profile(options))
    return 0


MODEL_ALONE = ("loss", "data", "train")  # sections of a preset that say nothing about its model
COMMANDS = {
    "train": Command(
        train,
        config.Config,
        "--config configs/quickstart.yaml",
        together=True,
        described_by="train.resume",
        rewrite=cli.with_auto_batch,
        check=check_own_model,
    ),
    "eval": Command(
        evaluate, config.EvalConfig, "--checkpoint runs/quickstart/best.pth", together=True, described_by="checkpoint"
    ),
    "predict": Command(predict, config.PredictConfig, "--checkpoint runs/quickstart/best.pth --input photos/"),
    "visualize": Command(
        visualize,
        config.VisualizeConfig,
        "--checkpoint runs/quickstart/best.pth --input photo.jpg",
        passed_over=MODEL_ALONE,
        check=check_own_model,
    ),
    "ablate": Command(
        ablate,
        config.AblateConfig,
        "--config configs/quickstart.yaml --grid model.num_points=1,2,4 --seeds 3",
        described_by="checkpoint",
        by_pattern=True,
        rewrite=with_grid,
    ),
    "export": Command(export, config.ExportConfig, "--checkpoint runs/quickstart/best.pth --format onnx"),
    "check-data": Command(check_data, config.CheckDataConfig, "--data.root path/to/coco"),
    "convert-data": Command(convert_data, config.ConvertDataConfig, "--from voc --input Annotations --output all.json"),
    "profile": Command(
        profile, config.ProfileConfig, "--config configs/base.yaml", passed_over=MODEL_ALONE, check=check_own_model
    ),
}


def main(argv: Sequence[str]) -> int:
    """Run one command; under torchrun, in each of its processes.

    Returns:
        The exit code: 0, 1 (defects, or pictures left out), 2 (bad input), 3 (another process has gone), 75 (stopped
        by a signal, and can be resumed), 130 (interrupted).
    """
    if not argv or argv[0] in ("-h", "--help"):
        examples = [f"    python main.py {name:10} {command.example}" for name, command in COMMANDS.items()]
        print(__doc__, "", *examples, "", "`python main.py COMMAND --help` lists every option.", sep="\n")
        return 0 if argv else 2
    if os.environ.get("WORLD_SIZE", "1") == "1":
        code, message = run_command(argv)
        if message:
            print("error:", " ".join(message.split()), file=sys.stderr, flush=True)
        return code
    from util.distributed import join

    try:
        with join() as world:
            code, message = run_command(argv, world)
            if message and world.first_to_fail():  # the others fail of the same, or because this one has gone
                where = f"process {world.rank} of {world.size}: " if world.rank else ""
                print("error:", where + " ".join(message.split()), file=sys.stderr, flush=True)
            if message:
                sys.stdout.flush()
                os._exit(code)  # leaving in good order would wait for processes that may wait for this one
            return code
    except UserError as error:  # of joining
        print("error:", error, file=sys.stderr)
        return 2


def run_command(argv: Sequence[str], world: "World | None" = None) -> tuple[int, str]:
    """Parse and run; the exit code, and what to tell the user if it went wrong."""
    try:
        if argv[0] not in COMMANDS:
            near = get_close_matches(argv[0], COMMANDS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(COMMANDS)}"
            raise UserError(f"unknown command '{argv[0]}'; {hint}")
        command = COMMANDS[argv[0]]
        if world is not None and not command.together:
            raise UserError(f"{argv[0]} is for a single process; start it without torchrun")
        options = command.parse(argv[0], argv[1:])
        if not command.together:
            return command.run(options), ""
        if world is None:
            from util.distributed import ALONE as world
        return command.run(options, world), ""
    except PeerLost as error:
        return 3, str(error)
    except UserError as error:
        return 2, str(error)
    except OSError as error:
        if error.strerror is None or is_unread():  # a library's own, or nobody listens
            raise
        return 2, f"{error.strerror}: '{error.filename}'" if error.filename else str(error)
    except RuntimeError as error:
        from util.distributed import is_lost_peer, lost_contact

        if not is_lost_peer(error):
            raise
        return 3, lost_contact(error)
    except KeyboardInterrupt:
        return 130, "interrupted"


def __getattr__(name: str) -> Any:
    """`from main import load_predictor`, without making every start of a command wait for it."""
    if name == "load_predictor":
        from engine.predict import load_predictor

        return load_predictor
    raise AttributeError(f"module 'main' has no attribute '{name}'")


if __name__ == "__main__":
    exit_quietly(main, sys.argv[1:])
