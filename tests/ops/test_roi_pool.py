"""RoI pooling: the papers' equations in loops, torchvision's poolings, values worked by hand, the layers."""

import math

import pytest
import torch
import torchvision
from torch._dynamo.testing import CompileCounter

from ops import DeformPSRoIPool, DeformRoIPool, ModulatedDeformRoIPool, deform_roi_pool, ps_roi_pool

SCALE = 1 / 8


# Every test of this module holds for each backend that runs on a CPU.
@pytest.fixture(autouse=True, params=["reference", "cpu"])
def backend(request, monkeypatch):
    monkeypatch.setenv("MS_DEFORM_ATTN_BACKEND", request.param)
    return request.param


def positions(roi, bins, ratio, aligned, gamma, offsets):
    """The samples (x, y) of every bin of a RoI `[5]`, in pixel indices of the map: {(i, j): [(x, y), ...]}."""
    x0, y0, x1, y1 = (float(v) * SCALE - (0.5 if aligned else 0) for v in roi[1:])
    width, height = x1 - x0, y1 - y0
    if not aligned:
        width, height = max(width, 1), max(height, 1)
    found = {}
    for i in range(bins[0]):
        for j in range(bins[1]):
            dx, dy = (0.0, 0.0) if offsets is None else offsets[i, j].tolist()
            left, top = x0 + j * width / bins[1] + gamma * dx * width, y0 + i * height / bins[0] + gamma * dy * height
            found[i, j] = [
                (left + (a + 0.5) / ratio * width / bins[1], top + (b + 0.5) / ratio * height / bins[0])
                for a in range(ratio)
                for b in range(ratio)
            ]
    return found


def read(plane, x, y):
    """Bilinear interpolation in a map `[H, W]` with RoI align's borders."""
    height, width = plane.shape
    if not (-1 <= x <= width and -1 <= y <= height):
        return 0.0
    x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    total = 0.0
    for row in range(height):
        for column in range(width):
            total += max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row)) * float(plane[row, column])
    return total


def loop(features, rois, bins, offsets=None, modulation=None, gamma=0.1, ratio=2, aligned=True, sensitive=False):
    """1703.06211, section 2.2, times 1811.11168's modulation; offsets `[R, G, h, w, 2]`, modulation `[R, G, h, w]`."""
    channels = features.shape[1] // (bins[0] * bins[1] if sensitive else 1)
    out = torch.zeros(len(rois), channels, *bins, dtype=torch.float64)
    groups = next((t.shape[1] for t in (offsets, modulation) if t is not None), 1)
    for r, roi in enumerate(rois):
        for c in range(channels):
            g = c // (channels // groups)
            moved = None if offsets is None else offsets[r, g]
            for (i, j), samples in positions(roi, bins, ratio, aligned, gamma, moved).items():
                plane = features[int(roi[0]), (c * bins[0] + i) * bins[1] + j if sensitive else c]
                mean = sum(read(plane, x, y) for x, y in samples) / ratio**2
                out[r, c, i, j] = mean * (1.0 if modulation is None else float(modulation[r, g, i, j]))
    return out


