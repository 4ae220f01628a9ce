"""What all benchmarks share: turns, bursts, memory that runs out, the forced backend, and how figures are told."""

import json
import os
from itertools import pairwise

import pytest
import torch

import ops
from scripts.bench import timing

CPU = torch.device("cpu")


def test_every_round_each_has_a_turn_in_a_fresh_order():
    names = list("abcdef")
    order = list(timing.in_turns(names, 20))
    rounds = [order[i : i + 6] for i in range(0, 120, 6)]
    assert len(order) == 120 and all(sorted(r) == names for r in rounds)
    assert len({tuple(r) for r in rounds}) > 15
    assert order == list(timing.in_turns(names, 20))


def test_the_slow_sit_out_rounds_spread_over_the_run():
    order = list(timing.in_turns(["quick", "slow"], 12, [12, 3]))
    assert order.count("quick") == 12 and order.count("slow") == 3
    places = [order[: i + 1].count("quick") for i, name in enumerate(order) if name == "slow"]
    assert all(3 <= b - a <= 5 for a, b in pairwise(places))  # about four rounds apart


def test_bursts_and_turns_follow_from_what_calls_take(monkeypatch):
    now = 0.0

    def call(takes):
        def run():
            nonlocal now
            now += takes

        return run

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    assert timing.seconds(call(0.5), CPU, count=4) == pytest.approx(0.5)
    # A burst of ten calls takes 0.01 s, so that there is time for all rounds; a second in each turn allows five.
    assert timing.plan([call(0.001)], 20, CPU, burst=0.01, budget=5) == (20, [10])
    assert timing.plan([call(0.001), call(1.0)], 20, CPU, burst=0.01, budget=5.5) == (5, [10, 1])
    assert timing.plan([call(9.0)], 20, CPU, burst=0.01, budget=5) == (3, [1])  # three at least
    assert timing.plan([call(9.0)], 2, CPU, burst=0.01, budget=5) == (2, [1])  # or all there are
    assert timing.plan([call(0.0)], 20, CPU, burst=0.01, budget=5)[1] == [2000]
    found = timing.median_seconds({"a": call(0.001), "b": call(0.25)}, 5, CPU)
    assert found == pytest.approx({"a": 0.001, "b": 0.25})


def test_only_running_out_of_memory_is_survived():
    def fails(error):
        raise error

    assert timing.within_memory(lambda: 3) == 3
    assert timing.within_memory(lambda: fails(MemoryError())) is None
    assert timing.within_memory(lambda: fails(torch.OutOfMemoryError("CUDA out of memory"))) is None
    assert timing.within_memory(lambda: fails(RuntimeError("DefaultCPUAllocator: can't allocate memory"))) is None
    with pytest.raises(RuntimeError, match="shapes"):
        timing.within_memory(lambda: fails(RuntimeError("shapes differ")))


@pytest.mark.parametrize("before", [None, "cpu"])
def test_the_backend_is_forced_only_within(monkeypatch, before):
    monkeypatch.delenv("MS_DEFORM_ATTN_BACKEND", raising=False)
    if before:
        monkeypatch.setenv("MS_DEFORM_ATTN_BACKEND", before)
    with pytest.raises(KeyError), timing.forced_backend("reference"):
        assert ops.selected_backend("cpu") == "reference"
        raise KeyError
    assert os.environ.get("MS_DEFORM_ATTN_BACKEND") == before


def test_threads_are_as_before_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), timing.cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    with timing.cpu_threads(None):
        assert torch.get_num_threads() == before


def test_the_machine_in_words():
    about = {"name": "GPU", "threads": 2, "torch": "2.15", "cuda": "13.0", "load_before": 0.0}
    assert timing.machine_line(about) == "GPU, 2 CPU threads, torch 2.15, CUDA 13.0, load 0.0 before"
    about |= {"cuda": None, "load_after": 1.26}
    assert timing.machine_line(about) == "GPU, 2 CPU threads, torch 2.15, load 0.0 before and 1.3 after"
    about |= {"load_before": None, "load_after": None}
    assert timing.machine_line(about) == "GPU, 2 CPU threads, torch 2.15"
    here = timing.machine(CPU)
    assert here["torch"] == torch.__version__ and here["name"] == here["cpu"] and here["cuda"] is None


def test_figures_tables_and_json(tmp_path):
    numbers = (1234.5, 12.34, 1.234, 0.12345, -0.5, None, float("nan"))
    assert [timing.figure(n) for n in numbers] == ["1234", "12.3", "1.23", "0.123", "-0.500", "-", "-"]
    table = timing.markdown_table(["a", "b", "c"], [["x", "y", "1"]], words=2)
    assert table == "| a | b | c |\n|---|---|--:|\n| x | y | 1 |"
    timing.write_json(tmp_path / "a.json", {"µs": [1.5]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"µs": [1.5]} and "µs" in text and text.endswith("}\n")
