"""Deformable DETR: train, evaluate, predict and check data from one command line.

    python main.py train      --config configs/quickstart.yaml
    python main.py eval       --checkpoint runs/quickstart/best.pth
    python main.py predict    --checkpoint runs/quickstart/best.pth --input photos/
    python main.py check-data --data.root path/to/coco

`python main.py COMMAND --help` lists every option of a command.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

import ops
from datasets.build import build_dataset, dataset_paths
from datasets.check import check_dataset
from datasets.coco import Category, foreign_categories, load_annotations, match_categories, read_json
from datasets.evaluation import Scores, evaluate_detections, to_coco_results
from datasets.images import list_pictures, read_image, to_rgb, upright
from datasets.loader import eval_loader, pad_images, train_loader
from datasets.transforms import eval_transform, to_image
from models.build import build_criterion, build_model
from models.detector import DeformableDETR
from models.load import load_detector
from models.postprocess import postprocess
from util import cli
from util.checkpoint import (
    load_matching_weights,
    read_checkpoint,
    restore_training,
    save_checkpoint,
    saved_config,
    training_state,
)
from util.config import RANGES, CheckDataConfig, Config, EvalConfig, EvalDataConfig, PredictConfig, from_dict
from util.engine import detect, pick_device, train_one_epoch
from util.errors import UserError
from util.optim import adamw, lr_factor, set_lr
from util.plots import plot_run
from util.predictor import Predictor
from util.runlog import RunLog, make_folder, score_tables, train_header


def train(config: Config) -> int:
    """Train a detector, evaluating as it goes; the run's folder gets checkpoints, figures and the configuration."""
    cfg, device = config.train, pick_device(config.train.device)
    backend = selected_backend(device)
    resumed = read_checkpoint(cfg.resume) if cfg.resume else None
    output = Path(cfg.output) / ("fast_dev_run" if cfg.fast_dev_run else "")
    if (output / "last.pth").exists() and not resumed and not cfg.fast_dev_run:
        raise UserError(f"'{output}' holds a run; go on with --train.resume {output}, or choose another --train.output")
    torch.manual_seed(cfg.seed)
    dataset, val_dataset = build_dataset(config.data, "train", cfg.seed), build_dataset(config.data, "val")
    num_classes = 1 + max(c.label for c in dataset.categories)
    category_of = match_categories(dataset.categories, val_dataset.categories, "training images")

    source = load_detector(config.model.init_from) if config.model.init_from and not resumed else None
    # The backbone's own weights, unless a checkpoint brings them.
    brings = resumed or (source and source.config.backbone.name == config.model.backbone.name)
    model = build_model(config.model, num_classes, config.loss.auxiliary, "none" if brings else None).to(device)
    criterion = build_criterion(config.loss)
    optimizer = adamw(model, cfg.lr, cfg.lr_backbone, cfg.lr_offset_factor, cfg.weight_decay)
    pin = device.type == "cuda"
    loader = train_loader(dataset, cfg.batch_size, cfg.max_images_per_device, config.data.workers, cfg.seed, pin)
    eval_batch = cfg.eval_batch_size or min(8, cfg.max_images_per_device or cfg.batch_size)
    val_loader = eval_loader(val_dataset, eval_batch, config.data.workers, pin)
    epochs, num_steps, num_eval = cfg.epochs, len(loader), len(val_loader)
    if cfg.fast_dev_run:
        epochs, num_steps, num_eval = 1, min(2, num_steps), min(2, num_eval)

    first_epoch, best = 0, -1.0
    if resumed:
        first_epoch, best = restore_training(resumed, model, optimizer)
        if first_epoch >= epochs:
            print(f"'{resumed.path}' has finished its {first_epoch} epochs; to go on, give a larger --train.epochs")
            return 0
        best = best if (output / "best.pth").exists() else -1.0
    elif source:
        left_out = load_matching_weights(model, source.model.state_dict(), config.model.init_from)
        print(f"weights from {config.model.init_from}; not loaded: {len(left_out)}", *left_out, sep="\n  ")
    make_folder(output, "train.output")
    print(train_header(config, model, dataset, val_dataset, device, num_steps, epochs, backend))
    cfg.resume = None  # what is kept describes the run, not how it was last started
    (output / "config.yaml").write_text(cli.to_yaml(config))

    def schedule(step: int) -> None:
        set_lr(optimizer, lr_factor(step, num_steps, epochs, cfg.schedule, cfg.drop_epochs, cfg.warmup_steps))

    log = RunLog(output, resumed.content["schedule"]["step"] if resumed else None)
    started, scores = time.perf_counter(), None
    for epoch in range(first_epoch, epochs):
        loader.batch_sampler.set_epoch(epoch)
        figures = train_one_epoch(
            model,
            criterion,
            loader,
            num_steps,
            optimizer,
            schedule,
            device,
            first_step=epoch * num_steps,
            clip_norm=cfg.clip_norm,
            precision=cfg.precision,
            description=f"epoch {epoch + 1}/{epochs}",
            on_step=lambda step, means: log.write("train", step, lr=optimizer.param_groups[-1]["lr"], **means),
        )
        step, improved = (epoch + 1) * num_steps, False
        line = f"epoch {epoch + 1}/{epochs}  loss {figures['loss']:.3f}  {figures['seconds']:.0f} s"
        if epoch + 1 == epochs or (epoch + 1) % cfg.eval_every == 0:
            scores, _ = run_evaluation(model, val_loader, num_eval, category_of, device, precision=cfg.precision)
            log.write("eval", step, epoch=epoch + 1, **scores.figures, per_class=scores.per_class)
            line += f"  AP {scores.figures['AP']:.3f}  AP50 {scores.figures['AP50']:.3f}"
            improved = scores.figures["AP"] > best or best == -1
            best = max(best, scores.figures["AP"])
        print(line, flush=True)
        content = training_state(model, optimizer, config, dataset.categories, epoch + 1, step, best)
        save_checkpoint(output / "last.pth", content)
        if improved or epoch == first_epoch == 0:
            save_checkpoint(output / "best.pth", content)
    log.close()
    plot_run(output)
    minutes = (time.perf_counter() - started) / 60
    print(f"\ntrained in {minutes:.1f} min, best AP {best:.3f}; of the last epoch:\n")
    print(score_tables(scores.figures, scores.per_class))
    print(f"\nbest.pth, last.pth, curves.png, metrics.jsonl and TensorBoard's events are in {output}")
    return 0


