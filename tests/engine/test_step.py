"""The training step: accumulation is exact, the rate is set, losses are means, clipping clips."""

from dataclasses import replace

import pytest
import torch
from timm.utils import ModelEmaV3

from datasets.batch import Batch
from engine.state import TrainingState
from engine.step import TrainStep
from engine.train import train_one_epoch
from models.from_config import build_criterion
from tests.models.helpers import padded_batch, random_objects, small_model
from util.config import LossConfig
from util.devices import pick_device
from util.distributed import ALONE
from util.errors import Interrupted, NonFinite, UserError
from util.signals import StopRequest

CPU = torch.device("cpu")


def batch_of(counts: list[int], seed: int = 0) -> Batch:
    images, mask = padded_batch([(48, 64)] * len(counts), seed)
    objects = [replace(o, boxes=o.boxes.double()) for o in random_objects(counts, seed=seed)]
    return Batch(images.double(), mask, objects, [(48, 64)] * len(counts))


def split(batch: Batch, size: int) -> list[Batch]:
    parts = [slice(i, i + size) for i in range(0, len(batch.objects), size)]
    return [Batch(batch.images[s], batch.padding_mask[s], batch.objects[s], batch.sizes[s]) for s in parts]


def still_norms(model: torch.nn.Module) -> torch.nn.Module:
    """Batch statistics are the one thing that accumulation changes."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.forward = lambda x, m=module: torch.nn.functional.batch_norm(
                x, m.running_mean, m.running_var, m.weight, m.bias, training=False, eps=m.eps
            )
    return model


def state_of(model: torch.nn.Module, steps: int, ema: ModelEmaV3 | None = None) -> TrainingState:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    return TrainingState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), CPU, ema, steps)


def run_epoch(
    state: TrainingState,
    steps: list[list[Batch]],
    stop: StopRequest | None = None,
    log_every: int = 50,
    on_step=None,
    **options,
) -> list[tuple[int, dict]]:
    """Logged (step, means)."""
    logged, criterion = [], build_criterion(LossConfig())
    step = TrainStep(state.model, criterion, lambda batch, size: batch, state, lambda number: None, **options)
    on_log = lambda means: logged.append((state.global_step, means))  # noqa: E731
    train_one_epoch(step, steps, stop or StopRequest(), log_every, on_log=on_log, on_step=on_step)
    return logged


def trained(micro: int, clip_norm: float = 0.0) -> tuple[dict, dict, list]:
    """Three steps of plain SGD in float64 on the same four images a step, in micro-batches of `micro`."""
    state = state_of(still_norms(small_model(refinement=True).double()), 3)
    steps = [split(batch_of([3, 0, 1, 2], seed), micro) for seed in range(3)]
    logged = run_epoch(state, steps, clip_norm=clip_norm, log_every=2)
    return state.model.state_dict(), state.means.take_total(ALONE), logged


def test_accumulation_is_exact():
    whole, figures, _ = trained(4)
    for micro in (1, 2, 3):
        parts, figures_of_parts, _ = trained(micro)
        assert figures_of_parts["loss"] == pytest.approx(figures["loss"], rel=1e-9)
        for name, tensor in whole.items():
            torch.testing.assert_close(parts[name], tensor, atol=1e-9, rtol=1e-7)


def test_losses_are_means_and_are_logged():
    _, figures, logged = trained(4)
    assert [step for step, _ in logged] == [2, 3]
    means = (2 * logged[0][1]["loss"] + logged[1][1]["loss"]) / 3
    assert figures["loss"] == pytest.approx(means)
    parts = sum(v for k, v in figures.items() if k.startswith(("class/", "l1/", "giou/")))
    assert figures["loss"] == pytest.approx(parts)


def test_clipping_bounds_the_step():
    start = small_model(refinement=True).double().state_dict()
    end, figures, _ = trained(4, clip_norm=0.01)
    moved = sum((end[k] - start[k]).double().square().sum() for k in end if start[k].is_floating_point()).sqrt()
    assert figures["grad_norm"] > 1
    assert moved <= 3 * 1e-3 * 0.01 * 1.001


@pytest.mark.parametrize("name", ["cuda:99", "abacus", "meta"])
def test_a_device_that_cannot_be_used(name):
    with pytest.raises(UserError, match=name):
        pick_device(name)


def test_a_request_to_stop_is_heard_before_the_next_step():
    state, stop = state_of(still_norms(small_model().double()), 3), StopRequest()

    def after_step() -> None:
        stop.requested = state.step == 2

    steps = [[batch_of([1], seed)] for seed in range(3)]
    with pytest.raises(Interrupted):
        run_epoch(state, steps, stop, on_step=after_step)
    assert state.step == state.global_step == 2


def test_the_average_of_weights_is_the_hand_worked_one():
    """theta' = d theta' + (1 - d) theta after every step; d rises as 1 - (1 + step) ** (-2/3) up to its largest."""
    model = still_norms(small_model().double())
    state = state_of(model, 4, ModelEmaV3(model, 0.6, use_warmup=True))
    name = "transformer.encoder.0.ffn.linear1.weight"
    seen = []
    run_epoch(
        state, [[batch_of([2], s)] for s in range(4)], on_step=lambda: seen.append(model.state_dict()[name].clone())
    )
    average = seen[0]  # the first step copies
    for step, weights in enumerate(seen[1:], start=1):
        decay = min(0.6, 1 - (1 + step) ** (-2 / 3))
        average = decay * average + (1 - decay) * weights
    torch.testing.assert_close(state.ema.module.state_dict()[name], average, rtol=1e-12, atol=1e-12)
    assert not torch.equal(average, seen[-1])


def test_activation_checkpointing_computes_inside_layers_twice_and_changes_nothing():
    def gradients(checkpointing: bool) -> tuple[dict, int]:
        model = still_norms(small_model(dropout=0.1).double())
        model.transformer.checkpointing = checkpointing
        calls = []
        for layer in (*model.transformer.encoder, *model.transformer.decoder):
            layer.ffn.register_forward_hook(lambda *_: calls.append(1))
        torch.manual_seed(5)  # of dropout, which must fall alike the second time
        state = state_of(model, 1)
        run_epoch(state, [[batch_of([2, 1])]], clip_norm=0)
        return model.state_dict(), len(calls)

    (plain, once), (checkpointed, twice) = gradients(False), gradients(True)
    assert (once, twice) == (3, 6)
    for name, tensor in plain.items():
        torch.testing.assert_close(checkpointed[name], tensor, rtol=1e-12, atol=1e-12)


def test_evaluation_computes_nothing_twice():
    model = small_model().eval()
    model.transformer.checkpointing = True
    calls = []
    model.transformer.encoder[0].ffn.register_forward_hook(lambda *_: calls.append(1))
    model(*padded_batch([(48, 64)]))
    assert len(calls) == 1


@pytest.mark.parametrize("where", ["images", "weights"])
def test_a_step_that_is_not_finite_changes_nothing_and_names_its_images(where):
    model = still_norms(small_model().double())
    batch = batch_of([2, 1])
    if where == "images":
        batch.images[1, 0, 3, 3] = float("nan")
    else:
        with torch.no_grad():
            model.heads[0].classify.bias[0] = 1e308  # finite predictions, an infinite loss
    state, before, dumped = state_of(model, 1), {k: v.clone() for k, v in model.state_dict().items()}, []

    def dump(culprit) -> str:
        dumped.append(culprit)
        return "file.pth"

    with pytest.raises(NonFinite, match=r"step 1: .*images 100, 101; python scripts/replay_batch.py file.pth"):
        run_epoch(state, [[batch]], dump=dump)
    for name, tensor in model.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(tensor, before[name]), name
    assert dumped[0].step == 1 and dumped[0].num_boxes == 3


def test_fp16_that_never_recovers_ends_the_run():
    """Losses are finite, gradients never: every step is left out, and the scale only falls."""
    model = still_norms(small_model())
    model.heads[0].classify.bias.register_hook(lambda gradient: gradient * float("nan"))
    state = state_of(model, 3)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    batch = batch_of([2, 1])
    steps = [[replace(batch, images=batch.images.float())]] * 3
    with pytest.raises(NonFinite, match=r"step 2: fp16 gradients are not finite at any scale.*images 100, 101"):
        run_epoch(state, steps, log_every=1)


@pytest.mark.parametrize("two_stage", [False, True])
@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("encoder_layers", [0, 1])
def test_every_trainable_parameter_gets_a_gradient_even_without_objects(two_stage, auxiliary, encoder_layers):
    """What DistributedDataParallel waits for."""
    model = small_model(auxiliary=auxiliary, two_stage=two_stage, refinement=True, encoder_layers=encoder_layers)
    images, mask = padded_batch([(48, 64), (40, 64)])
    criterion = build_criterion(LossConfig(auxiliary=auxiliary))
    objects = random_objects([0, 0])
    sum(criterion(model(images, mask, objects), objects).values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
