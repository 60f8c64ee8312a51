"""Training curves and histograms as inline SVG: no library, no script, sharp at any size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 440, 220, 48, 30, 14


def curves(title: str, series: Mapping[str, Sequence[float]], percent: bool = False) -> str:
    """Lines over epochs 1, 2, …; one colour per series, by the classes s0, s1 … of the style sheet. No values: ""."""
    lines = {name: list(values) for name, values in series.items() if values}
    if not lines:
        return ""
    low = 0.0 if percent else min(min(v) for v in lines.values())
    high = max(max(v) for v in lines.values())
    high = high if high > low else low + 1.0
    epochs = max(len(v) for v in lines.values())

    def point(epoch: int, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - 12) * (epoch / max(1, epochs - 1))
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low))
        return f"{x:.1f},{y:.1f}"

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    # Neighbouring labels differ.
    step = 25 * (high - low)
    digits = 0 if step >= 2 else max(1, math.ceil(-math.log10(step)))
    for i in range(5):
        value = low + (high - low) * i / 4
        y = float(point(0, value).split(",")[1])
        label = f"{100 * value:.{digits}f}" if percent else f"{value:.3g}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">epoch 1</text>')
    parts.append(f'<text x="{WIDTH - 12}" y="{HEIGHT - 8}" text-anchor="end">{epochs}</text>')
    for i, (_, values) in enumerate(lines.items()):
        points = " ".join(point(epoch, value) for epoch, value in enumerate(values))
        parts.append(f'<polyline class="s{i}" points="{points}"/>')
        if len(values) == 1:
            cx, cy = point(0, values[0]).split(",")
            parts.append(f'<circle class="d{i}" cx="{cx}" cy="{cy}" r="3"/>')
    parts.append("</svg>")
    legend = "".join(f'<span class="key k{i}">{escape(name)}</span>' for i, name in enumerate(lines))
    return f"<figure><figcaption>{escape(title)} {legend}</figcaption>{''.join(parts)}</figure>"


def histogram(title: str, values: Sequence[float], bins: int = 10) -> str:
    """Bars with the number of values in each of `bins` equal parts of [0, 1]."""
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int(value * bins))] += 1
    top = max(counts) or 1
    step = (WIDTH - LEFT - 12) / bins
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for i, count in enumerate(counts):
        bar = (HEIGHT - TOP - BOTTOM) * count / top
        x, y = LEFT + i * step, HEIGHT - BOTTOM - bar
        parts.append(f'<rect class="bar" x="{x + 1:.1f}" y="{y:.1f}" width="{step - 2:.1f}" height="{bar:.1f}"/>')
        parts.append(f'<text x="{x + step / 2:.1f}" y="{y - 3:.1f}" text-anchor="middle">{count}</text>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{100 * i // bins}</text>')
    parts.append(f'<text x="{WIDTH - 12}" y="{HEIGHT - 10}" text-anchor="middle">100</text></svg>')
    return f"<figure><figcaption>{escape(title)}</figcaption>{''.join(parts)}</figure>"
