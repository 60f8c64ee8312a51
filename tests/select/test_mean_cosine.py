"""The mean-cosine baseline against a loop over tracks."""

from __future__ import annotations

import math

import pytest
import torch

from rvos_select.data.batch import Batch
from rvos_select.selectors.mean_cosine import MeanCosine, MeanCosineConfig


def test_logit_is_a_scaled_cosine_of_means() -> None:
    model = MeanCosine(MeanCosineConfig(token_channels=2, word_channels=2, width=2, scale=4.0))
    with torch.no_grad():
        model.token_map.weight.copy_(torch.eye(2))
        model.word_map.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))  # swaps
        model.bias.fill_(-1.0)
    tokens = torch.tensor([[[[2.0, 0.0], [0.0, 2.0], [99.0, 0.0]], [[0.0, 1.0], [0.0, 3.0], [99.0, 0.0]]]])
    words = torch.tensor([[[2.0, 0.0], [4.0, 0.0], [0.0, 99.0]]])  # mean (3, 0), mapped (0, 3)
    batch = Batch(
        tokens,
        torch.tensor([[True, True, False]]),
        torch.tensor([[True, True]]),
        words,
        torch.tensor([[True, True, False]]),
        torch.tensor([[0.0, 1.0]]),
    )
    wanted = [4 / math.sqrt(2) - 1, 4.0 - 1]
    assert model(batch)[0].tolist() == pytest.approx(wanted, abs=1e-5)
    loss = (math.log1p(math.exp(wanted[0])) + 1.5 * math.log1p(math.exp(-wanted[1]))) / 2
    losses = model.loss(batch)
    assert set(losses) == {"loss", "bce"}
    assert losses["loss"].item() == pytest.approx(loss, abs=1e-5)
    assert losses["bce"].item() == losses["loss"].item()


def test_default_maps_to_256() -> None:
    model = MeanCosine(MeanCosineConfig())
    assert sum(p.numel() for p in model.parameters()) == 256 * 256 + 1024 * 256 + 2
