"""Mode "full": region proposals in a key frame, ranked by their contrast in motion and colour.

The regions of a graph-based segmentation (Felzenszwalb and Huttenlocher, IJCV 2004) are merged into three hierarchies (Ward's
criterion on adjacent regions). Every node is a proposal, and so are the connected components of strong residual motion.
Letters: h w pixels at working resolution, R base regions.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import felzenszwalb

HIERARCHIES = ((1.0, 0.0), (0.7, 1.0), (0.25, 1.6))
"""Weights of colour and of residual flow in the three hierarchies."""
LEVELS = (0.35, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Residual motion, in pixels per frame, above which connected components are proposals."""
PRESELECT = 220
"""Nodes of the hierarchies that are scored as masks."""
SMALLEST_AREA, LARGEST_AREA = 0.0007, 0.5
"""Limits of a proposal's area, as shares of the frame."""


@dataclass(frozen=True, eq=False)
class Cues:
    """What proposals of a frame are scored on.

    lab: float32 (h, w, 3), L 0..100; flow: float32 (h, w, 2), residual flow; speed: float32 (h, w), a robust
    estimate of its length; scale: pixels per frame of clear motion in this frame.
    """

    lab: NDArray[np.float32]
    flow: NDArray[np.float32]
    speed: NDArray[np.float32]
    scale: float


def cues(frame: NDArray[np.uint8], flow: NDArray[np.float32], speed: NDArray[np.float32]) -> Cues:
    """The cues of a frame (h, w, 3) RGB from its residual flow (h, w, 2) and speed (h, w)."""
    lab = cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    scale = float(np.clip(np.percentile(speed, 92), 0.4, 5.0))
    return Cues(lab, flow, speed, scale)


def propose(frame: NDArray[np.uint8], cue: Cues, keep: int) -> list[tuple[float, NDArray[np.bool_]]]:
    """At most `keep` scores and masks (h, w) of a frame (h, w, 3) RGB, best first, no two with an IoU above 0.65."""
    base = felzenszwalb(frame, scale=30, sigma=0.6, min_size=28, channel_axis=-1)
    masks = _nodes(base, cue) + _moving(cue)
    scored = sorted(((score(m, cue), i) for i, m in enumerate(masks)), reverse=True)
    return _suppress([(rank, masks[i]) for rank, i in scored], keep)


def _suppress(
    ranked: Sequence[tuple[float, NDArray[np.bool_]]], keep: int, max_iou: float = 0.65
) -> list[tuple[float, NDArray[np.bool_]]]:
    """Non-maximum suppression on every second pixel of each axis."""
    kept: list[tuple[float, NDArray[np.bool_]]] = []
    sampled: list[NDArray[np.bool_]] = []
    for rank, mask in ranked:
        if len(kept) == keep:
            break
        pixels = mask[::2, ::2]
        if all((pixels & other).sum() <= max_iou * max((pixels | other).sum(), 1) for other in sampled):
            kept.append((rank, mask))
            sampled.append(pixels)
    return kept


