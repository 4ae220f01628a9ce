"""Checkpoints are written once, from a copy, while training goes on; what fails is told."""

from collections import OrderedDict
from concurrent.futures import wait
from io import BytesIO
from threading import Event
from time import sleep
from traceback import format_exception
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from engine.run import Run
from engine.train import train
from util.checkpoint_write import save_checkpoint
from util.config import Config
from util.distributed import ALONE
from util.errors import UserError
from util.write_behind import WriteBehind, host_copy


def content_of(model: nn.Module) -> dict:
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.square().sum() for p in model.parameters()).backward()
    optimizer.step()
    state = model.state_dict() | {"again": next(model.parameters()).detach()}
    return {"model": OrderedDict(state), "optimizer": optimizer.state_dict(), "epoch": 3, "rng": [(1, (2, None))]}


def test_a_copy_holds_the_same_shares_what_is_shared_and_stays():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    content = content_of(model)
    copy = host_copy(content)
    files = [BytesIO(), BytesIO()]
    for file, saved in zip(files, (content, copy)):
        torch.save(saved, file)
    assert len(files[0].getvalue()) == len(files[1].getvalue())  # no memory that is shared is there twice
    before = torch.load(BytesIO(files[0].getvalue()), weights_only=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert str(copy) == str(before) and str(copy) != str(content)
    assert copy["model"]["again"].data_ptr() == copy["model"]["0.weight"].data_ptr()


def test_a_call_runs_behind_and_the_next_waits_for_it():
    writer, go, done = WriteBehind(), Event(), []
    writer.start(lambda: (go.wait(10), done.append(1)))
    assert not done
    go.set()
    writer.start(lambda: done.append(2))
    writer.wait()
    assert done == [1, 2]


@pytest.mark.parametrize("by", ["wait", "start"])
def test_a_failure_is_told_once(by, tmp_path):
    writer = WriteBehind()
    writer.start(lambda: save_checkpoint(tmp_path / "none" / "last.pth", {}))
    with pytest.raises(UserError, match=r"cannot write checkpoint .*No such file"):
        writer.wait() if by == "wait" else writer.start(list)
    writer.wait()


def test_a_step_is_told_of_a_failure_and_waits_for_nothing():
    """Else a run with a full disk would train in vain until it saves again, which may be hours."""
    writer, go = WriteBehind(), Event()
    run = SimpleNamespace(
        writer=writer,
        config=SimpleNamespace(train=SimpleNamespace(save_every=0)),
        state=SimpleNamespace(global_step=1, step=1, steps_per_epoch=9),
    )

    def fail() -> None:
        go.wait(10)
        raise UserError("the disk is full")

    writer.start(fail)
    Run.save_in_time(run)  # it is still being written
    go.set()
    wait([writer._pending], 10)
    with pytest.raises(UserError, match="the disk is full"):
        Run.save_in_time(run)
    Run.save_in_time(run)


@pytest.mark.parametrize("error", [UserError("the labels are gone"), KeyError("a bug"), KeyboardInterrupt()])
def test_an_error_in_flight_is_the_one_that_is_raised(error, tmp_path, capsys):
    """That a checkpoint could not be written either is told as well, and is not what ended the run."""
    writer, before = WriteBehind(), ValueError("where it came from")
    with pytest.raises(type(error)) as raised, writer.finished():
        writer.start(lambda: save_checkpoint(tmp_path / "none" / type(error).__name__, {}))
        raise error from before
    assert raised.value is error
    said = capsys.readouterr().err
    assert said.count("cannot write checkpoint") == 1 and str(error.__cause__) == said.strip()
    traceback = "".join(format_exception(error))
    assert "cannot write checkpoint" in traceback and "where it came from" in traceback
    writer.wait()


def test_a_block_ends_when_its_writing_has(tmp_path):
    writer, done = WriteBehind(), []
    with writer.finished():
        writer.start(lambda: (sleep(0.05), done.append(1)))
    with pytest.raises(KeyError), writer.finished():  # an error alone
        writer.start(lambda: (sleep(0.05), done.append(2)))
        raise KeyError
    assert done == [1, 2]
    with pytest.raises(UserError, match="cannot write checkpoint"), writer.finished():  # a failure alone
        writer.start(lambda: save_checkpoint(tmp_path / "none" / "last.pth", {}))


def test_training_reports_what_ended_it_not_the_checkpoint_that_failed_too(monkeypatch, tmp_path, capsys):
    """As a full disk behind a batch that cannot be read."""
    state = SimpleNamespace(step=0, epoch=0, stale=0, steps_per_epoch=1)
    run = SimpleNamespace(writer=WriteBehind(), config=SimpleNamespace(train=None))
    training = SimpleNamespace(step=SimpleNamespace(state=state), run=run, loader=SimpleNamespace(close=list))

    def fail(*_) -> None:
        run.writer.start(lambda: save_checkpoint(tmp_path / "gone" / "last.pth", {}))
        raise UserError("the picture 3.jpg cannot be read")

    monkeypatch.setattr("engine.train.set_up", lambda *_: training)
    monkeypatch.setattr("engine.train.ended", lambda *_: None)
    training.epochs = 1
    monkeypatch.setattr("engine.train.run_epoch", fail)
    with pytest.raises(UserError, match=r"the picture 3\.jpg cannot be read"):
        train(Config(), ALONE)
    assert "cannot write checkpoint" in capsys.readouterr().err