def rois_about(count, images=2, seed=0, dtype=torch.float64):
    """RoIs around a map of 5 x 7 pixels of 8: inside, across and outside its borders, thin and broad."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([96.0, 76.0]) - 20
    image = torch.randint(images, (count, 1), generator=generator)
    return torch.cat([image, corners.amin(1), corners.amax(1)], 1).to(dtype)


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [1, 3])
def test_deform_roi_pool_equals_the_loop(aligned, ratio):
    features, rois = random(2, 2, 5, 7), rois_about(6)
    offsets, modulation = random(6, 1, 2, 3, 2, seed=1) * 3, random(6, 1, 2, 3, seed=2)
    for given_modulation in (None, modulation):
        ours = deform_roi_pool(
            features,
            rois,
            (2, 3),
            SCALE,
            offsets[:, 0],
            None if given_modulation is None else given_modulation[:, 0],
            gamma=0.3,
            sampling_ratio=ratio,
            aligned=aligned,
        )
        expected = loop(features, rois, (2, 3), offsets, given_modulation, 0.3, ratio, aligned)
        torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_ps_roi_pool_equals_the_loop(groups):
    features, rois = random(2, 4 * 6, 5, 7), rois_about(5)
    offsets, modulation = random(5, groups, 2, 3, 2, seed=1) * 3, random(5, groups, 2, 3, seed=2)
    for given in ((None, None), (offsets, None), (None, modulation), (offsets, modulation)):
        ours = ps_roi_pool(features, rois, (2, 3), SCALE, *given, gamma=0.3)
        torch.testing.assert_close(ours, loop(features, rois, (2, 3), *given, 0.3, sensitive=True), atol=1e-12, rtol=0)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [1, 2, 3])
@pytest.mark.parametrize("images", [1, 3])
def test_without_offsets_it_is_roi_align(aligned, ratio, images):
    features, rois = random(images, 3, 5, 7).requires_grad_(), rois_about(80, images)
    grad = random(80, 3, 4, 2, seed=1)
    ours = deform_roi_pool(features, rois, (4, 2), SCALE, sampling_ratio=ratio, aligned=aligned)
    zeros, ones = torch.zeros(80, 4, 2, 2), torch.ones(80, 4, 2)
    same = deform_roi_pool(features, rois, (4, 2), SCALE, zeros, ones, sampling_ratio=ratio, aligned=aligned)
    expected = torchvision.ops.roi_align(features, rois, (4, 2), SCALE, ratio, aligned)
    for out in (ours, same):
        torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
        torch.testing.assert_close(
            *(torch.autograd.grad(t, features, grad, retain_graph=True)[0] for t in (out, expected)), atol=1e-12, rtol=0
        )


@pytest.mark.parametrize("ratio", [1, 2, 3])
@pytest.mark.parametrize("images", [1, 3])
def test_without_offsets_it_is_ps_roi_align(ratio, images):
    features, rois = random(images, 3 * 8, 5, 7).requires_grad_(), rois_about(80, images)
    grad = random(80, 3, 4, 2, seed=1)
    ours = ps_roi_pool(features, rois, (4, 2), SCALE, sampling_ratio=ratio)
    expected = torchvision.ops.ps_roi_align(features, rois, (4, 2), SCALE, ratio)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        *(torch.autograd.grad(t, features, grad)[0] for t in (ours, expected)), atol=1e-12, rtol=0
    )


def test_the_border_rule_where_it_changes():
    """Samples exactly on the outermost centres, one pixel beyond them, and just farther. All numbers are exact."""
    features = torch.arange(1.0, 9).view(1, 1, 2, 4)
    centres = torch.tensor([-1.0, -0.5, 0, 3, 3.5, 4, -1.0625, 4.0625]) + 0.5  # a RoI's middle, its only sample
    rois = torch.stack([torch.zeros(8), centres - 1, torch.zeros(8), centres + 1, torch.ones(8)], 1)
    ours = deform_roi_pool(features, rois, 1, 1.0, sampling_ratio=1)
    assert ours.flatten().tolist() == [1, 1, 1, 4, 4, 4, 0, 0]
    torch.testing.assert_close(ours, torchvision.ops.roi_align(features, rois, 1, 1.0, 1, True), atol=0, rtol=0)


def test_in_single_precision_it_is_roi_align():
    features, rois = random(4, 8, 64, 64, dtype=torch.float32), rois_about(50, 4, dtype=torch.float32)
    expected = torchvision.ops.roi_align(features, rois, 7, SCALE, 2, True)
    torch.testing.assert_close(deform_roi_pool(features, rois, 7, SCALE), expected, atol=1e-4, rtol=0)


def test_worked_by_hand():
    """On ramps a bin reads its centre; an offset moves it by gamma * offset * the RoI's size."""
    x, y = torch.arange(10.0) + 0.5, torch.arange(8.0) + 0.5  # pixel centres
    features = torch.stack([x.expand(8, 10), y[:, None].expand(8, 10)])[None]
    rois = torch.tensor([[0.0, 2, 1, 8, 5]])  # 6 wide, 4 high
    out = deform_roi_pool(features, rois, (2, 3), 1.0)
    torch.testing.assert_close(out[0, 0], torch.tensor([3.0, 5, 7]).expand(2, 3))
    torch.testing.assert_close(out[0, 1], torch.tensor([[2.0], [4]]).expand(2, 3))
    offsets = torch.zeros(1, 2, 3, 2)
    offsets[0, 0, 1] = torch.tensor([1.0, -2])  # of bin (0, 1) alone: 0.1 * 1 * 6 right, 0.1 * 2 * 4 up
    moved = deform_roi_pool(features, rois, (2, 3), 1.0, offsets)
    torch.testing.assert_close(moved[0, 0], torch.tensor([[3.0, 5.6, 7], [3, 5, 7]]))
    torch.testing.assert_close(moved[0, 1], torch.tensor([[2.0, 1.2, 2], [4, 4, 4]]))
    halved = deform_roi_pool(features, rois, (2, 3), 1.0, modulation=torch.full((1, 2, 3), 0.5))
    torch.testing.assert_close(halved, out / 2)
    # Position-sensitive: map k is k everywhere, and bin (i, j) of channel c reads the map (c * 2 + i) * 3 + j.
    maps = torch.arange(24.0).view(1, 24, 1, 1).expand(1, 24, 8, 10)
    assert ps_roi_pool(maps, rois, (2, 3), 1.0).flatten().tolist() == list(range(24))


