"""The benchmark of matching and losses runs, prints one table, and its contenders agree."""

import re

import torch

from scripts.bench import criterion


def test_a_small_run_prints_a_table(capfd):
    argv = ["--images", "2", "--queries", "20", "--objects", "3", "--tokens", "40", "--classes", "5", "--rounds", "1"]
    assert criterion.main([*argv, "--layers", "2"]) == 0
    out = capfd.readouterr().out
    rows = re.findall(r"^\| (ours|dense) \|(?: [\d,.]+ \|){4}$", out, re.MULTILINE)
    assert rows == ["ours", "dense"]


def test_both_find_the_same_pairs_and_gradients():
    predictions, truth = criterion.make_batch(2, 20, 4, 2, 30, 6)
    found = []
    for match, lose in criterion.contenders(predictions, truth).values():
        matches = match()
        pairs = [(m.layer, m.image, m.query, m.object) if hasattr(m, "layer") else m for m in matches]
        lose(matches)
        found.append((pairs, [group.logits.grad for group in predictions.groups]))
    (ours, gradients), (dense, others) = found
    assert all(torch.equal(a, b) for one, other in zip(ours, dense) for a, b in zip(one, other))
    for a, b in zip(gradients, others):
        torch.testing.assert_close(a, b)
