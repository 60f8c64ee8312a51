"""The optimiser of a run and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import nn

from rvos_select.training.settings import OptimSettings


def make_optimizer(model: nn.Module, settings: OptimSettings) -> torch.optim.AdamW:
    """AdamW over the parameters of `model` that are trained."""
    groups = model.parameters() if settings.decay_all else decay_groups(model, settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, settings.beta2), weight_decay=settings.weight_decay, fused=True)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters in two groups: with `weight_decay`, and those of norms and embeddings, without."""
    without = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding) or "Norm" in type(module).__name__
        for parameter in module.parameters(recurse=False)
    }
    parts = {True: list[nn.Parameter](), False: list[nn.Parameter]()}
    for parameter in model.parameters():
        parts[id(parameter) not in without].append(parameter)
    return [{"params": parts[True], "weight_decay": weight_decay}, {"params": parts[False], "weight_decay": 0.0}]


def learning_rate(settings: OptimSettings, step: int, steps: int, plateau: float) -> float:
    """The rate of step `step` of `steps` in all. plateau: product of the reductions so far, for that schedule."""
    rate = settings.lr * min(1.0, (step + 1) / settings.warmup if settings.warmup else 1.0)
    if settings.schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * step / steps))
    if settings.schedule == "step":
        return rate * settings.factor ** sum(step / steps >= milestone for milestone in settings.milestones)
    return rate * plateau


def update_plateau(settings: OptimSettings, state: MutableMapping[str, Any], loss: float) -> None:
    """Reduce the rate when the validation loss has not fallen for `patience` epochs (SOLA's released schedule).

    state: "lowest_loss" so far, epochs "waited" since, and "rate", the product of the reductions; changed in place.
    """
    if state["lowest_loss"] is None or loss < state["lowest_loss"]:
        state["lowest_loss"], state["waited"] = loss, 0
        return
    state["waited"] += 1
    if settings.schedule == "plateau" and state["waited"] > settings.patience:
        state["rate"], state["waited"] = state["rate"] * settings.factor, 0
