"""What the page shows of a training: of the run's own, and of the tuning of the upstream that was imported."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rvos_cache.store import digest
from rvos_select.metrics.metric import percent
from rvos_select.metrics.region_contour import REGION_CONTOUR
from rvos_select.reporting.curves import curves
from rvos_select.runs.metrics import METRICS, read_metrics

POINTS = 100
"""Points of the curve of a tuning: each is the mean over the steps since the last."""


def training_charts(run: Path) -> str:
    """Loss and scores of each epoch of a run; of one epoch a table. A run that was not trained here has neither."""
    epochs = read_metrics(run)
    if not epochs:
        return ""

    def series(name: str) -> list[float]:
        return [row[name] for row in epochs if name in row]

    losses = {"training": series("train/loss"), "validation": series("valid/loss")}
    scores = {field.title: series(f"valid/{field.key}") for field in REGION_CONTOUR.fields}
    if len(epochs) > 1:
        charts = curves("Loss", losses) + curves("Validation, percent", scores, percent=True)
        return f'<h2>Training</h2><div class="charts">{charts}</div>'
    cells = {f"loss, {name}": f"{values[0]:.4g}" for name, values in losses.items() if values}
    cells |= {f"{name}, validation": percent(values[0]) for name, values in scores.items() if values}
    return f"<h2>Training, one epoch</h2>{_line(cells)}"


def tuning_charts(settings: Mapping[str, Any]) -> str:
    """The loss of each step of the tuning that a run was imported from; "" where its folder is gone, or was tuned further.

    settings: of the run, see `run_settings`.
    """
    imported = settings.get("imported", {})
    if not imported.get("tuned"):
        return ""
    # <tuning>/upstream/<file>
    checkpoint = Path(imported["checkpoint"])
    try:
        if digest(checkpoint.read_bytes()) != imported["digest"]:
            return ""
        rows = [json.loads(line) for line in (checkpoint.parent.parent / METRICS).read_text("utf-8").splitlines()]
        losses = [(int(row["step"]), float(row["loss"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        # What the curve is of lies outside of the run, so the page does without.
        return ""
    losses = [(step, loss) for step, loss in losses if math.isfinite(loss)]
    if not losses:
        return ""
    if len(losses) == 1:
        ((step, loss),) = losses
        return f"<h2>Tuning of the upstream, one step</h2>{_line({f'loss, step {step}': f'{loss:.4g}'})}"
    means, each = _means([loss for _, loss in losses])
    title = "Loss" if each == 1 else f"Loss, mean of {each} steps"
    chart = curves(title, {"training": means}, ends=(f"step {losses[0][0]:,}", f"{losses[-1][0]:,}"))
    last = _line({"loss, last step": f"{losses[-1][1]:.4g}"}) if not chart else ""
    return f'<h2>Tuning of the upstream</h2><div class="charts">{chart}</div>{last}'


def _means(values: Sequence[float]) -> tuple[list[float], int]:
    """The means over parts of equal length, the last may be shorter, at most POINTS of them; and that length."""
    each = math.ceil(len(values) / POINTS)
    parts = [values[i : i + each] for i in range(0, len(values), each)]
    return [sum(part) / len(part) for part in parts], each


def _line(cells: Mapping[str, str]) -> str:
    """A table of one line."""
    head = "".join(f"<th>{escape(title)}</th>" for title in cells)
    return f"<table><tr>{head}</tr><tr>{''.join(f'<td>{escape(value)}</td>' for value in cells.values())}</tr></table>"
