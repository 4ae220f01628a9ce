"""Figures of a profile against hand-worked ones; running out of memory is a row, not an end."""

import pytest
import torch
from torch import nn

import ops
from tests.models.helpers import small_model
from util import measuring
from util.counting import count_flops, parameters_by_part
from util.errors import UserError
from util.measuring import measure_peak
from util.profiling import image_size, profile_model

CPU = torch.device("cpu")


class Tiny(nn.Module):
    """A 3x3 convolution 3 -> 8, the operator on its map (2 heads of 4, 4 points), a linear layer 8 -> 5."""

    def __init__(self, backend: str | None = None):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(8, 5)])
        self.backbone[0].bias.requires_grad_(False)
        self.backend = backend

    def forward(self, images, padding_mask):
        maps = self.backbone(images)
        (batch, _, height, width), queries = maps.shape, 7
        value = maps.flatten(2).transpose(1, 2).unflatten(-1, (2, 4))
        locations, weights = images.new_full((batch, queries, 2, 4, 2), 0.4), images.new_ones((batch, queries, 2, 4))
        out = ops.ms_deform_attn(value, [(height, width)], locations, weights, [4], backend=self.backend)
        return self.heads[0](out)


def test_operations_of_a_hand_worked_model():
    convolution = 2 * 3 * 9 * 8 * 10 * 12
    linear = 2 * 7 * 8 * 5
    operator = 8 * 7 * 2 * 4 * 4  # corners twice, queries, heads, points, channels
    for backend in {"reference", ops.selected_backend("cpu")}:
        model = Tiny(backend)
        by_part = count_flops(model, lambda model=model: model(torch.ones(1, 3, 10, 12), None))
        assert by_part == {"backbone": convolution, "heads": linear, "other": operator}
        assert model.heads[0].weight.requires_grad and not model.backbone[0].bias.requires_grad
        found = profile_model(model, [(10, 12), (20, 24)], batch_size=3, repeats=1)
        assert found.sizes[0].flops == convolution + linear + operator
        assert found.sizes[1].flops == 4 * convolution + linear + operator


def test_parameters_of_a_hand_worked_model():
    backbone, heads = parameters_by_part(Tiny())
    assert (backbone.name, backbone.trainable, backbone.frozen) == ("backbone", 3 * 9 * 8, 8)
    assert (heads.name, heads.trainable, heads.frozen) == ("heads", 8 * 5 + 5, 0)


def test_parts_of_a_detector_hold_every_parameter_and_operation():
    model = small_model(refinement=True, two_stage=True)
    model.backbone.requires_grad_(False)
    found = profile_model(model, [(48, 64)], repeats=1)
    by_name = {p.name: p for p in found.parts}
    assert set(by_name) == {"backbone", "neck", "position", "encoder", "decoder", "queries", "heads"}
    assert sum(p.trainable + p.frozen for p in found.parts) == sum(p.numel() for p in model.parameters())
    assert by_name["backbone"].trainable == 0 and by_name["encoder"].frozen == 0
    assert sum(p.flops or 0 for p in found.parts) == found.sizes[0].flops
    e, ffn, tokens = 32, 64, 6 * 8 + 3 * 4 + 2 * 2  # strides 8 to 32 of 48x64
    points = 4 * 3 * 4  # heads, levels, K
    projections = 2 * tokens * (e * e + e * points * 3 + e * e)
    assert by_name["encoder"].flops == projections + 2 * tokens * 2 * e * ffn + 8 * tokens * points * (e // 4)


def test_peak_is_that_of_the_moment_at_which_most_is_held():
    kept = torch.ones(1000)

    def call() -> None:
        a = torch.ones(250_000)  # 1 MB
        b = a + 1
        del a
        c = torch.cat([b, b])  # 3 MB with b
        del b, c
        torch.ones(500_000)

    call()
    assert measure_peak(call, CPU, [kept, kept.view(10, 100)]) == pytest.approx(4000 + 3e6, abs=1000)


def test_figures_are_medians_and_text_shows_both_conventions():
    found = profile_model(Tiny(), [(32, 32)], batch_size=2, repeats=3)
    (size,) = found.sizes
    assert len(size.seconds) == 3 and size.latency == sorted(size.seconds)[1]
    assert size.images_per_second == pytest.approx(2 / size.latency)
    images, maps = 2 * 3 * 32 * 32 * 4, 2 * 8 * 32 * 32 * 4
    assert images + maps < size.peak_bytes < 4 * (images + maps)
    text = str(found)
    assert "2 x 32x32" in text and "GMACs/image" in text and "counted as two" in text


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_running_out_of_memory_is_reported_and_others_go_on(error):
    class Hungry(Tiny):
        def forward(self, images, padding_mask):
            if images.shape[2] == 64:
                raise error
            return super().forward(images, padding_mask)

    found = profile_model(Hungry(), [(64, 64), (32, 32)], repeats=1)
    assert [s.failure for s in found.sizes] == ["out of memory", ""]
    assert found.sizes[0].latency is None and found.sizes[1].latency > 0
    assert "out of memory" in str(found) and "GFLOPs at 32x32" in str(found)


def test_what_the_machine_cannot_hold_is_not_tried(monkeypatch):
    monkeypatch.setattr(measuring, "available_memory", lambda: 20_000_000)
    found = profile_model(Tiny(), [(64, 64), (4000, 4000)], repeats=1)  # 16 bytes a pixel and channel: over 500 MB
    assert [s.failure for s in found.sizes] == ["", "out of memory"]


def test_other_errors_are_not_taken_for_it():
    class Broken(Tiny):
        def forward(self, images, padding_mask):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        profile_model(Broken(), [(8, 8)], repeats=1)


def test_half_precision_runs_under_autocast():
    seen = []
    model = Tiny("reference")
    model.heads[0].register_forward_hook(lambda *a: seen.append(a[2].dtype))
    profile_model(model, [(16, 16)], precision="bf16", repeats=1)
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize("text", ["480", "480x", "x640", "480x0", "480 640", "-1x5", "480x640x3"])
def test_sizes_that_are_none(text):
    with pytest.raises(UserError, match="480x640"):
        image_size(text)


def test_sizes():
    assert image_size("480x640") == image_size("480X640") == (480, 640)
