"""Frozen parts of a selector: models that it runs but does not train, count or save."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from rvos_cache.errors import InputError


@dataclass(frozen=True)
class FrozenPart:
    """A frozen model that a selector runs itself.

    name: its attribute in `selector.frozen`; checkpoint: folder or hub name; load: checkpoint -> module; digest: module -> digest
    of its weights; expected: the digest that the weights must have, None where a setting names the checkpoint (then the run
    records the digest of its first training); source: where `expected` comes from, for the message; trains_mode: in training it
    is put in training mode too (stochastic depth, dropout); its weights stay frozen.
    """

    name: str
    checkpoint: str
    load: Callable[[str], nn.Module]
    digest: Callable[[nn.Module], str]
    expected: str | None = None
    source: str = "the cache"
    trains_mode: bool = False

    def open(self, recorded: str | None = None) -> tuple[nn.Module, str]:
        """The frozen module, and its digest. recorded: the digest in the run's record.

        Raises InputError when the weights are not the expected or the recorded ones.
        """
        module = self.load(self.checkpoint)
        digest = self.digest(module)
        for expected, source in ((self.expected, self.source), (recorded, "the run")):
            if expected is not None and digest != expected:
                raise InputError(
                    f"{self.checkpoint}: {self.name} has digest {digest}, {source} was made with {expected}; bring that checkpoint "
                    "back, or extract and train again"
                )
        return module.requires_grad_(False), digest


def mark_frozen(module: nn.Module) -> None:
    """Record in each submodule which tensors it has now. What is added later, an adapter, is none of them."""
    for layer in module.modules():
        names = [*layer._parameters, *layer._buffers]
        layer.frozen_tensors = frozenset(names)  # type: ignore[assignment]
