"""Strengths against hand-worked slopes and against differences of the response; what is drawn; nothing left behind."""

import json
from collections import Counter
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.resnet import BasicBlock
from torch import Tensor, nn
from torchvision.ops import deform_conv2d
from torchvision.ops.misc import FrozenBatchNorm2d

from analysis.looks.backbone_pictures import BackboneRow, backbone_picture
from analysis.looks.canvas import save
from analysis.looks.conv_sampling import STAGES, ConvLocations, conv_sampling
from main import main
from models.backbone import Backbone
from models.deform_backbone import stage_convolutions
from models.from_config import build_backbone
from ops import DeformConv2d
from tests.test_main import small_place
from util.config import BackboneConfig
from util.errors import UserError

KINDS = {
    "regular": {},
    "v1": {"dcn": "v1", "dcn_stages": (3, 4, 5)},
    "v2": {"dcn": "v2", "dcn_stages": (4, 5), "dcn_offset_groups": 2},
}


class Stack(BasicBlock):
    """Convolutions one after the other, and nothing else."""

    def __init__(self, *layers: nn.Module):
        nn.Module.__init__(self)
        for i, layer in enumerate(layers):
            self.add_module(f"conv{i}", layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


class Stacked(nn.Module):
    """A backbone of one stage, with one feature map."""

    num_features = 1

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.body = nn.Module()
        self.body.layer1 = nn.Sequential(Stack(*layers))
        self.body.feature_info = SimpleNamespace(module_name=lambda: ["stem", "layer1", "layer2", "layer3", "layer4"])
        self.double().eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.body.layer1(images)]


def backbone_of(kind: str, moved: bool = True) -> Backbone:
    """In fp64 and evaluation mode; `moved` lets its offsets and modulation depend on the input."""
    torch.manual_seed(0)
    backbone = awake(build_backbone(BackboneConfig("test_resnet", "none", "trainable", 0, **KINDS[kind]), 3)).double()
    for module in backbone.modules():
        if isinstance(module, DeformConv2d) and moved:
            nn.init.normal_(module.sampling_offsets.weight, std=0.1)
            nn.init.normal_(module.sampling_offsets.bias, std=0.5)
    return backbone


def awake(backbone: Backbone) -> Backbone:
    """In evaluation mode, and no block's last norm is zero, as timm leaves it, which would silence its convolutions."""
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.weight.data.fill_(1.0)
    return backbone.eval()


def image(height: int = 64, width: int = 96, channels: int = 3) -> Tensor:
    return torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def ordered(points: Tensor, strength: Tensor) -> np.ndarray:
    """Rows (x, y, strength) in an order that rounding errors of coordinates do not change."""
    rows = torch.cat([points, strength[:, None]], -1).tolist()
    return np.array(sorted(rows, key=lambda row: (round(row[0], 7), round(row[1], 7), row[2])))


def of_layer(found: ConvLocations, name: str) -> ConvLocations:
    return found.where(found.layers == found.names.index(name))


def test_on_a_ramp_a_strength_is_slope_times_weight():
    """A picture 3 + 2x + 5y under one linear convolution: each of nine samples has the slope sqrt(29)."""
    conv = nn.Conv2d(1, 1, 3, padding=1)
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(11.0), indexing="ij")
    ramp = (3 + 2 * columns + 5 * rows).double()[None, None]
    found = conv_sampling(Stacked(conv), ramp, (4.2 / 11, 6.9 / 9))  # the unit in column 4, row 6
    weights = conv.weight[0, 0].detach()
    expected = {((4 + j - 1 + 0.5) / 11, (6 + i - 1 + 0.5) / 9): float(weights[i, j].abs()) * 29**0.5
                for i, j in product(range(3), range(3))}  # fmt: skip
    assert found.unit == pytest.approx((4.5 / 11, 6.5 / 9)) and found.names == ["layer1.0.conv0"]
    assert found.stages.tolist() == [2] * 9 and found.layers.tolist() == [0] * 9
    rows = np.array(sorted((*place, strength) for place, strength in expected.items()))
    np.testing.assert_allclose(ordered(found.points, found.strength), rows, rtol=1e-6)