def evaluate(config: EvalConfig) -> int:
    """Score a checkpoint, or saved detections; prints and saves the 12 COCO figures and AP by class."""
    if config.detections:
        if config.checkpoint:
            raise UserError("give either --checkpoint or --detections, not both")
        truth = config.data.val_annotations or (config.data.root and dataset_paths(config.data, "val")[1])
        if not truth:
            raise UserError("to score saved detections, give their ground truth with --data.val_annotations FILE")
        scores = evaluate_detections(
            load_annotations(truth), read_json(config.detections, "file of detections"), config.top_k
        )
        output = make_folder(config.output, "output")
    else:
        device = pick_device(config.device)
        backend = selected_backend(device)
        model, categories, _ = load_model(required(config.checkpoint, "checkpoint"))
        dataset = build_dataset(config.data, "val")
        category_of = match_categories(categories, dataset.categories, "checkpoint")
        loader = eval_loader(dataset, config.batch_size, config.data.workers, device.type == "cuda")
        output = make_folder(config.output, "output")
        print(f"{len(dataset)} images, {len(category_of)} classes, operator {backend} on {device}\n")
        scores, results = run_evaluation(model.to(device), loader, len(loader), category_of, device, config.top_k)
        (output / "detections.json").write_text(json.dumps(results))
    (output / "results.json").write_text(json.dumps(asdict(scores), indent=1))
    print(score_tables(scores.figures, scores.per_class))
    print(f"\nfigures are in {output / 'results.json'}")
    return 0


def run_evaluation(
    model, loader, num_batches: int, category_of: dict[int, int], device, top_k: int = 100, precision: str = "fp32"
) -> tuple[Scores, list[dict]]:
    """Detect in every batch and score what was found; also returns it in COCO result format."""
    found = detect(model, loader, num_batches, partial(postprocess, top_k=top_k), device, precision)
    results = [r for i, d in found for r in to_coco_results(i, d.boxes, d.scores, d.labels, category_of)]
    return evaluate_detections(loader.dataset.annotations, results, top_k, [i for i, _ in found]), results


def predict(config: PredictConfig) -> int:
    """Draw what is found in every picture and list it in one JSON; exits with 1 if a picture could not be read."""
    pictures = list_pictures(required(config.input, "input"))
    predictor = load_predictor(required(config.checkpoint, "checkpoint"), config.device, config.size)
    output = make_folder(config.output, "output")
    if any(path.resolve().parent == output.resolve() for path in pictures):
        raise UserError(f"output '{output}' is the folder of the pictures, which the drawn ones could overwrite")
    listed: dict[str, dict] = {}
    for path in tqdm(pictures, desc="predict", disable=None, leave=False):
        try:
            picture = read_image(path)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        found = predictor(picture, config.threshold, config.top_k)
        drawn, number = f"{path.stem}.png", 1
        while drawn in listed:  # pictures of one name: of several folders, or with several suffixes
            number += 1
            drawn = f"{path.stem}_{number}.png"
        predictor.draw(picture, found).save(output / drawn)
        size = {"width": picture.width, "height": picture.height}
        listed[drawn] = {"file": str(path), **size, "detections": predictor.describe(found)}
    (output / "predictions.json").write_text(json.dumps([{"drawn": k, **v} for k, v in listed.items()], indent=1))
    boxes = sum(len(entry["detections"]) for entry in listed.values())
    print(f"{boxes} boxes on {len(listed)} pictures; the drawn pictures and predictions.json are in {output}")
    return int(len(listed) < len(pictures))