def test_modulation_of_one_and_of_zero():
    features, rois, offsets = random(2, 2, 5, 7), rois_about(6), random(6, 2, 3, 2, seed=1)
    plain = deform_roi_pool(features, rois, (2, 3), SCALE, offsets)
    ones = torch.ones(6, 2, 3)
    torch.testing.assert_close(deform_roi_pool(features, rois, (2, 3), SCALE, offsets, ones), plain, atol=0, rtol=0)
    assert not deform_roi_pool(features, rois, (2, 3), SCALE, offsets, ones * 0).any()


@pytest.mark.parametrize("pool", [deform_roi_pool, ps_roi_pool])
def test_gradients_once_and_twice(pool):
    bins, rois = (1, 2), torch.tensor([[0, 4.3, 5.1, 20.7, 14.2], [1, -11.3, 8.9, 9.4, 20.6]], dtype=torch.float64)
    shape = (2, 1, *bins)
    offsets, modulation = random(*shape, 2, seed=5), random(*shape, seed=2)
    samples = [
        sample
        for roi, moved in zip(rois, offsets)
        for of_bin in positions(roi, bins, 2, True, 0.1, moved[0]).values()
        for sample in of_bin
    ]
    # Finite differences must not cross a kink; some samples are moved to the border.
    assert all(abs(v - round(v)) > 1e-3 for sample in samples for v in sample) and min(x for x, _ in samples) < 0
    if pool is deform_roi_pool:
        offsets, modulation = offsets[:, 0], modulation[:, 0]
    leaves = [t.requires_grad_() for t in (random(2, 2, 2, 3, seed=3), offsets, modulation)]

    def function(features, offsets, modulation):
        return pool(features, rois, bins, SCALE, offsets, modulation)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_offsets_have_no_slope_at_the_border():
    """A sample on the outermost centre and one beyond it read a constant: outside nothing changes."""
    features = torch.tensor([5.0, 7]).view(1, 1, 1, 2)
    rois = torch.tensor([[0.0, 0, 0, 1, 1], [0, 1, 0, 2, 1], [0, 2, 0, 2.5, 1], [0, 0.5, 0, 1.75, 1]])
    offsets = torch.zeros(4, 1, 1, 2, requires_grad=True)
    deform_roi_pool(features, rois, 1, 1.0, offsets, sampling_ratio=1).sum().backward()
    # Only the last one's sample lies between the two pixels: (7 - 5) * gamma * width.
    assert offsets.grad.flatten().tolist() == pytest.approx([0, 0, 0, 0, 0, 0, 2 * 0.1 * 1.25, 0], abs=1e-6)


def test_images_do_not_see_each_other():
    rois = rois_about(60, images=3, dtype=torch.float32)
    features = random(3, 2, 5, 7, dtype=torch.float32)
    whole = deform_roi_pool(features, rois, 2, SCALE)
    assert whole.isfinite().all()
    for image in range(3):
        others = features.clone()
        others[torch.arange(3) != image] = math.nan
        mine = rois[:, 0] == image
        torch.testing.assert_close(deform_roi_pool(others, rois, 2, SCALE)[mine], whole[mine], atol=0, rtol=0)
        alone = deform_roi_pool(features[image : image + 1], rois[mine] * torch.tensor([0.0, 1, 1, 1, 1]), 2, SCALE)
        torch.testing.assert_close(alone, whole[mine], atol=1e-5, rtol=0)


def test_rois_are_constants():
    features, rois, offsets = random(2, 4, 5, 7), rois_about(6).requires_grad_(), random(6, 1, 2, 2, 2, seed=1)
    assert not deform_roi_pool(features, rois, 2, SCALE, offsets[:, 0]).requires_grad
    assert not ps_roi_pool(features, rois, 2, SCALE, offsets).requires_grad


def test_no_rois():
    features = random(2, 4, 5, 7).requires_grad_()
    offsets, modulation = torch.zeros(0, 1, 2, 2, 2).requires_grad_(), torch.zeros(0, 1, 2, 2).requires_grad_()
    rois = torch.zeros(0, 5)
    pooled = deform_roi_pool(features, rois, 2, SCALE, offsets[:, 0], modulation[:, 0])
    sensitive = ps_roi_pool(features, rois, 2, SCALE, offsets, modulation)
    assert pooled.shape == (0, 4, 2, 2) and sensitive.shape == (0, 1, 2, 2)
    for out in (pooled, sensitive):
        grads = torch.autograd.grad(out.sum(), (features, offsets, modulation))
        assert not grads[0].any()


