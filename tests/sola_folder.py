"""SOLA's sam2_tracks, written as its released scripts write them, for a small split in MeViS's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from odd_videos import EXPRESSIONS, SIZE, write_split
from pycocotools import mask as coco

VIDEOS = {"a": 6, "b": 9}
"""Video -> frames; its objects are 0 and 1 in a, 2 and 3 in b, and each has the EXPRESSIONS of `odd_videos`: red, blue, a dog."""
TRAIN = {"c": 5, "d": 7}
"""The same of the split train."""
PROMPT_TYPES = {"grid": "SAM2 AMG MASK", "gdino": "SAM2 AMG MASK", "gt": "GT MASK"}


def write_data(root: Path, split: str = "valid_u") -> Path:
    """The videos under `root`, which is returned."""
    write_split(root / split, {video: (frames, True, EXPRESSIONS) for video, frames in videos_of(split).items()})
    return root


def videos_of(split: str) -> dict[str, int]:
    return TRAIN if split == "train" else VIDEOS


def truth(video: str) -> np.ndarray:
    """The two squares of `odd_videos`, bool (2, T, H, W)."""
    frames = {**VIDEOS, **TRAIN}[video]
    dense = np.zeros((2, frames, *SIZE), bool)
    for t in range(frames):
        dense[0, t, 3:14, 3 + 3 * t : 14 + 3 * t] = dense[1, t, 18:29, max(33 - 3 * t, 0) : max(44 - 3 * t, 0)] = True
    return dense


def tracks_of(video: str, group: str = "") -> dict[int, np.ndarray]:
    """anno_id -> masks (T, H, W): both objects shifted, one of them vanishing halfway, and the whole frame."""
    objects = truth(video)
    vanishing = np.roll(objects[1], 3, 1)
    vanishing[len(vanishing) // 2 :] = False
    tracks = [np.roll(objects[0], 1, 2), vanishing, np.ones_like(objects[0]), np.roll(objects[1], 1, 1)]
    return dict(zip((7, 3, 12, 41), tracks)) if group != "2" else {}


def tokens_of(video: str, group: str, anno_id: int) -> np.ndarray:
    """float32 (T, 256)."""
    seed = [ord(c) for c in video + group] + [anno_id]
    return np.random.default_rng(seed).standard_normal((len(truth(video)[0]), 256)).astype(np.float32)


def enlarge(masks: np.ndarray) -> np.ndarray:
    """Masks as SOLA's scripts compare them: bilinear at 540x960, above a half."""
    pixels = torch.from_numpy(masks.astype(np.float32))[None]
    return (torch.nn.functional.interpolate(pixels, size=(540, 960), mode="bilinear")[0] > 0.5).numpy()


def ratios(track: np.ndarray, ground_truth: np.ndarray) -> dict[str, float]:
    """Mean over frames of precision, recall and IoU of two masks (T, H, W); undefined values count 1."""
    values_of: dict[str, list[float]] = {"precision": [], "recall": [], "iou": []}
    for x, y in zip(track, ground_truth):
        shared, union = (x & y).sum(), (x | y).sum()
        values_of["precision"].append(shared / x.sum() if x.any() else 1.0)
        values_of["recall"].append(shared / y.sum() if y.any() else 1.0)
        values_of["iou"].append(shared / union if union else 1.0)
    return {name: float(np.float32(np.mean(values))) for name, values in values_of.items()}


def write_tracks(root: Path, kind: str, split: str = "valid_u", labels: bool = True) -> Path:
    """`sam2_tracks` under `root`, with the tracks of `kind`; returns the folder of the split."""
    base = root / "sam2_tracks" / f"{kind}_tracks" / "mevis" / split
    for number, video in enumerate(videos_of(split)):
        for group in EXPRESSIONS if kind == "gdino" else ("",):
            masklets, tokens = (base / name / video / group for name in ("sam2_masklets", "sam2_object_tokens"))
            masklets.mkdir(parents=True)
            tokens.mkdir(parents=True)
            for anno_id, masks in tracks_of(video, group).items():
                record: dict[str, Any] = {"anno_id": anno_id, "rle": [], "prompt_type": PROMPT_TYPES[kind]}
                for mask in masks:
                    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
                    record["rle"].append({**rle, "counts": rle["counts"].decode()})
                if labels:
                    compared = masks if kind == "gt" else enlarge(masks)
                    pairs = {
                        str(2 * number + a): ratios(compared, o if kind == "gt" else enlarge(o))
                        for a, o in enumerate(truth(video))
                    }
                    for name in ("precision", "recall", "iou"):
                        record[name] = {o: values[name] for o, values in pairs.items()}
                (masklets / f"{anno_id:05d}.json").write_text(json.dumps(record, indent=4))
                np.save(tokens / f"{anno_id:05d}.npy", tokens_of(video, group, anno_id))
    return base
