"""J and F as the benchmarks' own code computes them, written out again for tests and measurements; nothing of it is shipped.

`db_eval_iou`, `db_eval_boundary`, `f_measure` and `_seg2bmap` of the DAVIS-2017 evaluation, which MeViS's `eval_mevis.py` calls
with the masks of a whole expression: frame by frame over the whole frame, boundaries dilated by a disk with OpenCV.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco
from skimage.morphology import disk


def iou(truth: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """`db_eval_iou` of (T, H, W) without void pixels."""
    truth, masks = truth.astype(bool), masks.astype(bool)
    void = np.zeros_like(masks)
    inters = np.sum((masks & truth) & np.logical_not(void), axis=(-2, -1))
    union = np.sum((masks | truth) & np.logical_not(void), axis=(-2, -1))
    return np.where(np.isclose(union, 0), 1.0, inters / np.maximum(union, 1))


def boundary(mask: np.ndarray) -> np.ndarray:
    """`_seg2bmap` at the mask's own size."""
    seg = mask.astype(bool)
    e, s, se = np.zeros_like(seg), np.zeros_like(seg), np.zeros_like(seg)
    e[:, :-1] = seg[:, 1:]
    s[:-1, :] = seg[1:, :]
    se[:-1, :-1] = seg[1:, 1:]
    b = seg ^ e | seg ^ s | seg ^ se
    b[-1, :] = seg[-1, :] ^ e[-1, :]
    b[:, -1] = seg[:, -1] ^ s[:, -1]
    b[-1, -1] = 0
    return b


def f_measure(mask: np.ndarray, truth: np.ndarray, bound: float = 0.008) -> float:
    """`f_measure` of one frame (H, W) without void pixels."""
    void = np.zeros_like(mask).astype(bool)
    reach = np.ceil(bound * np.linalg.norm(mask.shape))
    ours, theirs = boundary(mask * np.logical_not(void)), boundary(truth * np.logical_not(void))
    element = disk(reach).astype(np.uint8)
    ours_wide, theirs_wide = (cv2.dilate(b.astype(np.uint8), element) for b in (ours, theirs))
    n, m = np.sum(ours), np.sum(theirs)
    if n == 0 and m > 0:
        precision, recall = 1.0, 0.0
    elif n > 0 and m == 0:
        precision, recall = 0.0, 1.0
    elif n == 0 and m == 0:
        precision, recall = 1.0, 1.0
    else:
        precision, recall = np.sum(ours * theirs_wide) / float(n), np.sum(theirs * ours_wide) / float(m)
    return 0.0 if precision + recall == 0 else float(2 * precision * recall / (precision + recall))


def j_and_f(masks: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """J and F of an expression, the means over its frames; both (T, H, W) uint8."""
    contour = [f_measure(mask, true) for mask, true in zip(masks, truth)]
    return float(iou(truth, masks).mean()), math.fsum(contour) / len(contour)


def evaluate(predictions: Path, videos: dict[str, Any], annotations: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """`eval_mevis.py`: "<video>/<expression>" -> J and F of the PNGs. videos, annotations: MeViS's two files."""
    out = {}
    for video, entry in videos.items():
        for key, expression in entry["expressions"].items():
            folder = predictions / video / key
            height, width = cv2.imread(str(folder / f"{entry['frames'][0]}.png"), cv2.IMREAD_GRAYSCALE).shape
            truth = np.zeros((len(entry["frames"]), height, width), np.uint8)
            masks = np.zeros_like(truth)
            for t, name in enumerate(entry["frames"]):
                for object_id in expression["anno_id"]:
                    rle = annotations[str(object_id)][t]
                    if rle:
                        truth[t] += coco.decode(rle)
                masks[t] = cv2.imread(str(folder / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
            out[f"{video}/{key}"] = j_and_f(masks, truth)
    return out


def plain_frame(mask: np.ndarray, truth: np.ndarray, void: np.ndarray) -> tuple[float, float]:
    """`db_eval_iou` and `f_measure` of one frame with void pixels, as published."""
    union = ((mask | truth) & ~void).sum()
    region = 1.0 if union == 0 else float(((mask & truth) & ~void).sum() / union)
    element = disk(np.ceil(0.008 * np.linalg.norm(mask.shape))).astype(np.uint8)
    ours, theirs = boundary(mask & ~void), boundary(truth & ~void)
    ours_wide, theirs_wide = (cv2.dilate(b.astype(np.uint8), element) for b in (ours, theirs))
    n, m = ours.sum(), theirs.sum()
    if n == 0 or m == 0:
        return region, float(n == m)
    precision, recall = (ours * theirs_wide).sum() / float(n), (theirs * ours_wide).sum() / float(m)
    return region, 0.0 if precision + recall == 0 else float(2 * precision * recall / (precision + recall))


def plain_davis(maps: np.ndarray, truth: np.ndarray, strict: bool = False) -> tuple[float, float]:
    """The sums of J and of F over the objects, from label maps (T, H, W): `get_all_masks`, `read_masks`,
    `_evaluate_unsupervised`; the assignment by trying all."""
    void = truth == 255
    objects = [np.where(void, 0, truth) == i + 1 for i in range(int(truth[0][~void[0]].max(initial=0)))]
    proposals = [maps == i + 1 for i in range(int(maps.max()))]
    proposals += [np.zeros_like(void)] * (len(objects) - len(proposals))
    frames = range(len(truth))
    table = np.array([
        [np.mean([plain_frame(p[t], o[t], void[t]) for t in frames], axis=0) for o in objects] for p in proposals
    ]).reshape(len(proposals), len(objects), 2)  # fmt: skip
    columns = np.arange(len(objects))
    orders = [tuple(columns)] if strict else list(itertools.permutations(range(len(proposals)), len(objects)))
    best = max(orders, key=lambda rows: table[list(rows), columns].mean(axis=1).sum() if rows else 0.0)
    region, contour = table[list(best), columns].sum(axis=0) if best else (0.0, 0.0)
    return float(region), float(contour)
