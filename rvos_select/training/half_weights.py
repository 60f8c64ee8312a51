"""The weights of linear layers in bfloat16, renewed together: under autocast each layer casts its own, and its gradient back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class HalfWeights:
    """bfloat16 copies of the weights and biases of every `nn.Linear` of `model` that are trained; frozen parts keep theirs."""

    def __init__(self, model: nn.Module) -> None:
        trained = {id(parameter) for parameter in model.parameters()}
        layers = [layer for layer in model.modules() if type(layer) is nn.Linear]
        places = [(layer, name, p) for layer in layers for name, p in layer.named_parameters(recurse=False) if id(p) in trained]
        self.places = [(layer, name) for layer, name, _ in places]
        self.owners = [parameter for _, _, parameter in places]
        copies = {id(p): nn.Parameter(torch.empty_like(p, dtype=torch.bfloat16)) for p in self.owners}
        self.copies = [copies[id(p)] for p in self.owners]
        self.pairs = list({id(p): (p, copies[id(p)]) for p in self.owners}.values())

    @contextmanager
    def used(self) -> Iterator[None]:
        """The layers compute with copies of the present weights, whose gradients become those of the weights at the end."""
        parameters: list[Tensor] = [p for p, _ in self.pairs]
        copies: list[Tensor] = [c for _, c in self.pairs]
        with torch.no_grad():
            torch._foreach_copy_(copies, parameters)
        self._put(self.copies)
        try:
            yield
        finally:
            self._put(self.owners)
        pairs = [(p, c.grad) for p, c in self.pairs if c.grad is not None]
        gradients: list[Tensor] = [torch.empty_like(p) for p, _ in pairs]
        torch._foreach_copy_(gradients, [grad for _, grad in pairs])
        for (parameter, _), gradient in zip(pairs, gradients):
            parameter.grad = gradient
        for copy in copies:
            copy.grad = None

    def _put(self, parameters: list[nn.Parameter]) -> None:
        for (layer, name), parameter in zip(self.places, parameters):
            layer._parameters[name] = parameter
