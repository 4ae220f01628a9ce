"""Dropout against its definition."""

import pytest
import torch

from models.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_the_scale_and_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(1000, 1003)
    out = Dropout(p)(x)
    dropped = out == 0
    assert float(dropped.float().mean()) == pytest.approx(p, abs=0.002)
    torch.testing.assert_close(out[~dropped], torch.full_like(out[~dropped], 1 / (1 - p)), rtol=1e-3, atol=0)
    assert float(out.double().mean()) == pytest.approx(1, abs=0.005)
    for d in (0, 1):  # no row or column fares otherwise than the rest
        share = dropped.float().mean(d)
        assert float(share.std()) == pytest.approx((p * (1 - p) / 1000) ** 0.5, rel=0.1)
    assert (
        abs(float(torch.corrcoef(torch.stack([dropped[:, :-1].flatten(), dropped[:, 1:].flatten()]).float())[0, 1]))
        < 0.005
    )


def test_the_gradient_goes_where_the_values_went():
    torch.manual_seed(0)
    x = torch.randn(5, 7, 3, dtype=torch.float64, requires_grad=True)
    out = Dropout(0.4)(x.transpose(0, 2))
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient * x, out.transpose(0, 2))


def test_the_generator_decides():
    drop, x = Dropout(0.3), torch.ones(33)
    torch.manual_seed(1)
    first, second = drop(x), drop(x)
    torch.manual_seed(1)
    assert torch.equal(drop(x), first) and not torch.equal(first, second)


def test_evaluation_and_zero_leave_all_as_it_is():
    x = torch.randn(4)
    assert torch.equal(Dropout(0.5).eval()(x), x) and torch.equal(Dropout(0.0)(x), x)
    assert Dropout(0.2)(torch.empty(0, 3)).shape == (0, 3)
