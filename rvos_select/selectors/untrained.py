"""Selectors without parameters of their own: there is nothing to train, so they are used without a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rvos_cache.errors import InputError
from rvos_select.selectors.base import Selector


@dataclass(frozen=True)
class Inputs:
    """What a video needs beside its tracks before the selector can score them.

    encoder, encoder_settings: the text encoder of its words; pooling: settings of `rvos-cache pool-clip`, None: tracks are not pooled.
    """

    encoder: str
    encoder_settings: Mapping[str, Any] = field(default_factory=dict)
    pooling: Mapping[str, Any] | None = None


class UntrainedSelector(Selector):
    """A selector that `predict --selector` and `ask --selector` run without a run, and that `train` refuses."""

    def inputs(self) -> Inputs:
        """Of a video of the user's own. Raises InputError if the settings do not say it."""
        raise NotImplementedError(f"{type(self).__name__} does not implement inputs()")


def check_trainable(kind: type[Selector], name: str) -> None:
    """Raises InputError for a selector that has nothing to train. name: as the user gave it."""
    if issubclass(kind, UntrainedSelector):
        raise InputError(f"selector {name}: it has nothing to train; run it without a run: rvos-select predict --selector {name}")


def check_untrained(kind: type[Selector], name: str) -> type[UntrainedSelector]:
    """`kind`, if it needs no training. Raises InputError. name: as the user gave it."""
    if not issubclass(kind, UntrainedSelector):
        raise InputError(f"selector {name}: it must be trained (rvos-select train --selector {name}); then give --run RUN")
    return kind
