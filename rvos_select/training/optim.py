"""The optimiser of a run and the learning rate of each step."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from rvos_cache.errors import InputError
from rvos_select.training.settings import OptimSettings

FACTOR = "factor"
"""Key of a parameter group: what the learning rate of the run is multiplied by; 1 where it is missing."""
NORM = re.compile(r"Norm(\dd)?$")
"""End of the name of a class that normalises: LayerNorm, BatchNorm2d, transformers' and our own. A convolution followed by a norm is
called otherwise (NormedConv)."""


def make_optimizer(model: nn.Module, settings: OptimSettings, rate_on: torch.device | None = None) -> torch.optim.AdamW:
    """AdamW over the parameters of `model` that are trained. Raises InputError for `settings.rates` that do not fit the module.

    rate_on: a GPU where the learning rates are tensors, so that recorded steps read those of the step that replays them.
    """
    decay = settings.weight_decay
    all_decay: list[dict[str, Any]] = [{"params": list(model.parameters()), "weight_decay": decay}]
    groups = all_decay if settings.decay_all else decay_groups(model, decay)
    if settings.rates:
        groups = rate_groups(groups, parameter_factors(model, settings.rates))
    for group in groups:
        group["lr"] = settings.lr if rate_on is None else torch.tensor(settings.lr, device=rate_on)
    return torch.optim.AdamW(groups, betas=(0.9, settings.beta2), weight_decay=decay, fused=True, capturable=rate_on is not None)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the next step: `rate` times the factor of each parameter group."""
    for group in optimizer.param_groups:
        value = rate * group.get(FACTOR, 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def parameter_factors(model: nn.Module, rates: Mapping[str, float]) -> dict[int, float]:
    """id of a parameter -> the factor of its learning rate, of those that `rates` names.

    A parameter belongs to `name` when `name` is one of the dotted parts of its own name, or the first of them together: "adapters"
    and "adapters.0" name "adapters.0.conv1.weight". Raises InputError for a parameter of two names, and a name of no parameter.
    """
    factors, name_of = dict[int, float](), dict[int, str]()
    parameters = dict(model.named_parameters())
    parts = ", ".join(dict.fromkeys(own.partition(".")[0] for own in parameters))
    for name, factor in rates.items():
        members = {own: p for own, p in parameters.items() if name in own.split(".") or f"{own}.".startswith(f"{name}.")}
        if not members:
            raise InputError(f"optim.rates: no parameter of {type(model).__name__} belongs to {name!r}; its parts are: {parts}")
        for own, parameter in members.items():
            if id(parameter) in name_of:
                raise InputError(
                    f"optim.rates: {own} belongs to {name_of[id(parameter)]!r} and to {name!r}, expected one name for each "
                    f"parameter; the parts of {type(model).__name__} are: {parts}"
                )
            factors[id(parameter)], name_of[id(parameter)] = factor, name
    return factors


def rate_groups(groups: list[dict[str, Any]], factors: Mapping[int, float]) -> list[dict[str, Any]]:
    """Parameter groups split by factor (id -> factor, 1 where it is missing), largest first; none is without a parameter."""
    out = []
    for group in groups:
        parts = dict[float, list[nn.Parameter]]()
        for parameter in group["params"]:
            parts.setdefault(factors.get(id(parameter), 1.0), []).append(parameter)
        out += [{**group, "params": parts[factor], FACTOR: factor} for factor in sorted(parts, reverse=True)]
    return out


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters in two groups: with `weight_decay`, and those of norms and embeddings, without."""
    without = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding) or NORM.search(type(module).__name__)
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
