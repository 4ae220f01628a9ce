"""Going on from a checkpoint: whether that can be, what it brings, and the state from it."""

from pathlib import Path

from datasets.dataset import CocoDetection
from engine.class_rows import changed_order, reorder_classes
from engine.state import TrainingState
from models.load import LoadedDetector
from util.checkpoint import RawCheckpoint
from util.config import TrainConfig
from util.distributed import World
from util.errors import UserError


def check_resumable(resumed: RawCheckpoint, config: TrainConfig, dataset: CocoDetection) -> list[int] | None:
    """The row of the checkpoint's class heads that each label has now, if that has changed.

    Raises:
        UserError: other classes, other frozen parts, or other groups of the optimizer.
    """
    if resumed.format != "native":  # refused when it is restored
        return None
    train = resumed.content["config"].get("train", {})
    before, decay = train.get("freeze", []), train.get("layer_decay")
    if sorted(before) != sorted(config.freeze):
        raise UserError(
            f"train.resume: '{resumed.path}' was trained with train.freeze [{','.join(before)}], which decides what "
            "the optimizer holds; resume it so, or take its weights alone, --model.init_from"
        )
    if (decay is None) != (config.layer_decay is None):
        raise UserError(
            f"train.resume: '{resumed.path}' was trained with train.layer_decay {'null' if decay is None else decay}, "
            "and with or without one the optimizer has other groups; resume it so, or take its weights alone, "
            "--model.init_from"
        )
    return changed_order(resumed.content["categories"], dataset.categories, resumed.path)


def backbone_brought(resumed: RawCheckpoint | None, source: LoadedDetector | None) -> str | None:
    """Name of the backbone in the checkpoint that a run starts from, if there is one that says it."""
    if resumed:  # one of another layout is refused when the state is restored
        return resumed.content["config"]["model"]["backbone"]["name"] if resumed.format == "native" else None
    return source.config.backbone.name if source else None


def restore(
    state: TrainingState,
    resumed: RawCheckpoint | None,
    output: Path,
    world: World,
    position: bool,
    order: list[int] | None,
) -> bool:
    """Fill the state from a checkpoint, if there is one; `order` says which row of its class heads each label takes.

    Returns:
        Whether the checkpoint lies in the run's own folder.

    Raises:
        UserError: the processes do not find the same checkpoint.
    """
    if resumed:
        for remark in state.restore(resumed, world, position):
            print(remark)
        if order:
            reorder_classes(state, order)
            print("the classes are in another order than in the checkpoint: class heads and their moments go with them")
    if len(set(map(tuple, world.exchange([state.epoch, state.step, int(resumed is not None)])))) > 1:
        raise UserError(
            f"the processes do not find the same checkpoint; '{output}' must be a folder that all machines see"
        )
    return resumed is not None and resumed.path.resolve().parent == output.resolve()
