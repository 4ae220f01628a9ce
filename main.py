"""Deformable DETR: train, evaluate, predict, ablate, check data and profile from one command line.

    python main.py train      --config configs/quickstart.yaml
    python main.py eval       --checkpoint runs/quickstart/best.pth
    python main.py predict    --checkpoint runs/quickstart/best.pth --input photos/
    python main.py visualize  --checkpoint runs/quickstart/best.pth --input photo.jpg
    python main.py ablate     --config configs/quickstart.yaml --grid model.num_points=1,2,4 --seeds 3
    python main.py check-data --data.root path/to/coco
    python main.py profile    --config configs/base.yaml

`python main.py COMMAND --help` lists every option of a command.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from copy import copy
from dataclasses import asdict
from difflib import get_close_matches
from functools import partial
from inspect import signature
from pathlib import Path

import torch
from PIL import Image
from timm.utils import ModelEmaV3
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import ops
from ablation.costs import data_sizes, measure_side_by_side, untrained_cost
from ablation.eval_only import ablate_trained, checkpoints_of
from ablation.grid import Cell, cells_of, parse_grid, variants_of
from ablation.processes import locked, run_cells, shares, visible_gpus
from ablation.records import Record, check_folder, read_records
from ablation.sweep import Sweep
from analysis.errors.analyse import analyse
from analysis.looks.look import Look, check_maps
from datasets.coco import (
    Category,
    CocoDetection,
    foreign_categories,
    load_annotations,
    match_categories,
    read_json,
)
from datasets.defects import check_dataset
from datasets.device import ToDevice
from datasets.evaluation import Scores, evaluate_detections, to_coco_results
from datasets.images import list_pictures, read_image, to_rgb, upright
from datasets.loader import Batch, eval_loader, pad_images, train_loader
from datasets.splits import build_dataset, dataset_paths
from datasets.transforms import eval_transform, to_image
from engine.header import train_header
from engine.merge import merge_views
from engine.optim import adamw, lr_factor, set_lr
from engine.predict import Predictor
from engine.run import Run, checkpoint_to_resume
from engine.state import TrainingState
from engine.step import detect, train_one_epoch
from engine.sync_norm import synchronise_batch_norms
from engine.tta import EverySize, MultiView, ViewBatch, sizes_of, views_of
from models.detector import DeformableDETR
from models.from_config import build_criterion, build_mimic, build_model
from models.load import load_detector
from models.mimic import FeatureMimic, WithMimicking
from models.postprocess import postprocess
from util import cli
from util.checkpoint import kept_checkpoints, load_matching_weights, saved_config
from util.config import (
    RANGES,
    AblateConfig,
    CheckDataConfig,
    Config,
    EvalConfig,
    EvalDataConfig,
    PredictConfig,
    ProfileConfig,
    TTAConfig,
    ValPaths,
    VisualizeConfig,
    from_dict,
)
from util.devices import pick_device
from util.distributed import World, check_gpus, is_lost_peer, join, lost_contact
from util.errors import Interrupted, PeerLost, UserError
from util.files import make_folder
from util.profiling import image_size, profile_model
from util.progress import progress
from util.signals import STOPPED, StopRequest
from util.tables import score_tables


def train(config: Config, world: World) -> int:
    """Train a detector, evaluating as it goes; the run's folder gets checkpoints, figures and the configuration."""
    with StopRequest(quiet=not world.is_main) as stop:
        return train_until(stop, config, world)