@pytest.mark.parametrize("pool", [deform_roi_pool, ps_roi_pool])
def test_half_precision(pool):
    features, rois = random(2, 4, 5, 7, dtype=torch.float32), rois_about(20, dtype=torch.float32)
    torchvisions = torchvision.ops.roi_align if pool is deform_roi_pool else torchvision.ops.ps_roi_align
    expected = torchvisions(features, rois, 2, SCALE, 2, *([True] if pool is deform_roi_pool else []))
    offsets = torch.zeros((20, 2, 2, 2) if pool is deform_roi_pool else (20, 1, 2, 2, 2), dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = pool(features, rois, 2, SCALE, offsets)
    for out in (under_autocast, pool(features.bfloat16(), rois, 2, SCALE, offsets)):
        assert out.dtype is torch.bfloat16
        torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_backends_agree(monkeypatch):
    results = []
    for name in ("reference", "cpu"):
        monkeypatch.setenv("MS_DEFORM_ATTN_BACKEND", name)
        features, rois = random(2, 8, 5, 7, dtype=torch.float32), rois_about(30, dtype=torch.float32)
        offsets = random(30, 2, 2, 2, dtype=torch.float32, seed=1)
        modulation = random(30, 2, 2, dtype=torch.float32, seed=2)
        leaves = [t.requires_grad_() for t in (features, offsets, modulation)]
        plain = deform_roi_pool(features, rois, 2, SCALE, offsets, modulation)
        sensitive = ps_roi_pool(features, rois, 2, SCALE, offsets[:, None], modulation[:, None])
        loss = plain.square().sum() + sensitive.square().sum()
        results.append((plain, sensitive, *torch.autograd.grad(loss, leaves)))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_compiles_without_graph_breaks_for_any_number_of_rois():
    """Hence without waiting for the device: what a host reads from it breaks the graph."""

    def function(features, rois, offsets):
        plain = deform_roi_pool(features, rois, 2, SCALE, offsets)
        return plain, ps_roi_pool(features, rois, 2, SCALE, offsets[:, None])

    counter = CompileCounter()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for count in (3, 5, 8, 13):
        inputs = random(2, 4, 5, 7), rois_about(count), random(count, 2, 2, 2)
        for ours, eager in zip(compiled(*inputs), function(*inputs)):
            torch.testing.assert_close(ours, eager)
    assert counter.frame_count == 1


def layers():
    torch.manual_seed(0)
    return (
        DeformRoIPool(4, (2, 3), SCALE).double(),
        ModulatedDeformRoIPool(4, (2, 3), SCALE, hidden=16).double(),
        DeformPSRoIPool(4, 3, (2, 3), SCALE).double(),
    )


def test_layers_start_at_roi_align():
    features, rois = random(2, 4, 5, 7), rois_about(9)
    plain, modulated, sensitive = layers()
    aligned = torchvision.ops.roi_align(features, rois, (2, 3), SCALE, 2, True)
    torch.testing.assert_close(plain(features, rois), aligned)
    torch.testing.assert_close(modulated(features, rois), aligned / 2)
    nearly_all = ModulatedDeformRoIPool(4, (2, 3), SCALE, hidden=16, initial_modulation=0.9).double()
    torch.testing.assert_close(nearly_all(features, rois), aligned * 0.9, atol=1e-6, rtol=1e-6)
    scores = torch.einsum("oc,bcyx->boyx", sensitive.score_maps.weight[..., 0, 0], features)
    scores = scores + sensitive.score_maps.bias[:, None, None]
    expected = torchvision.ops.ps_roi_align(scores, rois, (2, 3), SCALE, 2)
    torch.testing.assert_close(sensitive(features, rois), expected)
    torch.testing.assert_close(modulated.hidden[0].weight.std().item(), 0.01, atol=2e-3, rtol=0)


def test_layers_pool_at_what_they_predict():
    """With the last layers' biases set, every RoI has the same offsets and modulation: those of the loop."""
    features, rois = random(2, 4, 5, 7), rois_about(5)
    offsets, modulation = random(2, 3, 2, seed=1), random(2, 3, seed=2).sigmoid()
    plain, modulated, sensitive = layers()
    with torch.no_grad():
        for layer in (plain, modulated):
            layer.sampling_offsets.bias.copy_(offsets.flatten())
        modulated.modulation.bias.copy_(modulation.logit().flatten())
        sensitive.sampling_offsets.bias.copy_(offsets.permute(2, 0, 1).flatten())  # all x, then all y
    every_offset, every_modulation = offsets.expand(5, 1, 2, 3, 2), modulation.expand(5, 1, 2, 3)
    torch.testing.assert_close(plain(features, rois), loop(features, rois, (2, 3), every_offset))
    torch.testing.assert_close(modulated(features, rois), loop(features, rois, (2, 3), every_offset, every_modulation))
    inside = torch.tensor([[0.0, 12, 12, 40, 30], [1, 16, 10, 44, 28]]).double()  # where fields of a constant read it
    expected = loop(sensitive.score_maps(features).detach(), inside, (2, 3), every_offset[:2], sensitive=True)
    torch.testing.assert_close(sensitive(features, inside), expected)


def test_a_training_step_moves_the_offsets():
    features, rois = random(2, 4, 5, 7), rois_about(9)
    for layer in layers():
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        layer(features, rois).square().sum().backward()
        optimizer.step()
        assert layer.sampling_offsets.weight.abs().max() > 1e-6
        assert layer.sampling_offsets.bias.abs().max() > 1e-6


def test_layers_without_rois():
    features = random(2, 4, 5, 7)
    for layer in layers():
        out = layer(features, torch.zeros(0, 5))
        assert out.shape[0] == 0 and out.shape[2:] == (2, 3)
        out.sum().backward()
        assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_a_layer_compiles():
    features, rois = random(2, 4, 5, 7), rois_about(9)
    layer = layers()[1]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features, rois), layer(features, rois))
    grads = [torch.autograd.grad(f(features, rois).square().sum(), layer.parameters()) for f in (compiled, layer)]
    for ours, eager in zip(*grads):
        torch.testing.assert_close(ours, eager)


