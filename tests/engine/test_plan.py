"""Plans for a cluster: arithmetic against values worked out by hand, figures against the pages they are quoted from."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.optim import adamw
from engine.plan import measure
from engine.plan.arithmetic import Plan
from engine.plan.figures import COCO, COCO_OBJECTS, GPU_IMAGES_PER_SECOND, MIB, OBJECTS365, Figure
from engine.plan.report import report
from engine.plan.request import read_request
from main import main
from models.from_config import build_model
from util.command_config import ProfileConfig
from util.config import ModelConfig
from util.errors import UserError

DOCS = Path(__file__).resolve().parents[2] / "docs"
SMALL = {
    "backbone.name": "test_resnet",
    "backbone.weights": "none",
    "d_model": 32,
    "num_heads": 2,
    "norm_groups": 8,
    "num_queries": 10,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "ffn_dim": 32,
}
# 8 GPUs, 64 images a step in 0.15 s and 0.05 s of network: 320 images/s, which 6.4 cores decode.
PLAN = Plan(
    nodes=2,
    gpus=4,
    images=1000,
    epochs=10,
    batch=64,
    gpu_seconds=0.15,
    decode_seconds=0.02,
    loader_cores=16,
    image_bytes=100e3,
    storage=500e6,
    gradient_bytes=200e6,
    network=7e9,
    link=100e9,
)


def small_options(**more) -> ProfileConfig:
    model = ModelConfig()
    for name, value in SMALL.items():
        section, _, last = name.rpartition(".")
        setattr(model.backbone if section else model, last, value)
    return ProfileConfig(model=model, device="cpu", **more)


def test_a_plan_worked_out_by_hand():
    assert PLAN.steps == 150  # 15 whole batches an epoch
    assert PLAN.reduced_bytes == pytest.approx(350e6)  # 2 * 7/8 of 200 MB
    assert PLAN.reduce_seconds == pytest.approx(0.05)  # at 7 GB/s
    assert PLAN.wanted_images == pytest.approx(320)
    assert PLAN.wanted_cores == pytest.approx(6.4)
    assert PLAN.wanted_workers == 1
    assert PLAN.wanted_reads == pytest.approx(32e6)
    assert PLAN.limits == pytest.approx({"GPUs": 320, "decoding": 1600, "storage": 10_000})
    assert PLAN.bottleneck == "GPUs" and PLAN.step_seconds == pytest.approx(0.2)
    assert PLAN.hours == pytest.approx(150 * 0.2 / 3600)


@pytest.mark.parametrize(
    ("change", "bottleneck", "seconds"),
    [
        ({"loader_cores": 1}, "decoding", 0.64),  # 2 cores give 100 images/s
        ({"storage": 5e6}, "storage", 0.64),  # 2 machines read 100 images/s
        ({"network": 0.7e9}, "network", 0.65),
        ({"nodes": 1, "gpus": 8, "network": 1.0}, "GPUs", 0.1535),  # within a machine: 350 MB at 100 GB/s
        ({"link": 3.5e9}, "GPUs", 0.25),  # the slowest link of the ring counts
        ({"nodes": 1, "gpus": 1}, "GPUs", 0.15),  # alone, nothing is sent
    ],
)
def test_what_holds_a_training_up(change, bottleneck, seconds):
    plan = replace(PLAN, **change)
    assert plan.bottleneck == bottleneck and plan.step_seconds == pytest.approx(seconds)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_bytes_of_a_ring_all_reduce_that_is_carried_out(ranks):
    """Each rank sends a chunk to the next: first sums (reduce-scatter), then results (all-gather)."""
    values = torch.randn(ranks, ranks * 5, dtype=torch.float64)
    chunks = [list(row.clone().chunk(ranks)) for row in values]
    sent = [0] * ranks
    for gathers in (False, True):
        for turn in range(ranks - 1):
            moving = [(rank, (rank - turn + gathers) % ranks) for rank in range(ranks)]
            carried = [(rank, at, chunks[rank][at].clone()) for rank, at in moving]
            for rank, at, chunk in carried:
                to = (rank + 1) % ranks
                chunks[to][at] = chunk if gathers else chunks[to][at] + chunk
                sent[rank] += chunk.numel() * 8
    for row in chunks:
        assert torch.allclose(torch.cat(row), values.sum(0), rtol=1e-12)
    plan = replace(PLAN, nodes=1, gpus=ranks, gradient_bytes=values[0].numel() * 8)
    assert set(sent) == {plan.reduced_bytes}


def test_figures_are_those_of_the_pages():
    benchmarks, scaling = ((DOCS / f"{page}.md").read_text() for page in ("benchmarks", "scaling"))
    section = benchmarks.partition("A training step of `configs/base.yaml`, 8 images of 800x1066")[2]
    for precision, speed in GPU_IMAGES_PER_SECOND.items():
        assert float(re.search(rf"^\| {precision} \| \d+ \| ([\d.]+) ", section, re.MULTILINE)[1]) == speed
    for name, data, times in (("COCO: 860,001", COCO, 1), ("Objects365 1/8: 3,100,000", OBJECTS365, 8)):
        row = re.search(rf"^\| {name} (.*)\|$", scaling, re.MULTILINE)[1].replace(",", "")
        seconds, kept, peak = (times * float(row.split("|")[i]) for i in (2, 4, 6))
        assert data.read_seconds.value == pytest.approx(seconds)
        assert (data.kept_bytes.value / MIB, data.peak_bytes.value / MIB) == pytest.approx((kept, peak))
    assert COCO_OBJECTS == 860_001


def test_what_is_not_given_is_named():
    request = read_request("gpus=8,nodes=8", "bf16", is_base=True)
    assert (request.nodes, request.gpus) == (8, 8)
    assert (request.batch.value, request.batch.source) == (512, "assumed") and "learning rates" in request.batch.note
    assert request.gpu_seconds.value == pytest.approx(8 / 50.6) and request.gpu_seconds.source == "measured"
    assert request.decode_seconds is None and request.data == (COCO, OBJECTS365)
    assert (request.network.value, request.network.source) == (12.5e9, "assumed")
    assert read_request("gpus=1", "fp32", True).batch.value == 32
    # A measured figure that is not of this model, or not of so few images, is assumed.
    assert read_request("gpus=8,nodes=8", "bf16", is_base=False).gpu_seconds.source == "assumed"
    few = read_request("gpus=8,nodes=8,batch=64", "bf16", is_base=True).gpu_seconds
    assert few.source == "assumed" and few.value == pytest.approx(1 / 50.6)


def test_what_is_given_is_taken():
    text = "nodes=2, gpus=4, images=1000, objects=9000, image_kb=50, epochs=3, batch=40, step_ms=200, decode_ms=5, "
    request = read_request(text + "cores=32, network=400, link=800, storage=300", "fp64", is_base=False)
    (data,) = request.data
    assert [data.images.value, data.objects.value, data.image_bytes.value] == [1000, 9000, 50e3]
    assert data.kept_bytes.value == pytest.approx(9000 * 100 * MIB / 860_001)
    figures = request.epochs, request.batch, request.gpu_seconds, request.decode_seconds, request.cores
    figures += request.network, request.link, request.storage
    assert [figure.value for figure in figures] == pytest.approx([3, 40, 0.2, 0.005, 32, 50e9, 100e9, 300e6])
    assert {figure.source for figure in figures} == {"given"}
    assert read_request("gpus=2,images_per_second=40,batch=32", "bf16", True).gpu_seconds.value == 0.4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nodes=8", "no 'gpus'"),
        ("", "no 'gpus'"),
        ("gpus=8,node=8", "unknown key 'node'; did you mean 'nodes'"),
        ("gpus=8,x=1", "unknown key 'x'; there are nodes, gpus"),
        ("gpus", "has 'gpus'; it takes key=number pairs"),
        ("gpus=0", "gpus=0; it must be a whole number, at least 1"),
        ("gpus=1.5", "gpus=1.5; it must be a whole number"),
        ("gpus=many", "gpus=many; it must be a whole number"),
        ("gpus=1,step_ms=nan", "step_ms=nan; it must be a number above 0"),
        ("gpus=1,network=-1", "network=-1; it must be a number above 0"),
        ("gpus=1,gpus=2", "'gpus' twice"),
        ("gpus=8,batch=4", "batch=4, which 8 GPUs cannot share"),
        ("gpus=8,cores=8", "give at least cores=9"),
        ("gpus=1,objects=9", "objects without images"),
        ("gpus=1,images=9", "9 images, which make no batch of 32"),
        ("gpus=1,step_ms=9,images_per_second=9", "give one of them"),
    ],
)
def test_refused_keys(text, said):
    with pytest.raises(UserError) as told:
        read_request(text, "fp32", is_base=True)
    assert said in str(told.value)


def test_no_gpu_was_measured_in_fp64():
    with pytest.raises(UserError, match="no GPU was measured in fp64; give step_ms"):
        read_request("gpus=1", "fp64", is_base=True)


def test_bytes_of_gradients_and_checkpoints_are_those_of_an_optimizer():
    options = small_options()
    found = measure.measure_here(options, read_request("gpus=1,decode_ms=5", "fp32", False))
    model = build_model(options.model, options.num_classes, backbone_weights="none")
    optimizer = adamw(model, 1e-4, 1e-5, 0.1, 1e-4, None, None)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    optimizer.step()
    moments = [m[k] for m in optimizer.state_dict()["state"].values() for k in ("exp_avg", "exp_avg_sq")]
    weights = sum(tensor.numel() * 4 for tensor in model.state_dict().values())
    assert found.gradient_bytes.value == gradients == found.trainable * 4
    assert found.checkpoint_bytes.value == weights + sum(m.nbytes for m in moments)
    assert found.ema_bytes == weights and found.decode_seconds == Figure(0.005, "given")


def test_the_loader_is_timed_on_pictures_like_cocos():
    threads = torch.get_num_threads()
    found = measure.measure_decoding(epochs=1)
    assert torch.get_num_threads() == threads
    assert 1e-3 < found.value < 0.5 and found.source == "measured"
    assert "8 made-up JPEG pictures of 640x480" in found.note
    assert 140 < int(re.search(r"and (\d+) KB", found.note)[1]) < 185  # COCO's have 163


def test_the_report_has_every_number_and_its_source():
    request = read_request("nodes=2,gpus=4,images=1000,batch=64,step_ms=150,decode_ms=20,network=56", "fp32", False)
    measured = measure.Measured(
        Figure(0.02, "given"), 50_000_000, Figure(200e6, "counted"), Figure(600e6, "counted"), 200e6
    )
    text = report(request, measured)
    for row in (
        r"loaders: images/s in all +320",
        r"loaders: images/s a machine +160",
        r"cores that decode, in all +6\.4",
        r"steps +750",
        r"step, ms +200",
        r"hours +0\.042",
        r"gradients: MB that each GPU sends in a step +350",
        r"gradients: ms at that bandwidth +50\.0",
        r"a checkpoint, MB \(with EMA\) +600 \(800\)",
        r"  network of a machine +56 Gbit/s  given",
        r"  storage of a machine +2000 MB/s  assumed: a local NVMe disk",
        r"  epochs +50  assumed: the paper's",
    ):
        assert re.search(rf"^{row}", text, re.MULTILINE), row
    assert "1,000 images is held up by GPUs" in text
    origins = text.partition("Computed from:\n")[2].splitlines()
    assert all(re.search(r"  (measured|counted|published|given|assumed)(: |$)", line) for line in origins)


def test_the_command(capsys):
    small = [f"--model.{name}={value}" for name, value in SMALL.items()]
    assert main(["profile", *small, "--plan", "nodes=2,gpus=2,decode_ms=10,batch=32", "--precision", "bf16"]) == 0
    printed = capsys.readouterr().out
    assert "A training on 2 machines of 2 GPUs, 50 epochs, 32 images a step" in printed
    assert re.search(r"^steps +184,800 +2,722,300$", printed, re.MULTILINE)  # 50 x 118,287 // 32 and 1,742,289 // 32
    assert "this model may differ: give step_ms" in printed and "operator" not in printed
    assert main(["profile", "--plan", "gpu=1"]) == 2
    assert capsys.readouterr().err == "error: --plan has an unknown key 'gpu'; did you mean 'gpus'?\n"
