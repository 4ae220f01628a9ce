"""A training run's folder: checkpoints, figures, and what is left when something goes wrong."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from engine.curves import plot_run
from engine.nonfinite import Culprit
from engine.state import TrainingState
from util.checkpoint import RawCheckpoint, read_checkpoint, read_newest
from util.checkpoint_write import kept_checkpoints, save_checkpoint, save_newest
from util.distributed import World
from util.errors import UserError
from util.files import make_folder
from util.logging import RunLog
from util.write_behind import WriteBehind, host_copy


def checkpoint_to_resume(resume: str | None, folder: Path) -> RawCheckpoint | None:
    """Find the checkpoint that a run goes on from.

    Args:
        resume: a checkpoint or a run's folder; `auto` takes the newest in `folder`, if there is one; None starts anew.
        folder: the run's folder.

    Raises:
        UserError: nothing there, no whole checkpoint, or a new run in a folder that holds one.
    """
    if resume == "auto":
        return read_newest(folder)
    raw = read_checkpoint(resume) if resume else None
    elsewhere = raw is None or raw.path.resolve().parent != folder.resolve()
    if elsewhere and kept_checkpoints(folder) and folder.name != "fast_dev_run":
        raise UserError(f"'{folder}' holds a run; go on with --train.resume auto, or choose another --train.output")
    return raw


class Run:
    """Writes a run's folder. Rank 0 writes; all processes call the same methods, for a checkpoint holds their state.

    Args:
        folder: made if it is not there.
        state: the state that checkpoints hold.
        config: the whole configuration, kept in every checkpoint.
        yaml: the same, kept in config.yaml.
        categories: classes of the data set.
        world: the processes.
        resumed: whether `state` comes from a checkpoint: the log is cut back to where that was.
    """

    def __init__(
        self,
        folder: Path,
        state: TrainingState,
        config: Any,
        yaml: str,
        categories: Sequence[Any],
        world: World,
        resumed: bool,
    ):
        self.folder, self.state, self.config, self.world = folder, state, config, world
        self.categories = categories
        self.log = None
        self.writer = WriteBehind()
        if world.is_main:
            make_folder(folder, "train.output")
            (folder / "config.yaml").write_text(yaml)
            self.log = RunLog(folder, state.log_bytes, state.global_step) if resumed else RunLog(folder)

    def write(self, kind: str, **figures: Any) -> None:
        """Write a line into the log, at the state's step."""
        if self.log is not None:
            self.log.write(kind, self.state.global_step, **figures)

    def log_means(self, means: dict[str, float]) -> None:
        """Log mean losses, and the learning rate of all but the backbone."""
        self.write("train", lr=self.state.optimizer.param_groups[-1]["lr"], **means)

    def save(self, best: bool = False, instead: bool = False) -> None:
        """Keep the state as the newest checkpoint; it is written while the run goes on, from a copy.

        Args:
            best: also as the best one (rank 0 decides): the same file under both names.
            instead: replace the newest checkpoint, which is of the same step; the older ones stay.

        Raises:
            UserError: the checkpoint before this one could not be written.
        """
        if self.log is not None:
            self.state.log_bytes = self.log.sync()
        content = self.state.to_checkpoint(self.config, self.categories, self.world)
        if content is not None:
            self.writer.wait()  # before a second copy is made
            content = host_copy(content)
            # Named best first: killed after it, the run evaluates again and comes back here.
            also = self.folder / "best.pth" if best else None
            if instead:
                write = partial(save_checkpoint, self.folder / "last.pth", content, also)
            else:
                write = partial(save_newest, self.folder, content, self.config.train.keep_checkpoints, also)
            self.writer.start(write)

    def wait(self) -> None:
        """Let what is being written get onto the disk.

        Raises:
            UserError: it could not be written.
        """
        self.writer.wait()

    def save_in_time(self) -> None:
        """Save if this step is one of every `train.save_every`; at an epoch's end it is saved anyway.

        Raises:
            UserError: a checkpoint could not be written. The run ends soon after, and does not train in vain.
        """
        self.writer.check()
        every, state = self.config.train.save_every, self.state
        if every and state.global_step % every == 0 and state.step < state.steps_per_epoch:
            self.save()

    def dump(self, culprit: Culprit) -> str:
        """Write down a step that is not finite, and the weights before it. Returns the file's name."""
        make_folder(self.folder, "train.output")  # which another machine may not see
        path = self.folder / f"nonfinite_step{culprit.step}_rank{self.world.rank}.pth"
        content = {
            "model": self.state.model.state_dict(),
            "branch": self.state.branch.state_dict() if self.state.branch is not None else None,
            "scaler": self.state.scaler.state_dict(),
            "config": asdict(self.config),
            "categories": [asdict(category) for category in self.categories],
            "epoch": self.state.epoch,
            "culprit": culprit.content(),
        }
        save_checkpoint(path, content)
        return str(path)

    def finish(self) -> None:
        """Close the log and draw it."""
        self.wait()
        if self.log is not None:
            self.log.close()
            plot_run(self.folder)
            print(f"\nbest.pth, last.pth, curves.png, metrics.jsonl and TensorBoard's events are in {self.folder}")