FEATURES, ROIS = torch.zeros(2, 8, 5, 7), torch.zeros(3, 5)


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: deform_roi_pool(FEATURES[0], ROIS, 2, 1.0), "features must be"),
        (lambda: ps_roi_pool(FEATURES[0], ROIS, 2, 1.0), "features must be"),
        (lambda: deform_roi_pool(FEATURES[:, :, :0], ROIS, 2, 1.0), "features must be"),
        (lambda: deform_roi_pool(FEATURES.int(), ROIS, 2, 1.0), "features must be floating-point"),
        (lambda: deform_roi_pool(FEATURES, ROIS.long(), 2, 1.0), "rois must be floating-point"),
        (lambda: deform_roi_pool(FEATURES, ROIS[:, :4], 2, 1.0), "rois must be"),
        (lambda: deform_roi_pool(FEATURES, ROIS.to("meta"), 2, 1.0), "rois is on meta"),
        (lambda: deform_roi_pool(FEATURES, ROIS, 2, 1.0, sampling_ratio=0), "sampling_ratio"),
        (lambda: deform_roi_pool(FEATURES, ROIS, 0, 1.0), "output_size"),
        (lambda: deform_roi_pool(FEATURES, ROIS, (2, 2, 2), 1.0), "output_size"),
        (lambda: deform_roi_pool(FEATURES, ROIS, 2, 1.0, torch.zeros(3, 2, 2, 1)), "offsets must be"),
        (lambda: deform_roi_pool(FEATURES, ROIS, 2, 1.0, torch.zeros(1, 2, 2, 2)), "offsets must be"),
        (lambda: deform_roi_pool(FEATURES, ROIS, 2, 1.0, None, torch.zeros(3, 4)), "modulation must be"),
        (lambda: ps_roi_pool(FEATURES, ROIS, 3, 1.0), "not a multiple"),
        (lambda: ps_roi_pool(FEATURES, ROIS, 2, 1.0, torch.zeros(3, 2, 2, 2)), "offsets must be"),
        (lambda: ps_roi_pool(FEATURES, ROIS, 2, 1.0, torch.zeros(3, 3, 2, 2, 2)), "do not divide"),
        (lambda: ps_roi_pool(FEATURES, ROIS, 2, 1.0, None, torch.zeros(3, 3, 2, 2)), "modulation has 3 groups"),
        (
            lambda: ps_roi_pool(FEATURES, ROIS, 2, 1.0, torch.zeros(3, 2, 2, 2, 2), torch.zeros(3, 1, 2, 2)),
            "modulation must be",
        ),
        (lambda: ModulatedDeformRoIPool(8, initial_modulation=1.0), "initial_modulation"),
        (lambda: DeformRoIPool(8, output_size=0), "output_size"),
    ],
)
def test_what_does_not_fit_is_told(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
