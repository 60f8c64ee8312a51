"""Writing moving shapes in MeViS's layout; the same seed gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.shapes.language import Sentence, sentences
from rvos_cache.shapes.paraphrase import paraphrases
from rvos_cache.shapes.render import render
from rvos_cache.shapes.scene import Scene, sample_scene
from rvos_cache.system.files import write_bytes, write_text
from rvos_cache.system.interrupts import forking
from rvos_cache.system.locks import folder_lock

TRAIN, VALID, PARAPHRASED = "train", "valid_u", "valid_p"
"""The splits; PARAPHRASED has the videos of VALID with other sentences."""
FRAMES = "JPEGImages"
HIDDEN = 4
"""Number of consecutive frames in which an object is invisible."""


def make_video(seed: int, split: int, index: int) -> tuple[Scene, list[Any], Any, list[Sentence]]:
    """Return the scene, T frames (H, W, 3) RGB, visible masks (A, T, H, W) and 8 or more sentences of one video.

    In two of every five videos (by `index`) an object is invisible for at least HIDDEN frames; in others one may be by chance.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(split, index)))
    post = index % 5 in (0, 2)
    while True:
        scene = sample_scene(rng, post)
        frames, masks, visible = render(scene, rng)
        hidden = np.lib.stride_tricks.sliding_window_view(~masks.any((2, 3)), HIDDEN, axis=1).all(-1).any()
        texts = sentences(rng, scene, visible)
        if (hidden or not post) and len(texts) >= 8 and bool(((visible > 0.5).mean(1) > 0.35).all()):
            return scene, frames, masks, texts


@dataclass(frozen=True)
class Annotations:
    """The content of the JSON files for one video. names: of its T frames; masks: object -> COCO RLE or None per frame, of the
    targets of sentences (as in MeViS, only these are annotated)."""

    names: list[str]
    sentences: list[Sentence]
    masks: dict[int, list[dict[str, Any] | None]]

    def paraphrased(self, rng: np.random.Generator) -> Annotations:
        """Return the same annotations with a paraphrase of each sentence."""
        return replace(self, sentences=paraphrases(rng, self.sentences))


def _write_video(folder: Path, seed: int, split: int, index: int) -> Annotations:
    """Write one video's frames to `folder`; return its annotations."""
    _, frames, masks, texts = make_video(seed, split, index)
    names = [f"{t:05d}" for t in range(len(frames))]
    for name, frame in zip(names, frames):
        data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        write_bytes(folder / f"{name}.jpg", data.tobytes(), durable=False)
    rles, empty = RleMasks.from_dense(masks), ~masks.any((2, 3))
    size = list(rles.size)
    rows = {
        a: [None if empty[a, t] else {"size": size, "counts": rles.bytes_at(a, t).decode()} for t in range(len(frames))]
        for a in sorted({a for s in texts for a in s.targets})
    }
    return Annotations(names, texts, rows)


def _write_json(root: Path, videos: Mapping[str, Annotations]) -> None:
    """Write meta_expressions.json and mask_dict.json of a split; objects are numbered through the whole split."""
    entries: dict[str, Any] = {}
    annotations: dict[str, Any] = {}
    for index, (video_id, video) in enumerate(videos.items()):
        number = {a: len(annotations) + i for i, a in enumerate(video.masks)}
        annotations |= {str(number[a]): rows for a, rows in video.masks.items()}
        expressions = {
            str(i): {
                "exp": s.text,
                "obj_id": list(s.targets),
                "anno_id": [number[a] for a in s.targets],
                "kind": s.kind,
                "claim": s.claim,
            }
            for i, s in enumerate(video.sentences)
        }
        entries[video_id] = {"expressions": expressions, "vid_id": index, "frames": video.names}
    # Written last, and renamed when complete: a split with expressions has all its frames and masks.
    for name, value in (("mask_dict", annotations), ("meta_expressions", {"videos": entries})):
        write_text(root / f"{name}.json", json.dumps(value))


@contextmanager
def _mapping(jobs: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """`map`, or with `jobs` processes that of a pool; when the block is left, videos that were not begun are not drawn."""
    if jobs == 1:
        yield map
        return
    pool = ProcessPoolExecutor(jobs)

    def mapped(function: Callable[..., Any], *arguments: Iterable[Any]) -> Iterable[Any]:
        with forking():
            return pool.map(function, *arguments)

    try:
        yield mapped
    finally:
        pool.shutdown(cancel_futures=True)


def write_shapes(
    out: Path | str, videos: int, seed: int = 0, progress: Callable[[int, int], None] | None = None, jobs: int = 1
) -> None:
    """Write `videos` videos under `out`: one fifth (at least one) in `valid_u`, the others in `train`.

    `valid_p` has the videos of `valid_u`, its frames by a link, with a paraphrase of each sentence; it is written last.
    progress(done, videos) is called after each. jobs: number of processes; the files do not depend on it. Raises InputError: if
    `videos` is less than two, `out` has other data already, or another process writes there.
    """
    if videos < 2 or seed < 0:
        raise InputError(f"moving shapes: expected 2 videos or more and a seed of 0 or more, got {videos} and {seed}")
    with folder_lock(out, "shapes"):
        _write_shapes(Path(out), videos, seed, progress, jobs)


def _write_shapes(out: Path, videos: int, seed: int, progress: Callable[[int, int], None] | None, jobs: int) -> None:
    """As `write_shapes`, in a folder that no other process writes."""
    valid = max(1, videos // 5)
    marker, text = out / "shapes.json", json.dumps({"videos": videos, "seed": seed})
    other = not marker.exists() and any((out / s).exists() for s in (TRAIN, VALID, PARAPHRASED))
    if other or (marker.exists() and marker.read_text() != text):
        raise InputError(f"{out}: it has other data already; give an empty folder for moving shapes")
    out.mkdir(parents=True, exist_ok=True)
    write_text(marker, text)
    done = 0
    with _mapping(jobs) as mapped:
        for split, (name, count) in enumerate(((TRAIN, videos - valid), (VALID, valid))):
            root = out / name
            names = [f"shapes{split}{index:05d}" for index in range(count)]
            folders = [root / FRAMES / video_id for video_id in names]
            annotations = mapped(_write_video, folders, [seed] * count, [split] * count, range(count))
            by_video = {}
            for video_id, video in zip(names, annotations):
                by_video[video_id] = video
                done += 1
                if progress is not None:
                    progress(done, videos)
            _write_json(out / name, by_video)
    _write_paraphrases(out, by_video, seed)


def _write_paraphrases(out: Path, videos: Mapping[str, Annotations], seed: int) -> None:
    """Write the split PARAPHRASED of the videos of VALID."""
    link = out / PARAPHRASED / FRAMES
    link.parent.mkdir(exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(Path("..", VALID, FRAMES))
    # A seed of its own: the sentences of VALID do not depend on it.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2,)))
    _write_json(out / PARAPHRASED, {video_id: video.paraphrased(rng) for video_id, video in videos.items()})
