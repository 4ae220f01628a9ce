"""Query sources and their groups."""

from dataclasses import replace

import torch

from models.from_config import build_criterion
from models.queries import LearnedQueries, Queries, QueryGroup, Run
from tests.models.helpers import padded_batch, random_objects, scramble, small_model
from util.config import LossConfig


class Twice(LearnedQueries):
    """In training the same queries once more, as a group of their own, unseen by the first."""

    def forward(self, memory, objects=None) -> Queries:
        queries = super().forward(memory)
        if objects is None:
            return queries
        q = self.num_queries
        twice = [replace(o, boxes=o.boxes.repeat(2, 1), labels=o.labels.repeat(2)) for o in objects]
        doubled = [torch.cat([t, t], 1) for t in (queries.content, queries.position, queries.reference)]
        return Queries(*doubled, [QueryGroup("decoder", slice(0, q)), QueryGroup("twice", slice(q, None), twice)])


def with_two_groups() -> torch.nn.Module:
    model = small_model(refinement=True).double().eval()
    queries = Twice(model.queries.num_queries, 32).double()
    queries.load_state_dict(model.queries.state_dict())
    model.queries = queries
    scramble(model)
    return model


def test_groups_are_slices_and_do_not_see_each_other():
    model, (images, mask), objects = with_two_groups(), padded_batch([(64, 96)] * 2), random_objects([2, 1])
    with torch.no_grad():
        alone, both = model(images.double(), mask), model(images.double(), mask, objects)
    assert [g.name for g in alone.groups] == ["decoder"] and [g.name for g in both.groups] == ["decoder", "twice"]
    for group in both.groups:  # the same queries that see themselves alone give the same answer
        torch.testing.assert_close(group.boxes, alone.boxes, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(group.logits, alone.logits, rtol=1e-9, atol=1e-9)


def test_each_group_is_compared_with_its_own_objects():
    model, (images, mask), objects = with_two_groups(), padded_batch([(64, 96)] * 2), random_objects([2, 1])
    predictions, criterion = model(images.double(), mask, objects), build_criterion(LossConfig())
    losses = criterion(predictions, objects)
    assert {name.split("/")[1] for name in losses} == {"decoder.0", "decoder.1", "twice.0", "twice.1"}
    assert losses["l1/twice.1"] > 1.2 * losses["l1/decoder.1"]  # of each object, the second best query is farther
    sum(losses.values()).backward()
    assert model.queries.content.grad.any()


def test_learned_queries_are_those_of_every_image():
    queries = LearnedQueries(5, 8)
    memory = type("M", (), {"tokens": torch.zeros(3, 7, 8)})()
    found = queries(memory)
    assert found.content.shape == (3, 5, 8) and found.reference.shape == (3, 5, 2)
    assert torch.equal(found.content[0], found.content[2])
    assert found.groups == [QueryGroup("decoder", None)]


def test_groups_of_one_length_run_together_and_empty_ones_not_at_all():
    masked = torch.zeros(1, 3, 3, dtype=torch.bool)
    sizes, masks, start, groups = (2, 0, 2, 3, 3, 2), (None, None, None, None, masked, None), 0, []
    for size, mask in zip(sizes, masks):
        groups.append(QueryGroup("any", slice(start, start + size), attention_mask=mask))
        start += size
    queries = Queries(*(torch.zeros(1, start, 4) for _ in range(3)), groups)
    assert queries.lengths == [*sizes]
    assert queries.runs() == [Run(2, 2), Run(3, 1), Run(3, 1, masked), Run(2, 1)]
    groups[2].related = False  # what is told how boxes lie does not run with what is not
    assert queries.runs() == [Run(2, 2), Run(3, 1), Run(3, 1, masked), Run(2, 1)]
    apart = [Run(2, 1), Run(2, 1, related=False), Run(3, 1), Run(3, 1, masked), Run(2, 1)]
    assert queries.runs(by_relation=True) == apart