def test_on_a_kink_it_is_the_mean_of_both_sides():
    """Columns 0, 0, 1, 3, 1, 0: samples on columns 2, 3 and 4 have slopes 1.5, 0 and -1.5, and beyond the edge half."""
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(conv.weight)
    ridge = torch.tensor([0.0, 0, 1, 3, 1, 0]).expand(5, 6).double()[None, None]
    found = conv_sampling(Stacked(conv), ridge, (0.55, 0.5))
    steep = found.where(found.strength > 1e-9)
    rows = ordered(steep.points, steep.strength)
    assert (rows[:, 0] * 6 - 0.5).round(5).tolist() == [2] * 3 + [4] * 3  # none on the ridge, which is level
    np.testing.assert_allclose(rows[:, 2], 1.5, rtol=1e-9)
    edge = conv_sampling(Stacked(conv), ridge.roll(3, -1), (0.0, 0.5))  # 3, 1, 0, 0, 0, 1
    rows = ordered(edge.points, edge.strength)
    places = (rows[:, 0] * 6 - 0.5).round(5)
    np.testing.assert_allclose(rows[places == -1, 2], 1.5)  # from 0 to 0 to 3
    np.testing.assert_allclose(rows[places == 0, 2], 0.5)  # from 0 to 3 to 1
    np.testing.assert_allclose(rows[places == 1, 2], 1.5)  # from 3 to 1 to 0


