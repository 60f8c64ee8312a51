"""Selectors: one file per published selection module, one per baseline. One line in SELECTORS each."""

from __future__ import annotations

from typing import get_args

from rvos_cache.errors import InputError
from rvos_cache.plugins import resolve
from rvos_select.data.batch import check_requires
from rvos_select.merging.policy import Empty
from rvos_select.selectors.base import Scored, Selector, SelectorConfig
from rvos_select.selectors.frozen import FrozenPart

__all__ = ["SELECTORS", "FrozenPart", "Scored", "Selector", "SelectorConfig", "selector_class"]

SELECTORS = {
    "sola": "rvos_select.selectors.sola:Sola",
    "dmvs": "rvos_select.selectors.dmvs:Dmvs",
    "ssa": "rvos_select.selectors.ssa:Ssa",
    "referdino": "rvos_select.selectors.referdino:ReferDino",
    "dervos": "rvos_select.selectors.dervos:Dervos",
    "clip-zero-shot": "rvos_select.selectors.clip_zero_shot:ClipZeroShot",
    "mean-cosine": "rvos_select.selectors.mean_cosine:MeanCosine",
}


def selector_class(name: str) -> type[Selector]:
    """The selector `name` (a name in SELECTORS or "package.module:Class").

    Raises InputError, in one line, for a class that lacks a part that training or prediction needs.
    """
    kind: type[Selector] = resolve(SELECTORS, name, "selector", Selector)
    if not isinstance(kind.Config, type) or not issubclass(kind.Config, SelectorConfig):
        raise InputError(f"selector {name!r}: Config is {kind.Config!r}; derive it from rvos_select.SelectorConfig")
    needed = ["forward", "draw"] if kind.draws is True else ["forward"]
    for method in needed:
        if getattr(kind, method) is getattr(Selector, method):
            raise InputError(f"selector {name!r}: {kind.__name__} has no method {method}; see rvos_select.Selector.{method}")
    if isinstance(kind.requires, (tuple, list)):
        check_requires(kind.requires, name)
    elif not isinstance(kind.requires, property):
        raise InputError(f'selector {name!r}: requires is {kind.requires!r}; write a tuple, as requires = ("presence",)')
    if not isinstance(kind.empty, property) and kind.empty not in get_args(Empty):
        raise InputError(f"selector {name!r}: empty is {kind.empty!r}; there are: {', '.join(get_args(Empty))}")
    return kind
