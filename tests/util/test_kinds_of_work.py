"""Where the time of a pass goes: every operator has a kind, and advice is given only where it holds."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import DeviceType

from util.kinds_of_work import PAST_ONEDNN, Work, kind_of, seconds_of, work_of

CPU = torch.device("cpu")
KINDS = {
    "aten::addmm": "matrix products",
    "aten::bmm": "matrix products",
    "aten::_slow_conv2d_forward": "convolutions",
    "aten::mkldnn_convolution": "convolutions",
    "aten::native_layer_norm": "norms",
    "aten::cudnn_batch_norm": "norms",
    "deformable_detr::ms_deform_attn": "deformable operator",
    "aten::grid_sampler_2d": "deformable operator",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "aten::_softmax": "softmax",
    "aten::clamp_min_": "activations and elementwise",
    "aten::sigmoid": "activations and elementwise",
    "aten::mul": "activations and elementwise",
    "aten::copy_": "copies",
    "aten::topk": "pooling, resizing, sorting",
    "## Call CompiledFxGraph fhq2 ##": "fused by torch.compile",
    "triton_poi_fused_clamp_add_0": "fused by torch.compile",
}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_operators_have_kinds(name, kind):
    assert kind_of(name) == kind


def test_the_time_of_a_pass_is_that_of_its_work():
    a, b = torch.randn(900, 900), torch.randn(9)

    def call() -> None:
        F.layer_norm(a @ a, [900])
        b.relu().softmax(-1)

    call()
    work = work_of(call, CPU, "fp32")
    kinds = work.by_kind
    assert kinds["matrix products"] > kinds["softmax"] and {"norms", "activations and elementwise"} <= set(kinds)
    assert sum(work.share(spent) for spent in kinds.values()) == pytest.approx(1)
    assert list(kinds.values()) == sorted(kinds.values(), reverse=True)
    rows = [line for line in str(work).splitlines() if line.startswith(tuple(kinds))]
    assert len(rows) == len(kinds)


def test_kernels_and_ranges_count_once():
    """A kernel's name may look like an operator's; its time is that of the operator that launched it."""
    events = [
        SimpleNamespace(key=key, device_type=device, self_cpu_time_total=cpu, self_device_time_total=gpu)
        for key, device, cpu, gpu in (
            ("aten::mul", DeviceType.CPU, 5.0, 3e6),
            ("void at::native::elementwise_kernel<4>", DeviceType.CUDA, 0.0, 3e6),
            ("## Call CompiledFxGraph fhq2 ##", DeviceType.CPU, 1e6, 2e6),
            ("Torch-Compiled Region: 0/0", DeviceType.CPU, 7.0, 0.0),
        )
    ]
    assert seconds_of(events, on_gpu=True) == {"aten::mul": 3.0, "## Call CompiledFxGraph fhq2 ##": 2.0}
    assert seconds_of(events, on_gpu=False) == {"aten::mul": 5e-6, "## Call CompiledFxGraph fhq2 ##": 1.0}


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_advice_is_for_what_was_seen(threads, units, monkeypatch):
    monkeypatch.setattr("util.kinds_of_work.has_bf16_units", lambda unknown: units)
    seconds = {PAST_ONEDNN: 2.0, "aten::addmm": 5.0, "aten::add": 3.0}
    lines = Work(seconds, CPU, "fp32", threads).advice()
    assert [line.split(" ", 1)[0] for line in lines] == ["20%"] * (threads == 1) + ["70%"] * units
    assert not Work(seconds, CPU, "bf16", 2).advice() and not Work({}, CPU, "fp32", 1).advice()


def test_one_thread_takes_another_way_through_1x1_convolutions():
    """What the advice rests on; should torch change it, it is to go."""
    x, weight, before = torch.randn(1, 64, 40, 40), torch.randn(64, 64, 1, 1), torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                seen = work_of(lambda: F.conv2d(x, weight), CPU, "fp32").seconds
            assert (PAST_ONEDNN in seen) == (threads == 1)
    finally:
        torch.set_num_threads(before)