def _moving(cue: Cues) -> list[NDArray[np.bool_]]:
    """Connected components of residual motion above each level, their outlines smoothed."""
    h, w = cue.speed.shape
    out = []
    for level in LEVELS:
        byte = cv2.morphologyEx((cue.speed > level).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        byte = cv2.morphologyEx(byte, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
        _, labels, stats, _ = cv2.connectedComponentsWithStats(byte)
        for piece in np.argsort(-stats[1:, cv2.CC_STAT_AREA])[:12] + 1:
            if SMALLEST_AREA * h * w <= stats[piece, cv2.CC_STAT_AREA] <= LARGEST_AREA * h * w:
                out.append(labels == piece)
    return out


def score(mask: NDArray[np.bool_], cue: Cues) -> float:
    """How similar a mask (h, w) is to an object: contrast with the ring around it, edges along its outline, compactness."""
    h, w = mask.shape
    byte = mask.astype(np.uint8)
    x, y, bw, bh = cv2.boundingRect(byte)
    pad = 4 + int(0.12 * max(bw, bh))
    y0, y1, x0, x1 = max(0, y - pad), min(h, y + bh + pad), max(0, x - pad), min(w, x + bw + pad)
    crop = np.ascontiguousarray(byte[y0:y1, x0:x1])
    view = (slice(y0, y1), slice(x0, x1))
    area = float(crop.sum())
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pad + 1, 2 * pad + 1))
    ring = cv2.dilate(crop, disk) - crop
    if not ring.any() or area == 0:
        return -9.0
    cell = np.ones((5, 5), np.uint8)
    inner, outer = crop - cv2.erode(crop, cell, borderValue=1), cv2.dilate(crop, cell) - crop
    motion = _mean(cue.speed[view], crop)[0] - _mean(cue.speed[view], ring)[0]
    flow = float(np.linalg.norm(_mean(cue.flow[view], crop) - _mean(cue.flow[view], ring)))
    flow_edge = float(np.linalg.norm(_mean(cue.flow[view], inner) - _mean(cue.flow[view], outer)))
    colour = float(np.linalg.norm(_mean(cue.lab[view], crop) - _mean(cue.lab[view], ring)))
    contours, _ = cv2.findContours(crop, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    perimeter = sum(cv2.arcLength(c, True) for c in contours)
    hull = cv2.contourArea(cv2.convexHull(np.concatenate(contours)))
    touch = (x == 0) * bh + (y == 0) * bw + (x + bw == w) * bh + (y + bh == h) * bw
    return _total(motion, flow, flow_edge, colour, _colour_edge(cue.lab[view], crop), perimeter, area, touch, cue) - 0.6 * max(
        0.0, 0.6 - area / (hull + 1)
    )


def _colour_edge(lab: NDArray[np.float32], crop: NDArray[np.uint8]) -> float:
    """Mean difference in Lab across the outline, from one pixel inside to one outside."""
    cell = np.ones((3, 3), np.uint8)
    inner, outer = crop - cv2.erode(crop, cell, borderValue=1), cv2.dilate(crop, cell) - crop
    if not inner.any() or not outer.any():
        return 0.0
    gradient = cv2.morphologyEx(lab, cv2.MORPH_GRADIENT, cell).sum(-1)
    return float(_mean(gradient, inner | outer)[0]) / 2


def _mean(values: NDArray[np.float32], mask: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.asarray(cv2.mean(values, mask=mask)[: 1 if values.ndim == 2 else values.shape[2]], np.float64)


def _total(
    motion: float, flow: float, flow_edge: float, colour: float, colour_edge: float, perimeter: float, area: float, touch: float,
    cue: Cues,
) -> float:  # fmt: skip
    """The score of a mask or of a node of a hierarchy.

    motion: difference in speed from the surround; flow, colour: distances from the surround in residual flow and Lab; flow_edge,
    colour_edge: the same across the outline; touch: pixels of the outline on the frame's border.
    """
    h, w = cue.speed.shape
    total = 1.2 * np.tanh(motion / cue.scale) + 0.5 * np.tanh(flow / cue.scale) + np.tanh(flow_edge / cue.scale)
    total += 0.5 * np.tanh(colour / 25) + 0.5 * np.tanh(colour_edge / 20)
    total -= 1.0 * min(touch / max(perimeter, 1), 0.5)
    total -= 0.25 * max(0.0, np.log(max(perimeter, 1) ** 2 / (4 * np.pi * area) / 2.5))
    size = np.log(area / (0.04 * h * w))
    return float(total - 0.06 * size * size)


def _nodes(base: NDArray[np.int64], cue: Cues) -> list[NDArray[np.bool_]]:
    """The best `PRESELECT` nodes of the three hierarchies as masks."""
    graph = _graph(base, cue)
    best: list[tuple[float, tuple[int, ...]]] = []
    for colour, flow in HIERARCHIES:
        best += _ward(graph, colour, flow, cue)
    best.sort(key=lambda item: (-item[0], item[1]))
    out, listed = [], set()
    for _, members in best:
        if members in listed:
            continue
        listed.add(members)
        table = np.zeros(len(graph.size), bool)
        table[list(members)] = True
        out.append(table[base])
        if len(out) == PRESELECT:
            break
    return out


@dataclass(frozen=True, eq=False)
class Graph:
    """Base regions.

    size: (R,) pixels; means: (R, 6), Lab, residual flow x y, speed; touch: (R,) pixels on the frame's border; links: per region,
    neighbour -> [length, sum of colour differences, sum of flow differences] along their common border.
    """

    size: NDArray[np.float64]
    means: NDArray[np.float64]
    touch: NDArray[np.float64]
    links: list[dict[int, NDArray[np.float64]]]


def _graph(base: NDArray[np.int64], cue: Cues) -> Graph:
    count = int(base.max()) + 1
    flat = base.ravel()
    size = np.bincount(flat, minlength=count).astype(float)
    planes = np.concatenate([cue.lab, cue.flow, cue.speed[..., None]], -1).reshape(-1, 6)
    means = np.stack([np.bincount(flat, planes[:, k], count) for k in range(6)], 1) / size[:, None]
    rim = np.concatenate([base[0], base[-1], base[:, 0], base[:, -1]])
    touch = np.bincount(rim, minlength=count).astype(float)
    links: list[dict[int, NDArray[np.float64]]] = [{} for _ in range(count)]
    cells = planes.reshape(*base.shape, 6)
    for a, b, u, v in (
        (base[:, :-2], base[:, 2:], cells[:, :-2], cells[:, 2:]),
        (base[:-2], base[2:], cells[:-2], cells[2:]),
    ):
        border = a != b
        low, high = np.minimum(a[border], b[border]), np.maximum(a[border], b[border])
        gap = (u - v)[border]
        # Pixels two apart cross each border twice, so every crossing has weight one half.
        differences = 0.5 * np.stack(
            [np.ones(len(low)), np.linalg.norm(gap[:, :3], axis=1), np.linalg.norm(gap[:, 3:5], axis=1)], 1
        )
        key, inverse = np.unique(low * count + high, return_inverse=True)
        sums = np.stack([np.bincount(inverse, differences[:, k], len(key)) for k in range(3)], 1)
        for pair, total in zip(key.tolist(), sums):
            i, j = divmod(pair, count)
            links[i][j] = links[j][i] = links[i].get(j, np.zeros(3)) + total
    return Graph(size, means, touch, links)


def _ward(graph: Graph, colour: float, flow: float, cue: Cues) -> list[tuple[float, tuple[int, ...]]]:
    """Score and base regions of every node of one hierarchy within the area limits.

    colour, flow: weights of the two cues.
    """
    scale = np.array([colour / 8] * 3 + [flow / cue.scale] * 2 + [0.0])
    size, touch = list(graph.size), list(graph.touch)
    means = list(graph.means)
    members: list[tuple[int, ...]] = [(i,) for i in range(len(size))]
    links = [dict(link) for link in graph.links]
    active = [True] * len(size)

    def cost(i: int, j: int) -> float:
        gap = (means[i] - means[j]) * scale
        return float(gap @ gap) * size[i] * size[j] / (size[i] + size[j])

    heap = [(cost(i, j), i, j) for i in range(len(size)) for j in links[i] if i < j]
    heapq.heapify(heap)
    limits = (SMALLEST_AREA * cue.speed.size, LARGEST_AREA * cue.speed.size)
    out = []
    for i in range(len(size)):
        if limits[0] <= size[i] <= limits[1]:
            out.append((_node_score(i, size, means, touch, links, cue), members[i]))
    while heap:
        _, i, j = heapq.heappop(heap)
        if not (active[i] and active[j]):
            continue
        active[i] = active[j] = False
        new = len(size)
        total = size[i] + size[j]
        means.append((means[i] * size[i] + means[j] * size[j]) / total)
        size.append(total)
        touch.append(touch[i] + touch[j])
        active.append(True)
        merged: dict[int, NDArray[np.float64]] = {}
        for old in (i, j):
            for k, steps in links[old].items():
                if k not in (i, j):
                    merged[k] = merged[k] + steps if k in merged else steps
        for k, steps in merged.items():
            links[k].pop(i, None)
            links[k].pop(j, None)
            links[k][new] = steps
        links.append(merged)
        if total > limits[1]:
            members.append(())
        else:
            members.append(tuple(sorted(members[i] + members[j])) if members[i] and members[j] else ())
            if total >= limits[0] and members[new]:
                out.append((_node_score(new, size, means, touch, links, cue), members[new]))
        for k in merged:
            heapq.heappush(heap, (cost(k, new), k, new))
    return out


def _node_score(
    i: int, size: list[float], means: list[NDArray[np.float64]], touch: list[float],
    links: list[dict[int, NDArray[np.float64]]], cue: Cues,
) -> float:  # fmt: skip
    """The score of a node from its neighbours' means, weighted by the length of the common border."""
    if not links[i]:
        return -9.0
    steps = np.array(list(links[i].values()))
    neighbours = np.array([means[k] for k in links[i]])
    length = float(steps[:, 0].sum())
    gap = means[i] - neighbours
    share = steps[:, 0] / length
    motion = float(share @ gap[:, 5])
    flow = float(share @ np.linalg.norm(gap[:, 3:5], axis=1))
    colour = float(share @ np.linalg.norm(gap[:, :3], axis=1))
    return _total(
        motion, flow, float(steps[:, 2].sum()) / length, colour, float(steps[:, 1].sum()) / length,
        length + touch[i], size[i], touch[i], cue,
    )  # fmt: skip