def differences(backbone: nn.Module, images: Tensor, level: int, unit: tuple[int, int], name: str) -> np.ndarray:
    """Rows (x, y, strength) of a layer: every sample moved alone, by torchvision's operator, and the response seen."""
    layer = backbone.body.get_submodule(name)
    given, step, size = {}, 1e-5, None

    def note(layer: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        x = inputs[0]
        if isinstance(layer, DeformConv2d):
            offsets, modulation = layer.offsets_and_modulation(x)
        else:
            offsets, modulation = x.new_zeros(1, 18, *out.shape[-2:]), None
        given.update(offsets=offsets, modulation=modulation, size=x.shape[-2:])

    def respond(offsets: Tensor) -> Tensor:
        def replaced(layer: nn.Module, inputs: tuple[Tensor], out: Tensor) -> Tensor:
            mask = given["modulation"]
            mask = None if mask is None else mask.expand(len(offsets), -1, -1, -1)
            geometry = (layer.stride, layer.padding, layer.dilation)
            # An ordinary convolution applies the norm after it.
            weight, bias = layer.scaled() if hasattr(layer, "norm_after") else (layer.weight, layer.bias)
            return deform_conv2d(inputs[0], offsets, weight, bias, *geometry, mask)

        handle = layer.register_forward_hook(replaced)
        features = backbone(images.expand(len(offsets), -1, -1, -1))[level][:, :, unit[0], unit[1]]
        handle.remove()
        return features.norm(dim=-1)

    with torch.no_grad():
        handle = layer.register_forward_hook(note)
        backbone(images)
        handle.remove()
        offsets, size = given["offsets"], given["size"]
        by_group = offsets.unflatten(1, (-1, 9, 2))  # [1, G, 9, 2, h, w]
        places = list(product(*(range(n) for n in (by_group.shape[1], 9, *by_group.shape[-2:]))))
        moved = by_group.repeat(len(places), 1, 1, 1, 1, 1)
        rows = np.zeros((len(places), 3))
        for axis in (0, 1):
            sides = []
            for sign in (1, -1):
                there = moved.clone()
                for i, (g, k, row, column) in enumerate(places):
                    there[i, g, k, axis, row, column] += sign * step
                sides.append(respond(there.flatten(1, 3)))
            slope = (sides[0] - sides[1]) / (2 * step) * size[axis] / images.shape[2 + axis]
            rows[:, 2] += slope.numpy() ** 2
        for i, (g, k, row, column) in enumerate(places):
            for axis, (p, kernel) in enumerate(((row, k // 3), (column, k % 3))):
                pixel = p * layer.stride[axis] - layer.padding[axis] + kernel * layer.dilation[axis]
                pixel += float(by_group[0, g, k, axis, row, column])
                rows[i, 1 - axis] = (pixel + 0.5) / size[axis]
    rows[:, 2] **= 0.5
    rows = rows[rows[:, 2] > 1e-9 * rows[:, 2].max()]
    return ordered(torch.from_numpy(rows[:, :2]), torch.from_numpy(rows[:, 2]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("size", "level", "unit", "names"),
    [
        ((32, 48), -1, (0, 1), ["layer4.0.conv2", "layer4.0.conv1", "layer3.0.conv2"]),
        ((16, 32), 0, (1, 2), ["layer2.0.conv2"]),
    ],
)
def test_strengths_are_differences_of_the_response(kind, size, level, unit, names):
    """Locations too, each moved alone; through strided layers, and those below layers that predict offsets."""
    backbone, images = backbone_of(kind), image(*size)
    height, width = ((1, 2), (2, 4))[level == 0]
    found = conv_sampling(backbone, images, ((unit[1] + 0.5) / width, (unit[0] + 0.5) / height), level)
    assert found.strength.dtype == torch.float64
    for name in names:
        here = of_layer(found, name)
        strong = here.where(here.strength > 1e-9 * here.strength.max())
        expected = differences(backbone, images, level, unit, name)
        np.testing.assert_allclose(ordered(strong.points, strong.strength), expected, rtol=2e-4, atol=1e-7)


def test_grouped_and_dilated_convolutions():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2)
    deformed = DeformConv2d(6, 4, 3, padding=1, groups=2, offset_groups=3)
    nn.init.normal_(deformed.sampling_offsets.weight, std=0.1)
    backbone, images = Stacked(conv, deformed), image(8, 10, 4)
    found = conv_sampling(backbone, images, (0.5, 0.4))
    for name in ("layer1.0.conv0", "layer1.0.conv1"):
        here = of_layer(found, name)
        expected = differences(backbone, images, -1, (1, 2), name)
        np.testing.assert_allclose(ordered(here.points, here.strength), expected, rtol=2e-4, atol=1e-7)


def test_two_layers_read_a_neighbourhood_of_five():
    """The upper one reads 3 x 3 places twice as far apart as the lower one's 5 x 5, which have 1 2 3 2 1 readers."""
    lower, upper = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    found = conv_sampling(Stacked(lower, upper), image(24, 32), (7.5 / 16, 5.5 / 12))
    above, below = of_layer(found, "layer1.0.conv1"), of_layer(found, "layer1.0.conv0")
    places = Counter(map(tuple, (above.points * torch.tensor([16, 12]) - 0.5).round().int().tolist()))
    assert places == Counter(product((6, 7, 8), (4, 5, 6)))
    places = Counter(map(tuple, (below.points * torch.tensor([32, 24]) - 0.5).round().int().tolist()))
    readers = Counter()
    for x, y in product((6, 7, 8), (4, 5, 6)):
        readers.update(product((2 * x - 1, 2 * x, 2 * x + 1), (2 * y - 1, 2 * y, 2 * y + 1)))
    assert places == readers and sum(readers.values()) == 81
    stacked = Stacked(nn.Conv2d(3, 8, 3, padding=1), upper)
    found = of_layer(conv_sampling(stacked, image(24, 32), (7.5 / 32, 5.5 / 24)), "layer1.0.conv0")
    counts = Counter(map(tuple, (found.points * torch.tensor([32, 24]) - 0.5).round().int().tolist()))
    assert [[counts[x, y] for x in range(5, 10)] for y in range(3, 8)] == np.outer(*[[1, 2, 3, 2, 1]] * 2).tolist()


def test_offsets_of_zero_are_the_regular_backbone():
    regular, deformed = backbone_of("regular"), backbone_of("v1", moved=False)
    assert len(stage_convolutions(regular.body, STAGES)) == len(stage_convolutions(deformed.body, STAGES)) == 7
    a, b = (conv_sampling(backbone, image(), (0.4, 0.6)) for backbone in (regular, deformed))
    assert a.names == b.names and torch.equal(a.layers, b.layers) and torch.equal(a.stages, b.stages)
    assert sorted(set(a.stages.tolist())) == [2, 3, 4, 5]
    torch.testing.assert_close(a.points, b.points)
    torch.testing.assert_close(a.strength, b.strength)


def test_offsets_move_locations_and_modulation_ends_them():
    backbone = backbone_of("v2", moved=False)
    last = backbone.body.get_submodule("layer4.0.conv2")  # 2 offset groups; it reads a map of 3 x 2
    bias = last.sampling_offsets.bias.data
    bias[:36] = 0.25  # y of both groups, and
    bias[1:18:2] = -0.75  # x of the first
    bias[36 + 4] = -1e4  # no modulation of its middle sample
    found = of_layer(conv_sampling(backbone, image(), (0.5, 0.3)), "layer4.0.conv2")
    pixels = (found.points * torch.tensor([3, 2]) - 0.5).tolist()
    moved = product((0, 1, 2), (-1, 0, 1))
    expected = [(x + dx, y + 0.25) for x, y in moved for dx in (-0.75, 0.25) if (x, y, dx) != (1, 0, -0.75)]
    reach = [p for p in expected if p[0] < 3 and p[1] < 2 and p[0] > -1]
    np.testing.assert_allclose(sorted(pixels), sorted(reach), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_it_leaves_the_backbone_as_it_was(kind):
    backbone, images = backbone_of(kind), image()
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    with torch.no_grad():
        before = backbone(images)
        conv_sampling(backbone, images, (0.5, 0.5))
        after = backbone(images)
    assert all(torch.equal(a, b) for a, b in zip(before, after)) and not after[0].requires_grad
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in backbone.parameters())
    assert images.grad is None and not images.requires_grad
    with pytest.raises(RuntimeError):
        conv_sampling(backbone, images[:, :2], (0.5, 0.5))  # fails within the forward pass
    assert not any(module._forward_hooks for module in backbone.modules())


def test_what_cannot_be_followed():
    backbone, images = backbone_of("regular"), image()
    with pytest.raises(UserError, match="no level 3; this backbone returns levels 0 to 2"):
        conv_sampling(backbone, images, (0.5, 0.5), 3)
    with pytest.raises(UserError, match=r"stages is \[1\]; it must list some of \[2, 3, 4, 5\]"):
        conv_sampling(backbone, images, (0.5, 0.5), stages=[1])
    with pytest.raises(UserError, match=r"stages \[5\] lie above level 0"):
        conv_sampling(backbone, images, (0.5, 0.5), 0, [5])
    with pytest.raises(ValueError, match="evaluation mode"):
        conv_sampling(backbone.train(), images, (0.5, 0.5))
    other = Backbone("test_convnext", 3, False).eval()
    assert stage_convolutions(other.body, STAGES) == []
    with pytest.raises(UserError, match="only a ResNet"):
        conv_sampling(other, images.float(), (0.5, 0.5))


def test_stages_are_chosen_and_frozen_ones_are_followed():
    frozen = awake(Backbone("test_resnet", 3, False, "frozen", 2))
    found = conv_sampling(frozen, image().float(), (1.0, 1.0), stages=[2, 4])
    assert set(found.stages.tolist()) == {2, 4} and found.unit == pytest.approx((2.5 / 3, 1.5 / 2))
    assert found.names == ["layer1.0.conv1", "layer1.0.conv2", "layer3.0.conv2"]
    everything = conv_sampling(frozen, image().float(), (1.0, 1.0))
    torch.testing.assert_close(everything.of_stage(4).strength, found.of_stage(4).strength)
    assert set(conv_sampling(frozen, image().float(), (0, 0), 0).stages.tolist()) == {2, 3}


def test_shares_and_radii():
    """Worked by hand, on a picture of 100 x 50 with the unit in its middle."""
    points = torch.tensor([[0.5, 0.5], [0.6, 0.5], [0.5, 0.9], [0.1, 0.5]], dtype=torch.float64)
    strength = torch.tensor([2.0, 1, 3, 4], dtype=torch.float64)
    found = ConvLocations(
        (0.5, 0.5), points, strength, torch.tensor([2, 2, 3, 3]), torch.tensor([0, 0, 1, 1]), ["a", "b"]
    )
    assert found.share_inside((0.55, 0.5, 0.2, 0.2)) == pytest.approx(0.3)
    # Distances 0, 10, 20 and 40 pixels, within which lie 20, 30, 60 and 100%.
    assert [found.radius(share, (100, 50)) for share in (0.2, 0.29, 0.5, 0.61, 1)] == pytest.approx([0, 10, 20, 40, 40])
    assert found.strongest(2).strength.tolist() == [4, 3] and found.of_stage(2).strength.tolist() == [2, 1]
    nothing = found.of_stage(5)
    assert np.isnan(nothing.share_inside((0.5, 0.5, 1, 1))) and np.isnan(nothing.radius(0.5, (100, 50)))


def test_panels_show_the_strongest_of_each_stage(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8))
    rows = [BackboneRow(k, conv_sampling(backbone_of(k), image(), (0.4, 0.6)), (0.5, 0.5, 0.5, 0.5)) for k in KINDS]
    figure = backbone_picture(picture, rows, most=40)
    panels = np.array(figure.axes[:15]).reshape(3, 5)
    for row, found in zip(panels, rows):
        assert row[0].get_ylabel() == found.label
        for panel, stage in zip(row, (2, 3, 4, 5, None)):
            here = found.locations if stage is None else found.locations.of_stage(stage)
            best, order = here.strength.sort(descending=True)
            kept = (best[:40] >= 0.03 * best[0]).sum()
            drawn = np.concatenate([np.column_stack([c.get_offsets(), c.get_array()]) for c in panel.collections])
            expected = here.points[order[:kept]] * torch.tensor([48, 32])
            np.testing.assert_allclose(sorted(drawn[:, 2]), sorted(best[:kept] / best[0]), rtol=1e-5)
            np.testing.assert_allclose(sorted(drawn[:, 0]), sorted(expected[:, 0]), atol=1e-4)
            inside = ((here.points - 0.5).abs() <= 0.25).all(-1)
            share = float(here.strength[inside].sum() / here.strength.sum())
            assert panel.get_title().endswith(f": {share:.0%} in the box")
            assert f"{kept} of {len(here.points):,} " in panel.get_xlabel()
            cross = panel.lines[-1].get_xydata()[0]
            assert cross.tolist() == pytest.approx([1.5 / 3 * 48, 1.5 / 2 * 32])
    save(figure, tmp_path / "backbones.png")
    with Image.open(tmp_path / "backbones.png") as written:
        assert written.format == "PNG" and min(written.size) > 500


def test_a_unit_that_is_silent_has_an_empty_picture():
    backbone = backbone_of("regular")
    nn.init.zeros_(backbone.body.get_submodule("layer4.0.bn2").weight)
    nn.init.zeros_(backbone.body.get_submodule("layer4.0.downsample.2").weight)
    found = conv_sampling(backbone, image(), (0.5, 0.5))
    assert len(found.points) == 0
    figure = backbone_picture(Image.new("RGB", (48, 32)), [BackboneRow("silent", found)])
    assert figure.axes[0].get_ylabel() == "silent" and not figure.axes[0].collections


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return small_place(tmp_path_factory.mktemp("visualize"), train=4, val=2)


def run(place, *argv: object) -> int:
    return main([str(a) for a in (argv[0], "--config", place / "small.yaml", *argv[1:])])


@pytest.mark.parametrize("dcn", ["none", "v1", "v2"])
def test_visualize(place, tmp_path, dcn):
    argv = ("--data.root", place / "shapes", "--train.output", tmp_path, "--model.backbone.dcn", dcn)
    assert run(place, "train", *argv, "--train.fast_dev_run") == 0
    source, checkpoint = place / "shapes" / "val2017" / "000000.png", tmp_path / "fast_dev_run" / "last.pth"
    argv = ("--checkpoint", checkpoint, "--input", source, "--output", tmp_path, "--device", "cpu")
    assert main([str(a) for a in ("visualize", *argv, "--maps", "[backbone]", "--pixel", "[20,30]")]) == 0
    with Image.open(tmp_path / "backbone.png") as drawn:
        assert min(drawn.size) > 200
    numbers, summary = np.load(tmp_path / "sampling.npz"), json.loads((tmp_path / "sampling.json").read_text())
    count = len(numbers["backbone.strength"])
    assert numbers["backbone.points"].shape == (count, 2) and (numbers["backbone.strength"] > 0).all()
    assert set(numbers["backbone.stages"]) == {2, 3, 4, 5} and len(summary["backbone_layers"]) == 7
    with Image.open(source) as picture:
        point = np.array([20.5, 30.5]) / picture.size
    assert (np.abs(numbers["backbone.unit"] - point) <= 0.5).all() and summary["point"] == pytest.approx(point.tolist())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_convnext", "backbone.png is left out: only the convolutions of a ResNet"),
        ("test_resnet", "backbone.png has no locations: nothing that 3x3 convolutions read moves the unit"),
    ],
)
def test_visualize_says_why_there_is_nothing(place, tmp_path, capsys, name, message):
    """Another kind of backbone, and one without training: timm starts the blocks of a ResNet silent."""
    argv = ("--input", place / "shapes" / "val2017" / "000000.png", "--output", tmp_path, "--device", "cpu")
    argv += ("--maps", "[backbone]", "--size", 64, "--model.backbone.name", name)
    assert run(place, "visualize", *argv) == 0
    assert message in capsys.readouterr().out
    assert (tmp_path / "backbone.png").exists() == (name == "test_resnet")
