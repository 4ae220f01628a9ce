"""The page of `visualize --explore`: complete in itself, small, true to sampling.npz, and safe whatever names say."""

import os
import re

import numpy as np
import pytest
from PIL import Image

from analysis.looks.explorer.explore import LIMIT, Seen, short_name, write_explorer
from analysis.looks.explorer.packing import pack, pack_decimals, unpack
from analysis.looks.explorer.page import describe_picture
from analysis.looks.explorer.tokens import tokens_apart
from analysis.looks.sampling import Recording, Sampling
from main import main
from models.predictions import PredictionGroup, Predictions
from tests.analysis.looks.pages import EVIL, SIZE, make_page, offsets_in, unpacked
from util.errors import UserError

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_page(tmp_path_factory.mktemp("page"), "--compare", "other/best.pth", refinement=True)


def test_a_page_needs_nothing_else(made):
    page, data, _ = made
    outside = page.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert "http" not in re.sub(r"http-equiv", "", outside)
    assert not re.search(r"\bfetch\(|XMLHttpRequest|import\(|url\(|@import|<link|\bsrc=(?!x onerror)", outside)
    assert data["picture"]["url"].startswith("data:image/") and len(page) < 400_000
    assert [side["title"] for side in data["sides"]] == ["untrained", "other/best.pth"]


def test_a_page_runs_no_script_but_its_own(made):
    page, _, _ = made
    policy = re.search(r'content="(default-src.*?)"', page, re.DOTALL)[1]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert len(re.findall(r"<script\b", page)) == len(re.findall(r"</script>", page)) == 2


def test_names_are_text(made):
    page, data, _ = made
    assert EVIL not in page and "a<b>" not in page and "a&lt;b&gt;&amp;$picture.png" in page
    assert EVIL in data["sides"][0]["names"].values() and data["picture"]["name"] == "a<b>&$picture.png"


def test_names_in_another_encoding_are_marked():
    """A page is UTF-8, and names of files are whatever bytes they are."""
    name = os.fsdecode(b"caf\xe9.png")
    assert describe_picture(Image.new("RGB", (4, 3)), name)["name"] == "caf\N{REPLACEMENT CHARACTER}.png"
    assert short_name(f"runs/{name}/best.pth") == "caf\N{REPLACEMENT CHARACTER}.png/best.pth"
    assert short_name("runs/café/best.pth") == "café/best.pth"


def test_values_are_those_of_the_npz(made):
    _, data, numbers = made
    side = data["sides"][0]
    decoder, encoder = side["decoder"], side["encoder"]
    assert encoder["tokens"] == list(range(encoder["total"]))  # a small picture has room for all
    for kind, stack, rows in (("decoder", decoder, slice(None)), ("encoder", encoder, numbers["tokens"])):
        weights, dx, dy = (unpacked(stack, name) for name in ("weights", "dx", "dy"))
        for layer in range(len(weights)):
            true = numbers[f"{kind}.{layer}.weights"].astype(float)
            assert stack["heads"] == true.shape[1] and stack["levels"] == numbers[f"{kind}.{layer}.levels"].tolist()
            offsets = offsets_in(numbers, kind, layer)
            np.testing.assert_allclose(weights[layer, rows], true.reshape(len(true), -1), rtol=0, atol=0.5001e-4)
            np.testing.assert_allclose(dx[layer, rows], offsets[..., 0], rtol=0, atol=0.05001)
            np.testing.assert_allclose(dy[layer, rows], offsets[..., 1], rtol=0, atol=0.05001)
    assert decoder["ks"] == [0, 0, 1, 2] and weights.std() > 0.01 and abs(dx).max() > 5
    corners = unpacked(decoder, "boxes")
    x, y, w, h = np.moveaxis(numbers["boxes_cxcywh"].astype(float) * np.tile(SIZE, 2), -1, 0)
    np.testing.assert_allclose(corners, np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1), atol=1e-3)
    scores = 1 / (1 + np.exp(-numbers["logits"].astype(float)))
    labels = np.array(decoder["labels"])
    np.testing.assert_array_equal(labels, scores[-1].argsort(-1)[:, ::-1])
    np.testing.assert_allclose(unpacked(decoder, "scores"), scores[:, np.arange(len(labels)), labels[:, 0]], rtol=1e-6)
    references = numbers["encoder.0.references"].astype(float) * SIZE
    np.testing.assert_allclose(unpacked(encoder, "references")[numbers["tokens"]], references, atol=1e-4)


