"""Training: epoch by epoch."""

import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice

from datasets.evaluation import Scores
from engine.evaluate import run_evaluation
from engine.set_up import Training, set_up
from engine.state import ended
from engine.step import TrainStep, plan_step
from util.config import Config
from util.distributed import World
from util.errors import Interrupted
from util.progress import progress
from util.signals import STOPPED, StopRequest


def train(config: Config, world: World) -> int:
    """Train a detector, evaluating as it goes; the run's folder gets checkpoints, figures and the configuration.

    Returns:
        0, or 75 if the run was asked to stop: it has saved what it needs to go on.
    """
    with StopRequest(quiet=not world.is_main) as stop:
        training = set_up(config, world)
        if training is None:
            return 0
        begun, state, run, scores = time.perf_counter(), training.step.state, training.run, None
        # Whatever happens, a checkpoint that was begun is finished, or said to have failed.
        with closing(training.loader), run.writer.finished():
            try:
                while not ended(state, run.config.train, training.epochs):
                    scores = run_epoch(training, stop)
            except Interrupted:
                if state.step < state.steps_per_epoch:  # else it was saved before the evaluation
                    run.save()
                run.wait()
                world.barrier()  # whoever ends first has the others ended, and rank 0 is writing
                print(f"stopped after step {state.global_step}; go on with --train.resume {run.folder}", flush=True)
                return STOPPED
        minutes = (time.perf_counter() - begun) / 60
        if state.epoch < training.epochs:
            print(f"\n{ended(state, run.config.train, training.epochs)}")
        print(f"\ntrained in {minutes:.1f} min, best {state.best_metric} {state.best:.3f}; of the last epoch:\n")
        if scores is not None:
            print(scores.text())
        run.finish()
        return 0


def run_epoch(training: Training, stop: StopRequest) -> Scores | None:
    """Train for one epoch, or what is left of it, evaluate if it is time to, and save.

    Returns:
        The scores, if the epoch ended with an evaluation; the last epoch always does.

    Raises:
        Interrupted: a process was asked to stop.
    """
    step, run, state, begun = training.step, training.run, training.step.state, time.perf_counter()
    cfg, name = run.config.train, f"epoch {state.epoch + 1}/{training.epochs}"
    training.loader.batches.set_epoch(state.epoch, state.step)
    train_one_epoch(step, training.loader, stop, cfg.log_every, name, run.log_means, run.save_in_time)
    line, scores, improved = f"{name}  {time.perf_counter() - begun:.0f} s", None, state.epoch == 0
    evaluated = state.epoch + 1 == training.epochs or (state.epoch + 1) % cfg.eval_every == 0
    if evaluated:
        run.save()  # stopped while it evaluates, it will begin there again
        scores, text = score_weights(training, stop)
        line += text
        value = scores.value(state.best_metric)
        improved = value > state.best or state.best == -1
        state.stale = 0 if value > state.best else state.stale + 1
        state.best = max(state.best, value)
    print(f"{line}  loss {state.means.take_total(training.world)['loss']:.3f}", flush=True)
    state.epoch, state.step = state.epoch + 1, 0
    run.save(best=improved, instead=evaluated)
    return scores


def score_weights(training: Training, stop: StopRequest) -> tuple[Scores, str]:
    """Score the weights, and their moving average if there is one, and log both.

    Returns:
        The scores of the average, if there is one, for that is what will be used; and a line about both.

    Raises:
        Interrupted: a process was asked to stop.
    """
    state, precision, text = training.step.state, training.run.config.train.precision, ""
    scored = {"eval": state.model, "eval_ema": state.ema.module} if state.ema else {"eval": state.model}
    for kind, weights in scored.items():
        scores, _ = run_evaluation(
            weights,
            training.val_loader,
            training.category_of,
            training.step.prepare,
            state.device,
            training.world,
            precision=precision,
            stop=stop,
            protocol=training.run.config.data.protocol,
        )
        training.run.write(kind, epoch=state.epoch + 1, **scores.figures, per_class=scores.per_class)
        of = "EMA " if kind == "eval_ema" else ""
        shown = dict.fromkeys(("AP", "AP50", state.best_metric))
        text += "".join(f"  {of}{name} {scores.value(name):.3f}" for name in shown)
    return scores, text


def train_one_epoch(
    step: TrainStep,
    loader,
    stop: StopRequest,
    log_every: int = 50,
    description: str = "train",
    on_log: Callable[[dict[str, float]], None] | None = None,
    on_step: Callable[[], None] | None = None,
) -> None:
    """One pass over the training images, or what is left of it.

    Args:
        step: makes optimiser steps.
        loader: yields this process's micro-batches of each step, from the state's step on.
        stop: looked at before each step.
        log_every: steps between logs, which is how often losses are brought to the host.
        description: text beside the progress bar.
        on_log: called with mean losses.
        on_step: called after each step.

    Raises:
        Interrupted: a process was asked to stop, after the step before this one.
        NonFinite: losses or gradients are.
    """
    state, world = step.state, step.world
    step.model.train()
    left = islice(loader, state.steps_per_epoch - state.step)
    bar = progress(left, description, world, total=state.steps_per_epoch, initial=state.step)
    for micro_batches in bar:
        plan = plan_step(micro_batches, world, stop)
        if plan.stop:
            raise Interrupted
        step(micro_batches, plan)
        if state.step % log_every == 0 or state.step == state.steps_per_epoch:
            means = step.means()
            bar.set_postfix(loss=f"{means['loss']:.3f}")
            if on_log is not None:
                on_log(means)
        if on_step is not None:
            on_step()
