"""Oracle mean IoU and seconds per frame of the flow tracker on the real videos in MeViS's layout.

    OMP_NUM_THREADS=1 python tests/bench/flow_davis.py [--root DIR] [--video ID]... [--set name=value]...

Of every annotated object the best track's mean IoU over frames, then the mean over objects. Reads the files itself, so
that it measures the tracker alone. Time is processor time of one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import cv2
import numpy as np

from rvos_cache.masks import RleMasks, from_coco
from rvos_cache.overlap import count_overlap, iou
from rvos_cache.settings import build, parse_overrides
from rvos_cache.trackers.flow import FlowSettings, FlowTracker
from rvos_cache.types import GroundTruth, Video


def load(root: Path, video_id: str, entry: dict, masks: dict) -> tuple[Video, GroundTruth]:
    """One video and its annotated objects."""
    folder = root / "JPEGImages" / video_id
    names = tuple(entry["frames"])
    frames = [cv2.cvtColor(cv2.imread(str(folder / f"{n}.jpg")), cv2.COLOR_BGR2RGB) for n in names]
    size = frames[0].shape[:2]
    ids = sorted({str(a) for e in entry["expressions"].values() for a in e["anno_id"]}, key=int)
    rows = [[from_coco(rle, size, f"mask {i}") for rle in masks[i]] for i in ids]
    truth = GroundTruth(tuple(ids), RleMasks.from_bytes(rows, len(names), size), np.ones(len(names), bool))
    return Video(video_id, names, size, frames.__getitem__), truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("RVOS_REAL_DATA", Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--root", type=Path, default=Path(default) / "mevis-davis" / "valid_u")
    parser.add_argument("--video", action="append", default=[])
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    meta = json.loads((args.root / "meta_expressions.json").read_text())["videos"]
    masks = json.loads((args.root / "mask_dict.json").read_text())
    tracker = FlowTracker(build(FlowSettings, parse_overrides(args.overrides), "--set"))
    scores: list[float] = []
    seconds = frames = 0.0
    for video_id in args.video or meta:
        video, truth = load(args.root, video_id, meta[video_id], masks)
        start = time.process_time()
        tracks = tracker.track(video, ())
        spent = time.process_time() - start
        values = iou(count_overlap(tracks.masks, truth)).mean(-1)
        best = values.max(0) if len(values) else np.zeros(len(truth.object_ids))
        origin = [int(tracks.prompt_frame[k]) for k in values.argmax(0)] if len(values) else []
        scores += best.tolist()
        seconds, frames = seconds + spent, frames + len(video)
        shown = " ".join(f"{v:.3f}" for v in best)
        print(f"{video_id:16s} {len(video):3d} frames {len(values):3d} tracks {spent / len(video):.3f} s/frame"
              f"  objects {shown}  prompted at {origin}", flush=True)  # fmt: skip
    print(f"mean over {len(scores)} objects {np.mean(scores):.4f}   {seconds / max(frames, 1):.3f} s/frame")


if __name__ == "__main__":
    main()
