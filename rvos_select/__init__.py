"""Stage two: light selection modules that are trained from caches, select tracks for each expression, and are scored.

    import rvos_select as rs

    run = rs.train("train.zarr", selector="sola", out="run")
    selections = rs.predict(run, "valid.zarr", out="selections.zarr")
    scores = rs.evaluate(selections, "valid.zarr")

Paths may be text or `pathlib.Path`, one or several. Names are imported when they are first used, so that importing this package
is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rvos_cache import __version__

_EXPORTS = {
    "rvos_cache.errors": ("InputError",),
    "rvos_cache.settings": ("Settings",),
    "rvos_cache.types": ("Selection",),
    "rvos_select.data.batch": ("Batch",),
    "rvos_select.data.video": ("InferenceVideo",),
    "rvos_select.evaluation.compare": ("compare",),
    "rvos_select.evaluation.evaluate": ("evaluate",),
    "rvos_select.evaluation.oracle": ("oracle",),
    "rvos_select.exchange.import_sola": ("import_sola",),
    "rvos_select.inference.ask": ("ask", "ask_untrained"),
    "rvos_select.inference.predict": ("predict", "select_all"),
    "rvos_select.merging.label_maps": ("Answer", "label_map"),
    "rvos_select.merging.merge": ("merge",),
    "rvos_select.merging.policy": ("Decision", "PolicyOptions", "SelectionPolicy"),
    "rvos_select.reporting": ("report",),
    "rvos_select.runs.checkpoint": ("load_selector",),
    "rvos_select.selectors": ("FrozenPart", "Scored", "Selector", "SelectorConfig"),
    "rvos_select.submission": ("submit", "submit_selections"),
    "rvos_select.training.settings": ("TrainSettings",),
    "rvos_select.training.train": ("train",),
}
_MODULES = {name: module for module, names in _EXPORTS.items() for name in names}

if TYPE_CHECKING:
    from rvos_cache.errors import InputError
    from rvos_cache.settings import Settings
    from rvos_cache.types import Selection
    from rvos_select.data.batch import Batch
    from rvos_select.data.video import InferenceVideo
    from rvos_select.evaluation.compare import compare
    from rvos_select.evaluation.evaluate import evaluate
    from rvos_select.evaluation.oracle import oracle
    from rvos_select.exchange.import_sola import import_sola
    from rvos_select.inference.ask import ask, ask_untrained
    from rvos_select.inference.predict import predict, select_all
    from rvos_select.merging.label_maps import Answer, label_map
    from rvos_select.merging.merge import merge
    from rvos_select.merging.policy import Decision, PolicyOptions, SelectionPolicy
    from rvos_select.reporting import report
    from rvos_select.runs.checkpoint import load_selector
    from rvos_select.selectors import FrozenPart, Scored, Selector, SelectorConfig
    from rvos_select.submission import submit, submit_selections
    from rvos_select.training.settings import TrainSettings
    from rvos_select.training.train import train

__all__ = [
    "Answer", "Batch", "Decision", "FrozenPart", "InferenceVideo", "InputError", "PolicyOptions", "Scored", "Selection",
    "SelectionPolicy", "Selector", "SelectorConfig", "Settings", "TrainSettings", "__version__", "ask", "ask_untrained",
    "compare", "evaluate", "import_sola", "label_map", "load_selector", "merge", "oracle", "predict", "report", "select_all",
    "submit", "submit_selections", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
