"""Training curves and histograms as inline SVG: no library, no script, sharp at any size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 440, 220, 48, 30, 14
WIDE, FLAT = 1100, 190
"""Size of a histogram, which has a row of the page for itself."""
ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)
"""Steps of an axis, times a power of ten."""


def curves(title: str, series: Mapping[str, Sequence[float]], percent: bool = False, ends: tuple[str, str] | None = None) -> str:
    """Lines over epochs 1, 2, …; one colour per series, by the classes s0, s1 … of the style sheet. Fewer than two values: "".

    percent: the values are fractions of 1, and the axis starts at 0; ends: labels of the first and the last value of the longest
    series, where they are not of epochs.
    """
    lines = {name: list(values) for name, values in series.items() if values}
    count = max((len(values) for values in lines.values()), default=0)
    if count < 2:
        return ""
    factor = 100 if percent else 1
    numbers = [factor * value for values in lines.values() for value in values if math.isfinite(value)]
    ticks, digits = round_ticks(0.0 if percent else min(numbers, default=0.0), max(numbers, default=0.0))
    low, high = ticks[0], ticks[-1]

    def point(place: int, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - 12) * (place / (count - 1))
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low))
        return f"{x:.1f},{y:.1f}"

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in ticks:
        y = float(point(0, tick).split(",")[1])
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.{digits}f}</text>')
    first, last = ends or ("epoch 1", str(count))
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">{escape(first)}</text>')
    parts.append(f'<text x="{WIDTH - 12}" y="{HEIGHT - 8}" text-anchor="end">{escape(last)}</text>')
    for i, values in enumerate(lines.values()):
        points = " ".join(point(place, factor * value) for place, value in enumerate(values) if math.isfinite(value))
        parts.append(f'<polyline class="s{i}" points="{points}"/>')
    parts.append("</svg>")
    legend = "".join(f'<span class="key k{i}">{escape(name)}</span>' for i, name in enumerate(lines))
    return f"<figure><figcaption>{escape(title)} {legend}</figcaption>{''.join(parts)}</figure>"


def round_ticks(low: float, high: float) -> tuple[list[float], int]:
    """Round numbers at equal steps, two to six of them, that enclose `low` and `high`; and the decimals that tell them apart."""
    span = high - low
    if span <= 1e-9 * max(abs(low), abs(high)):
        # All values are equal: an axis of their own size.
        span = abs(high) or 1.0
        high = low + span
    power = 10.0 ** math.floor(math.log10(span / 4))
    factor = next(factor for factor in ROUND if factor * power >= 0.999 * span / 4)
    step = factor * power
    # What rounding leaves does not start another step.
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    digits = max(0, -math.floor(math.log10(step) + 1e-9) + (factor == 2.5))
    return [i * step for i in range(first, last + 1)], digits


def histogram(title: str, values: Sequence[float], bins: int = 10) -> str:
    """Bars with the number of values in each of `bins` equal parts of [0, 1]."""
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int(value * bins))] += 1
    top = max(counts) or 1
    side = 16
    step = (WIDE - 2 * side) / bins
    parts = [f'<svg viewBox="0 0 {WIDE} {FLAT}" role="img" aria-label="{escape(title)}">']
    for i, count in enumerate(counts):
        bar = (FLAT - TOP - BOTTOM) * count / top
        x, y = side + i * step, FLAT - BOTTOM - bar
        parts.append(f'<rect class="bar" x="{x + 1:.1f}" y="{y:.1f}" width="{step - 2:.1f}" height="{bar:.1f}"/>')
        parts.append(f'<text x="{x + step / 2:.1f}" y="{y - 3:.1f}" text-anchor="middle">{count}</text>')
        parts.append(f'<text x="{x:.1f}" y="{FLAT - 10}" text-anchor="middle">{100 * i // bins}</text>')
    parts.append(f'<text x="{WIDE - side}" y="{FLAT - 10}" text-anchor="middle">100</text></svg>')
    return f"<figure><figcaption>{escape(title)}</figcaption>{''.join(parts)}</figure>"