def test_an_encoder_that_does_not_sample_is_left_out(tmp_path, capsys):
    _, data, _ = make_page(tmp_path, encoder_layers=0)
    assert data["sides"][0]["encoder"] is None and len(data["sides"]) == 1
    assert "with no encoder tokens, for no encoder layer samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "decimals", "kind"),
    [([0.00005, 0.25, 1.0], 4, "Uint16"), ([-12.34, 3276.7], 1, "Int16"), ([-4000.0, 5000.26], 1, "Int32")],
)
def test_decimals_take_the_smallest_integers(values, decimals, kind):
    packed = pack_decimals(np.array(values), decimals)
    assert packed["type"] == kind and packed["shape"] == [len(values)]
    np.testing.assert_allclose(unpack(packed), np.round(values, decimals), rtol=1e-12)


def test_packing_is_without_loss():
    values = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    np.testing.assert_array_equal(unpack(pack(values)), values)
    with pytest.raises(ValueError, match="float64"):
        pack(values.astype(float))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e12])
def test_what_is_not_finite_gets_a_sentence(value):
    with pytest.raises(UserError, match="weights may have diverged"):
        pack_decimals(np.array([0.0, value]), 1)


def test_tokens_of_a_grid():
    """By hand: 8 x 6 cells of 10 pixels, of which 6 x 6 are picture, and 2 x 2 cells of 30."""
    ratios = torch.tensor([[6 / 8, 1.0], [1.0, 1.0]])
    assert len(tokens_apart(1, (60, 60), [(6, 8), (2, 2)], ratios)) == 6 * 6 + 4
    tokens = tokens_apart(20, (60, 60), [(6, 8), (2, 2)], ratios)
    assert tokens == [0, 2, 4, 16, 18, 20, 32, 34, 36, 48, 49, 50, 51]
    assert len(tokens_apart(1000, (60, 60), [(6, 8), (2, 2)], ratios)) == 2


@pytest.mark.parametrize("detectors", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_three_hundred_queries_and_six_layers_fit(tmp_path, detectors):
    """Points that do not compress, on a noisy photograph of the base preset's size."""
    generator = torch.Generator().manual_seed(0)
    shapes, heads, levels = [(100, 134), (50, 67), (25, 34), (13, 17)], 8, torch.arange(4).repeat_interleave(4)
    few = [(s[0] // 4, s[1] // 4) for s in shapes]  # as many as there is room for, so the rest needs no memory

    def sampled(queries: int) -> Sampling:
        on_maps = torch.rand(1, queries, heads, 16, 2, generator=generator)
        weights = torch.rand(1, queries, heads, 16, generator=generator).softmax(-1)
        references = torch.rand(1, queries, 2, generator=generator)
        return Sampling(on_maps, weights, levels, references, torch.ones(1, 16, 2))

    count = sum(h * w for h, w in few)
    record = Recording(
        [sampled(count) for _ in range(6)],
        [sampled(300) for _ in range(6)],
        few,
        torch.ones(1, 4, 2),
        torch.zeros(1, count, dtype=torch.bool),
        Predictions([PredictionGroup("decoder", torch.randn(6, 1, 300, 91), torch.rand(6, 1, 300, 4))]),
    )
    noise = np.random.default_rng(0).normal(128, 20, (800, 1066, 3)).clip(0, 255).astype(np.uint8)
    picture, file = Image.fromarray(noise).resize((1066, 800)), tmp_path / "explorer.html"
    said = write_explorer(file, picture, "noise", [Seen("a", record, {})] * detectors, (0.5, 0.5), 0.5, 0)
    assert 0.8 * LIMIT < file.stat().st_size <= LIMIT and f"{file.stat().st_size / 1e6:.2f} MB" in said
    assert f"of {count:,}" in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--compare", "b.pth", "--input", "a.jpg"], "only --explore writes; give both"),
        (["--compare", "b.pth", "--checkpoint", "a.pth", "--input", "a.jpg"], "only --explore writes; give both"),
    ],
)
def test_a_second_detector_needs_the_page(argv, message, capsys):
    assert main(["visualize", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