def check_data(config: CheckDataConfig) -> int:
    """Report classes, counts, sizes and every defect of the splits that are named; exits with 1 if there are any."""
    splits = {split: paths for split in ("train", "val") if (paths := dataset_paths(config.data, split))}
    if not splits:
        raise UserError(
            "nothing to check: give --data.root, or images and annotations (--data.train_* or --data.val_*)"
        )
    reports = {split: check_dataset(*paths) for split, paths in splits.items()}
    print("\n\n".join(f"{split}: {report.text(config.show)}" for split, report in reports.items()))
    if config.output:
        file = make_folder(Path(config.output).parent, "output") / Path(config.output).name
        file.write_text(json.dumps({s: r.to_dict() for s, r in reports.items()}, indent=1))
    return int(any(r.defects for r in reports.values()))


def load_model(checkpoint: str) -> tuple[DeformableDETR, list[Category], EvalDataConfig]:
    """A model in evaluation mode from any known checkpoint, its classes, and the data section it was trained with."""
    loaded = load_detector(checkpoint)
    categories = [Category(**c) for c in loaded.categories]
    if not categories:
        categories = foreign_categories(loaded.model.num_classes, loaded.names)
    return loaded.model, categories, from_dict(EvalDataConfig, loaded.data)


def load_predictor(checkpoint: str, device: str = "auto", size: int | None = None) -> Predictor:
    """A detector that takes PIL images, from any known checkpoint, at the image size it was evaluated with.

    Args:
        checkpoint: path; see `models.load.load_detector`.
        device: `auto` takes a GPU if there is one.
        size: shorter side in pixels; None takes the checkpoint's.
    """
    model, categories, data = load_model(checkpoint)
    resize, chosen = eval_transform(size or data.eval_size, data.max_size), pick_device(device)
    selected_backend(chosen)
    names = {c.label: c.name for c in categories if c.name}
    prepare, transform = lambda p: to_rgb(upright(p)), lambda p: resize(to_image(p))
    return Predictor(model.to(chosen), prepare, transform, pad_images, postprocess, names, chosen)


COMMANDS: dict[str, tuple[Callable, type, str]] = {
    "train": (train, Config, "python main.py train --config configs/base.yaml --data.root path/to/coco"),
    "eval": (evaluate, EvalConfig, "python main.py eval --checkpoint runs/base/best.pth --data.root path/to/coco"),
    "predict": (predict, PredictConfig, 'python main.py predict --checkpoint runs/base/best.pth --input "*.jpg"'),
    "check-data": (check_data, CheckDataConfig, "python main.py check-data --data.root path/to/coco"),
}


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code: 0, 1 (defects or pictures left out), 2 (bad input), 130 (interrupted)."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if argv else 2
    try:
        if argv[0] not in COMMANDS:
            near = get_close_matches(argv[0], COMMANDS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(COMMANDS)}"
            raise UserError(f"unknown command '{argv[0]}'; {hint}")
        command, kind, example = COMMANDS[argv[0]]
        config = cli.parse(kind, argv[1:], f"main.py {argv[0]}", f"example: {example}", checkpoint_defaults(*argv))
        cli.check_ranges(config, RANGES)
        return command(config)
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)  # one line, whatever a library put into it
        return 2
    except OSError as error:
        if error.strerror is None:  # not the system's, but a library's own
            raise
        print(f"error: {error.strerror}: '{error.filename}'" if error.filename else f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def checkpoint_defaults(command: str, *argv: str) -> dict:
    """What a checkpoint named on the command line says: the whole run to resume it, its data section to evaluate."""
    option = {"train": "train.resume", "eval": "checkpoint"}.get(command)
    path = cli.peek(argv, option) if option else None
    config = saved_config(path, keep_paths=not cli.peek(argv, "data.root")) if path else {}
    return config if command == "train" else {k: config[k] for k in config if k == "data"}


def selected_backend(device: torch.device) -> str:
    """The operator's backend that will run; one that is asked for but not there is the user's to mend."""
    try:
        return ops.selected_backend(device.type)
    except RuntimeError as error:
        raise UserError(str(error)) from None


def required(value: str | None, option: str) -> str:
    """The value of an option that a command cannot do without."""
    if not value:
        raise UserError(f"--{option} is missing")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
