"""bfloat16 copies of weights against autocast, which casts them one by one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rvos_select.selectors.base import Selector
from rvos_select.training.half_weights import HalfWeights


class Module(nn.Module):
    """A layer that is used twice, one that shares its weight, one that is not used, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second, self.idle = (
            nn.Linear(6, 6),
            nn.LayerNorm(6),
            nn.Linear(6, 6, bias=False),
            nn.Linear(2, 2),
        )
        self.second.weight = self.first.weight

    def loss(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.norm(self.first(x)) + self.first(x.flip(0))
            return self.second(y).float().square().mean()


def test_losses_and_gradients_are_those_of_autocast() -> None:
    model, x = Module(), torch.randn(3, 6)
    expected = model.loss(x)
    expected.backward()
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    for step in range(2):  # the second with other weights
        model.zero_grad(set_to_none=True)
        half = HalfWeights(model)
        with half.used():
            assert model.first.weight.dtype == torch.bfloat16 and model.second.weight is model.first.weight
            loss = model.loss(x)
            loss.backward()
        assert model.first.weight.dtype == torch.float32 and len(half.pairs) == 4
        if step == 0:
            assert torch.equal(loss, expected)
            for name, parameter in model.named_parameters():
                grad = gradients[name]
                assert (parameter.grad is None) == (grad is None), name
                assert grad is None or torch.allclose(parameter.grad, grad, rtol=2**-7, atol=1e-6), name
        else:
            assert not torch.equal(loss, expected)
        with torch.no_grad():
            model.first.weight.add_(0.5)


def test_an_error_leaves_the_weights_in_place() -> None:
    model = Module()
    weight = model.first.weight
    try:
        with HalfWeights(model).used():
            raise ValueError
    except ValueError:
        assert model.first.weight is weight and model.second.weight is weight


def test_frozen_weights_keep_their_precision() -> None:
    selector = Selector()
    selector.linear = nn.Linear(2, 2)
    selector.attach_frozen("part", nn.Linear(3, 3))
    assert len(HalfWeights(selector).pairs) == 2