def train_until(stop: StopRequest, config: Config, world: World) -> int:
    """Build everything, go on where a checkpoint was, train and evaluate epoch by epoch; 75 if asked to stop."""
    cfg = config.train
    check_gpus(world, cfg.device)
    device = pick_device(cfg.device, world.local_rank)
    backend = selected_backend(device)
    output = Path(cfg.output) / ("fast_dev_run" if cfg.fast_dev_run else "")
    resumed = checkpoint_to_resume(None if cfg.fast_dev_run and cfg.resume == "auto" else cfg.resume, output)
    torch.manual_seed(cfg.seed)
    with world.one_a_machine_first():  # which generates shapes and fetches weights
        dataset, val_dataset = build_dataset(config.data, "train", cfg.seed), build_dataset(config.data, "val")
        source = load_detector(config.model.init_from) if config.model.init_from and not resumed else None
        # The backbone's own weights, unless a checkpoint brings them.
        brings = resumed or (source and source.config.backbone.name == config.model.backbone.name)
        num_classes = 1 + max(c.label for c in dataset.categories)
        model = build_model(config.model, num_classes, config.loss.auxiliary, "none" if brings else None)
        branch = build_mimic(config.loss, config.model, model)
    category_of = match_categories(dataset.categories, val_dataset.categories, "training images")

    dtype = torch.float64 if cfg.precision == "fp64" else torch.float32
    for part in (model, branch) if branch else (model,):
        part.to(device, dtype)
    share, pin, workers = (world.rank, world.size), device.type == "cuda", config.data.workers
    per_process = images_per_process(config, len(dataset), world)
    micro = min(cfg.max_images_per_device or per_process, per_process)
    loader = train_loader(dataset, cfg.batch_size, micro, workers, cfg.seed, pin, share, config.data.group_by_aspect)
    eval_batch = cfg.eval_batch_size or min(8, cfg.max_images_per_device or cfg.batch_size)
    limit = 2 if cfg.fast_dev_run else None
    val_loader = eval_loader(val_dataset, eval_batch, workers, pin, share, limit)
    epochs, num_steps = (1, min(2, len(loader))) if cfg.fast_dev_run else (cfg.epochs, len(loader))

    optimizer = adamw(model, cfg.lr, cfg.lr_backbone, cfg.lr_offset_factor, cfg.weight_decay, branch)
    scaler = torch.amp.GradScaler(device.type, enabled=cfg.precision == "fp16")
    if source:
        left_out = load_matching_weights(model, source.model.state_dict(), config.model.init_from)
        print(f"weights from {config.model.init_from}; not loaded: {len(left_out)}", *left_out, sep="\n  ")
    ema = ModelEmaV3(model, cfg.ema_decay, use_warmup=True) if cfg.ema_decay else None
    order = [len(dataset), loader.batch_sampler.batch_size, cfg.seed, int(config.data.group_by_aspect)]
    state = TrainingState(model, optimizer, scaler, device, ema, num_steps, order, branch=branch)
    if world.rank:
        torch.manual_seed(cfg.seed + world.rank)  # dropout in each process its own
    same_folder = False
    if resumed:
        for remark in state.restore(resumed, world, position=not cfg.fast_dev_run):
            print(remark)
        same_folder = resumed.path.resolve().parent == output.resolve()
    if len(set(map(tuple, world.exchange([state.epoch, state.step, int(resumed is not None)])))) > 1:
        raise UserError(
            f"the processes do not find the same checkpoint; '{output}' must be a folder that all machines see"
        )
    if resumed and state.epoch >= epochs:
        print(f"'{resumed.path}' has finished its {state.epoch} epochs; to go on, give a larger --train.epochs")
        return 0
    state.best = state.best if (output / "best.pth").exists() else -1.0
    del resumed, source  # whole models

    print(train_header(config, model, dataset, val_dataset, state, epochs, backend, world))
    cfg.resume = None  # what is kept describes the run, not how it was last started
    run = Run(output, state, config, cli.to_yaml(config), dataset.categories, world, same_folder)
    wrapped = prepare_model(config, model, branch, device, world)
    criterion, prepare = build_criterion(config.loss), ToDevice(device, dtype)
    started, scores = time.perf_counter(), None

    def schedule(step: int) -> None:
        set_lr(optimizer, lr_factor(step, num_steps, epochs, cfg.schedule, cfg.drop_epochs, cfg.warmup_steps))

    with closing(loader):
        try:
            while state.epoch < epochs:
                begun = time.perf_counter()
                loader.batch_sampler.set_epoch(state.epoch, state.step)
                train_one_epoch(
                    wrapped,
                    criterion,
                    loader,
                    state,
                    prepare,
                    schedule,
                    world,
                    stop,
                    clip_norm=cfg.clip_norm,
                    precision=cfg.precision,
                    same_padding=cfg.padding == "batch",
                    with_targets=branch is not None,
                    log_every=cfg.log_every,
                    description=f"epoch {state.epoch + 1}/{epochs}",
                    on_log=lambda means: run.write("train", lr=optimizer.param_groups[-1]["lr"], **means),
                    on_step=run.save_in_time,
                    dump=run.dump,
                )
                evaluated = state.epoch + 1 == epochs or (state.epoch + 1) % cfg.eval_every == 0
                line = f"epoch {state.epoch + 1}/{epochs}  {time.perf_counter() - begun:.0f} s"
                improved = state.epoch == 0
                if evaluated:
                    run.save()  # stopped while it evaluates, it will begin there again
                    scored = {"eval": model, "eval_ema": ema.module} if ema else {"eval": model}
                    for kind, weights in scored.items():
                        scores, _ = run_evaluation(
                            weights, val_loader, category_of, prepare, device, world, precision=cfg.precision, stop=stop
                        )
                        run.write(kind, epoch=state.epoch + 1, **scores.figures, per_class=scores.per_class)
                        name = "EMA " if kind == "eval_ema" else ""
                        line += f"  {name}AP {scores.figures['AP']:.3f}  {name}AP50 {scores.figures['AP50']:.3f}"
                    # The last one counts: the average's, if there is one, for that is what will be used.
                    improved = scores.figures["AP"] > state.best or state.best == -1
                    state.best = max(state.best, scores.figures["AP"])
                print(f"{line}  loss {state.means.take_total(world)['loss']:.3f}", flush=True)
                state.epoch, state.step = state.epoch + 1, 0
                run.save(best=improved, instead=evaluated)
        except Interrupted:
            if state.step < num_steps:  # else it was saved before the evaluation
                run.save()
            world.barrier()  # whoever ends first has the others ended, and rank 0 is writing
            print(f"stopped after step {state.global_step}; go on with --train.resume {output}", flush=True)
            return STOPPED
    minutes = (time.perf_counter() - started) / 60
    print(f"\ntrained in {minutes:.1f} min, best AP {state.best:.3f}; of the last epoch:\n")
    print(score_tables(scores.figures, scores.per_class))
    run.finish()
    return 0


def images_per_process(config: Config, images: int, world: World) -> int:
    """Images of a step that one process takes at most; refuses batches that cannot be shared."""
    batch = min(config.train.batch_size, images)
    if batch < world.size:
        raise UserError(f"a batch of {batch} images cannot be shared by {world.size} processes; raise train.batch_size")
    if batch % world.size and config.model.backbone.norm == "trainable":
        raise UserError(
            f"a batch of {batch} images is no multiple of {world.size} processes, which trained batch norms need: they "
            "take the statistics of all; change train.batch_size, or --model.backbone.norm frozen"
        )
    return -(-batch // world.size)


def prepare_model(
    config: Config, model: DeformableDETR, branch: FeatureMimic | None, device: torch.device, world: World
) -> torch.nn.Module:
    """The model as it trains: options of memory and speed, what teaches it, gradients exchanged between processes."""
    model.transformer.checkpointing = config.train.checkpoint_activations
    if world.size > 1 and config.model.backbone.norm == "trainable":
        synchronise_batch_norms(model)
    if config.train.compile:
        model.compile_parts()
    trained = WithMimicking(model, branch) if branch else model
    if world.size == 1:
        return trained
    devices = [device] if device.type == "cuda" else None
    # Buffers are the same everywhere already; torch renamed the option that says so.
    renamed = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    still = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(trained, devices, gradient_as_bucket_view=True, **still)


def evaluate(config: EvalConfig, world: World) -> int:
    """Score a checkpoint, or saved detections: the 12 COCO figures, AP by class and, if asked, where it errs."""
    tta = None
    if config.detections:
        if world.size > 1:
            raise UserError("saved detections are scored by one process; start it without torchrun")
        if config.checkpoint:
            raise UserError("give either --checkpoint or --detections, not both")
        if config.tta != TTAConfig():
            raise UserError("saved detections have no views; --tta.flip and all of --tta need a --checkpoint")
        truth = config.data.val_annotations or (config.data.root and dataset_paths(config.data, "val")[1])
        if not truth:
            raise UserError("to score saved detections, give their ground truth with --data.val_annotations FILE")
        annotations, results = load_annotations(truth), read_json(config.detections, "file of detections")
        scores = evaluate_detections(annotations, results, config.top_k)
        folder = config.data.val_images or (config.data.root and dataset_paths(ValPaths(config.data.root), "val")[0])
        output = make_folder(config.output, "output")
    else:
        check_gpus(world, config.device)
        device = pick_device(config.device, world.local_rank)
        backend = selected_backend(device)
        views = views_of(config.tta, config.data.eval_size, config.data.max_size)
        sizes = sizes_of(views)
        model, categories, _ = load_model(required(config.checkpoint, "checkpoint"), config.weights)
        with world.one_a_machine_first():
            dataset = build_dataset(config.data, "val")
        annotations, truth, folder = dataset.annotations, dataset.annotation_file, dataset.image_folder
        category_of = match_categories(categories, dataset.categories, "checkpoint")
        share = (world.rank, world.size)
        workers, loaders = -(-config.data.workers // len(sizes)), []  # the loaders of all sizes run at once
        for size in sizes:
            sized = copy(dataset)
            sized.transform = eval_transform(*size)
            loaders.append(eval_loader(sized, config.batch_size, workers, device.type == "cuda", share))
        output = make_folder(config.output, "output")
        several = f", {world.size} processes" if world.size > 1 else ""
        print(f"{len(dataset)} images, {len(category_of)} classes, operator {backend} on {device}{several}\n")
        model, loader, prepare, pick = model.to(device), loaders[0], ToDevice(device), postprocess
        if len(views) > 1:
            model = tta = MultiView(model, views, prepare, pick, merge_views, config.tta)
            loader, prepare, pick = EverySize(loaders), tta.prepare, tta.postprocess
            print(f"{tta.describe()}\n")
        scores, results = run_evaluation(
            model, loader, category_of, prepare, device, world, config.top_k, postprocess=pick
        )
        if world.is_main:
            (output / "detections.json").write_text(json.dumps(results))
    if world.is_main:
        more = {"tta": tta.to_dict()} if tta else {}
        (output / "results.json").write_text(json.dumps(asdict(scores) | more, indent=1))
    print(score_tables(scores.figures, scores.per_class))
    if tta:
        print(f"\n{tta.cost_line()}")
    print(f"\nfigures are in {output / 'results.json'}")
    if config.analyse and world.is_main:
        kind, of = ("saved detections", config.detections) if config.detections else ("checkpoint", config.checkpoint)
        subject, options = {kind: of, "data": str(truth)}, (config.top_k, config.threshold, config.worst)
        subject |= {"views": tta.describe()} if tta else {}
        print("\n" + analyse(annotations, results, output, folder, subject, *options))
    return 0


def run_evaluation(
    model: torch.nn.Module,
    loader: DataLoader,
    category_of: dict[int, int],
    prepare: Callable,
    device: torch.device,
    world: World,
    top_k: int = 100,
    precision: str = "fp32",
    stop: StopRequest | None = None,
    postprocess: Callable = postprocess,
) -> tuple[Scores, list[dict]]:
    """Detect in every batch of every process and score what was found; also returns it in COCO result format.

    Rank 0 scores; the others get the same figures from it, and no detections.
    """
    pick = partial(postprocess, top_k=top_k)
    found = detect(model, loader, pick, prepare, device, precision, world=world, stop=stop)
    scores, results = None, []
    if found is not None:
        results = [r for i, d in found for r in to_coco_results(i, d.boxes, d.scores, d.labels, category_of)]
        scores = evaluate_detections(loader.dataset.annotations, results, top_k, [i for i, _ in found])
    return world.broadcast(scores), results


def predict(config: PredictConfig, world: World) -> int:
    """Draw what is found in every picture and list it in one JSON; exits with 1 if a picture could not be read."""
    pictures = list_pictures(required(config.input, "input"))
    checkpoint = required(config.checkpoint, "checkpoint")
    predictor = load_predictor(checkpoint, config.device, config.size, config.weights, config.tta)
    output = make_folder(config.output, "output")
    if any(path.resolve().parent == output.resolve() for path in pictures):
        raise UserError(f"output '{output}' is the folder of the pictures, which the drawn ones could overwrite")
    listed: dict[str, dict] = {}
    names: set[str] = set()
    for path, picture in read_each(pictures, "predict"):
        found = predictor(picture, config.threshold, config.top_k)
        drawn = unused_name(path.stem, names) + ".png"
        predictor.draw(picture, found).save(output / drawn)
        size = {"width": picture.width, "height": picture.height}
        listed[drawn] = {"file": str(path), **size, "detections": predictor.describe(found)}
    (output / "predictions.json").write_text(json.dumps([{"drawn": k, **v} for k, v in listed.items()], indent=1))
    boxes = sum(len(entry["detections"]) for entry in listed.values())
    print(f"{boxes} boxes on {len(listed)} pictures; the drawn pictures and predictions.json are in {output}")
    if listed and isinstance(predictor.model, MultiView):
        print(predictor.model.cost_line())
    return int(len(listed) < len(pictures))


def visualize(config: VisualizeConfig, world: World) -> int:
    """Draw where a detector looks on every picture; exits with 1 if a picture could not be read."""
    check_maps(config.maps)
    pictures = list_pictures(required(config.input, "input"))
    if config.checkpoint:
        predictor = load_predictor(config.checkpoint, config.device, config.size, config.weights)
    else:
        torch.manual_seed(0)  # the same untrained model every time
        model = build_model(config.model, config.num_classes, backbone_weights="none")
        names = [Category(i, i, f"class {i}") for i in range(config.num_classes)]
        predictor = make_predictor(model, names, EvalDataConfig(), config.device, config.size)
    output, used = make_folder(config.output, "output"), set()
    for path, picture in read_each(pictures, "visualize"):
        look, name = Look(predictor, picture, config), unused_name(path.stem, used)
        folder = output if len(pictures) == 1 else make_folder(output / name, "output")
        written = look.draw(folder)
        print(f"{path}: {', '.join(written)} in {folder}", *look.remarks, sep="\n  ")
    return int(len(used) < len(pictures))


def read_each(paths: Sequence[Path], description: str) -> Iterator[tuple[Path, Image.Image]]:
    """Every picture that can be read, with its path; says of the others why they are left out."""
    for path in progress(paths, description):
        try:
            picture = read_image(path)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
        else:
            yield path, picture


def unused_name(stem: str, used: set[str]) -> str:
    """A name for what is drawn of a picture, added to `used`: of several folders, pictures may share one."""
    name, number = stem, 1
    while name in used:
        number += 1
        name = f"{stem}_{number}"
    used.add(name)
    return name


def ablate(config: AblateConfig, world: World) -> int:
    """Train every variant with every seed, going on where an earlier call ended, and compare them; 1 if any failed."""
    cells = cells_of(from_dict(Config, asdict(config)), variants_of(config.grid, config.variants), config.seeds)
    device, output = pick_device(config.train.device), Path(config.output)
    backend = selected_backend(device)
    if config.eval_only:
        required(config.checkpoint, "checkpoint")

        def score(model: DeformableDETR, categories: list[Category], dataset: CocoDetection) -> dict[str, float]:
            category_of = match_categories(categories, dataset.categories, "checkpoint")
            batch, workers = config.train.eval_batch_size or 4, config.data.workers
            loader = eval_loader(dataset, batch, workers, device.type == "cuda")
            scores, _ = run_evaluation(model.to(device), loader, category_of, ToDevice(device), device, world)
            return scores.figures

        print(ablate_trained(config, cells, device, backend, load_model, score))
        return 0
    if config.checkpoint:
        raise UserError("--checkpoint is for --eval_only; to start runs from its weights, give --model.init_from")
    check_folder(output, eval_only=False)
    records = read_records(cells, output)
    first = {cell.variant.name: cell.config for cell in reversed(cells)}
    data = data_sizes(first)
    gpus = visible_gpus() if device.type == "cuda" and device.index in (None, 0) else []
    places, threads = shares(config.jobs, gpus), torch.get_num_threads()
    torch.set_num_threads(int(places[0].get("OMP_NUM_THREADS", threads)))  # as the runs, whose time is estimated
    unfinished = {c.variant.name for c in cells if c.name not in records or records[c.name].status != "done"}
    costs = {
        name: untrained_cost(first[name], data[name], device, timed=name in unfinished)
        for name in progress(dict.fromkeys(c.variant.name for c in cells), "plan")
    }
    sweep = Sweep(output, cells, list(config.grid), records, costs)
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the runs need it
    print(sweep.plan(data, config.jobs, f"{device}, operator {backend}"))
    if config.dry_run:
        return 0

    make_folder(output, "output")
    with locked(output) as lock, StopRequest() as stop, progress(None, "sweep") as bar:
        (output / "sweep.yaml").write_text(cli.to_yaml(config))
        records.update(read_records(cells, output))  # of another sweep that has just ended
        sweep.refuse_impossible()
        names = [cell.name for cell in sweep.left]

        def ended(cell: Cell, record: Record) -> None:
            bar.write(sweep.line(cell, record, names, config.jobs))
            sys.stdout.flush()  # into a file, too, at once
            bar.update(record.status != "unfinished")
            try:
                sweep.write()
            except OSError as error:  # a full disk must not end the runs that are going on
                print(f"table and plots of '{output}' are not up to date: {error}", file=sys.stderr)

        bar.reset(len(names))
        run_cells(
            sweep.left, records, output, places, lock, stop, ended, lambda now: bar.set_postfix_str(", ".join(now))
        )
        if stop.requested:
            print(f"stopped; the same command goes on, in {output}", flush=True)
            return STOPPED
    possible = {name: first[name] for name, cost in costs.items() if not cost.failure}
    models = {n: build_model(c.model, data[n].classes, c.loss.auxiliary, "none") for n, c in possible.items()}
    measure_side_by_side(models, costs, device, config.repeats)
    print(sweep.summary())
    return int(any(record.status == "failed" for record in records.values()))


def check_data(config: CheckDataConfig, world: World) -> int:
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


def profile(config: ProfileConfig, world: World) -> int:
    """Print what a model costs, by part and by image size."""
    device, sizes = pick_device(config.device), [image_size(text) for text in config.sizes]
    backend = selected_backend(device)
    if config.checkpoint:
        model = load_model(config.checkpoint)[0]
    else:
        model = build_model(config.model, config.num_classes, backbone_weights="none")
    model.to(torch.float64 if config.precision == "fp64" else torch.float32)
    if config.compile:
        model.compile_parts()
    print(
        f"operator {backend} on",
        profile_model(model, sizes, config.batch_size, config.precision, device, config.repeats),
    )
    return 0


def load_model(checkpoint: str, weights: str = "auto") -> tuple[DeformableDETR, list[Category], EvalDataConfig]:
    """A model in evaluation mode from any known checkpoint, its classes, and the data section it was trained with."""
    loaded = load_detector(checkpoint, weights)
    categories = [Category(**c) for c in loaded.categories]
    if not categories:
        categories = foreign_categories(loaded.model.num_classes, loaded.names)
    return loaded.model, categories, from_dict(EvalDataConfig, loaded.data)


def load_predictor(
    checkpoint: str,
    device: str = "auto",
    size: int | None = None,
    weights: str = "auto",
    tta: TTAConfig | None = None,
) -> Predictor:
    """A detector that takes PIL images, from any known checkpoint, at the image size it was evaluated with.

    Args:
        checkpoint: path; see `models.load.load_detector`.
        device: `auto` takes a GPU if there is one.
        size: shorter side in pixels; None takes the checkpoint's.
        weights: `ema` for the moving average, `model` for the weights themselves, `auto` for the former if it is there.
        tta: views of each picture, whose detections are merged; None looks once.
    """
    return make_predictor(*load_model(checkpoint, weights), device, size, tta)


def make_predictor(
    model: DeformableDETR,
    categories: list[Category],
    data: EvalDataConfig,
    device: str,
    size: int | None,
    tta: TTAConfig | None = None,
) -> Predictor:
    """A model that takes PIL images; `load_predictor` says how."""
    tta = tta or TTAConfig()
    views, chosen = views_of(tta, size or data.eval_size, data.max_size), pick_device(device)
    selected_backend(chosen)
    names = {c.label: c.name for c in categories if c.name}
    resizes, to_device = [eval_transform(*s) for s in sizes_of(views)], ToDevice(chosen)
    model, pick = model.to(chosen), postprocess
    if len(views) > 1:
        model = MultiView(model, views, to_device, pick, merge_views, tta)
        pick = model.postprocess

    def batch_of(pictures: Sequence[Image.Image]) -> Batch | ViewBatch:
        images = [to_image(p) for p in pictures]
        batches = [Batch(*pad_images([resize(i) for i in images]), []) for resize in resizes]
        return model.prepare(batches) if len(views) > 1 else to_device(batches[0])

    return Predictor(model, lambda p: to_rgb(upright(p)), batch_of, pick, names)


COMMANDS: dict[str, tuple[Callable, type, str]] = {
    "train": (train, Config, "python main.py train --config configs/base.yaml --data.root path/to/coco"),
    "eval": (evaluate, EvalConfig, "python main.py eval --checkpoint runs/base/best.pth --data.root path/to/coco"),
    "predict": (predict, PredictConfig, 'python main.py predict --checkpoint runs/base/best.pth --input "*.jpg"'),
    "visualize": (visualize, VisualizeConfig, "python main.py visualize --checkpoint runs/base --input photo.jpg"),
    "profile": (profile, ProfileConfig, "python main.py profile --config configs/base.yaml"),
    "ablate": (
        ablate,
        AblateConfig,
        "python main.py ablate --config configs/quickstart.yaml --grid model.num_points=1,2,4 --seeds 3",
    ),
    "check-data": (check_data, CheckDataConfig, "python main.py check-data --data.root path/to/coco"),
}


def main(argv: Sequence[str]) -> int:
    """Run one command; under torchrun, in each of its processes.

    Returns:
        The exit code: 0, 1 (defects, or pictures left out), 2 (bad input), 3 (another process has gone), 75 (stopped
        by a signal, and can be resumed), 130 (interrupted).
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if argv else 2
    try:
        with join() as world:
            code, message = run_command(argv, world)
            if message and world.first_to_fail():  # the others fail of the same, or because this one has gone
                where = f"process {world.rank} of {world.size}: " if world.rank else ""
                print("error:", where + " ".join(message.split()), file=sys.stderr, flush=True)
            if message and world.size > 1:
                sys.stdout.flush()
                os._exit(code)  # leaving in good order would wait for processes that may wait for this one
            return code
    except UserError as error:  # of joining
        print("error:", error, file=sys.stderr)
        return 2


def run_command(argv: Sequence[str], world: World) -> tuple[int, str]:
    """Parse and run; the exit code, and what to tell the user if it went wrong."""
    try:
        if argv[0] not in COMMANDS:
            near = get_close_matches(argv[0], COMMANDS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(COMMANDS)}"
            raise UserError(f"unknown command '{argv[0]}'; {hint}")
        command, kind, example = COMMANDS[argv[0]]
        if world.size > 1 and command not in (train, evaluate):
            raise UserError(f"{argv[0]} is for a single process; start it without torchrun")
        # A preset describes training; to profile or to look at it, its model is enough.
        others = ("loss", "data", "train") if command in (profile, visualize) else ()
        base = checkpoint_defaults(*argv)
        options = with_grid(argv[1:]) if command is ablate else argv[1:]
        config = cli.parse(kind, options, f"main.py {argv[0]}", f"example: {example}", base, others)
        cli.check_ranges(config, RANGES)
        return command(config, world), ""
    except PeerLost as error:
        return 3, str(error)
    except UserError as error:
        return 2, str(error)
    except OSError as error:
        if error.strerror is None:  # not the system's, but a library's own
            raise
        return 2, f"{error.strerror}: '{error.filename}'" if error.filename else str(error)
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        return 3, lost_contact(error)
    except KeyboardInterrupt:
        return 130, "interrupted"


def with_grid(argv: Sequence[str]) -> list[str]:
    """Every --grid KEY=VALUES on the line gathered into one option, added to those of the files before it."""
    texts, rest = cli.take(argv, "grid")
    if not texts:
        return list(argv)
    grid = cli.peek_mapping(rest, "grid") | parse_grid(texts)
    return [*rest, f"--grid={json.dumps(grid, default=str)}"]  # YAML makes dates of what was meant as text


def checkpoint_defaults(command: str, *argv: str) -> dict:
    """What a checkpoint named on the command line says: the whole run to resume it, its data section to evaluate."""
    option = {"train": "train.resume", "eval": "checkpoint", "ablate": "checkpoint"}.get(command)
    path = cli.peek(argv, option) if option else None
    if path and command == "ablate":
        path = checkpoints_of(path)[0]
    if path == "auto" and command == "train":
        folder = cli.peek(argv, "train.output") or Config().train.output
        path = folder if kept_checkpoints(folder) else None
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
