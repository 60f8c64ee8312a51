"""Whether two videos are the same: digests of frames and ground truth, and the first difference, in words.

A path, a modification time or a number of files says nothing about content, so nothing is compared by them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.types import Expression, GroundTruth, Video

BLOCK = 1 << 20
"""Bytes of a file that are in memory at a time."""


def frames_digest(video: Video) -> str:
    """The digest of a video's frames: of the bytes of `video.files` in order, or, without files, of all pixels.

    128 bits of BLAKE2b, as hex. Raises InputError if a frame cannot be read.
    """
    total = hashlib.blake2b(digest_size=16)
    for path in video.files:
        size = 0
        try:
            with open(path, "rb") as file:
                while block := file.read(BLOCK):
                    total.update(block)
                    size += len(block)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); copy it from the dataset's archive") from error
        # The length of each file: bytes moved from one file to the next are a difference.
        total.update(size.to_bytes(8, "little"))
    if not video.files:
        total.update(repr((len(video), video.size)).encode())
        for t in range(len(video)):
            total.update(video.read(t).tobytes())
    return total.hexdigest()


def expressions_difference(
    stored: Iterable[Expression], current: Iterable[Expression], verbs: tuple[str, str] = ("was", "is")
) -> str | None:
    """How the sentences of a video differ between `stored` and `current`: the first with another text or other targets.

    verbs: for each, in the message. None: nothing that both have differs. A sentence that only one side has is no difference; nor
    are targets that one side hides.
    """
    currents = {e.expression_id: e for e in current}
    for before in stored:
        now = currents.get(before.expression_id, before)
        if now.text != before.text:
            return f"expression {before.expression_id} {verbs[0]} {before.text!r} and {verbs[1]} {now.text!r}"
        if None not in (now.targets, before.targets) and now.targets != before.targets:
            old, new = (", ".join(e.targets or ()) or "no object" for e in (before, now))
            return f"expression {before.expression_id}, {before.text!r}, named {old} and names {new}"
    return None


def truth_difference(stored: GroundTruth, current: GroundTruth) -> str | None:
    """How the ground truth of a video changed: the first object of both whose masks differ. None: there is none."""
    if stored.masks.shape[1] != current.masks.shape[1] or stored.masks.size != current.masks.size:
        before, now = (f"{truth.masks.shape[1]} frames of {truth.masks.size}" for truth in (stored, current))
        return f"the masks had {before} and have {now}"
    if not np.array_equal(stored.annotated, current.annotated):
        return f"{int(stored.annotated.sum())} frames were annotated and {int(current.annotated.sum())} are, or other ones"
    names = [name for name in stored.object_ids if name in current.object_ids]
    for name, old_masks, new_masks in zip(names, _masks_of(stored, names), _masks_of(current, names)):
        if old_masks != new_masks:
            return f"object {name} has other masks"
    return None


def frames_difference(
    stored: tuple[Sequence[str], tuple[int, int]], current: tuple[Sequence[str], tuple[int, int]]
) -> str | None:
    """How the frames of a video changed, from their names and their size (H, W) alone. None: they are equal."""
    (names, size), (new_names, new_size) = stored, current
    if len(names) != len(new_names) or tuple(size) != tuple(new_size):
        return f"it had {len(names)} frames of {tuple(size)} and has {len(new_names)} of {tuple(new_size)}"
    changed = next(((a, b) for a, b in zip(names, new_names) if a != b), None)
    return None if changed is None else f"its frame {changed[0]} is now named {changed[1]}"


def answers_digest(frame_names: Sequence[str], expressions: Iterable[Expression], truth: GroundTruth) -> str:
    """The digest of what a video is scored against: frame names, sentences, their targets, and the objects' masks."""
    rows = sorted((e.expression_id, e.text, e.targets) for e in expressions)
    objects = sorted(truth.object_ids)
    total = hashlib.blake2b(repr((list(frame_names), rows, objects, truth.annotated.tolist())).encode(), digest_size=16)
    for masks in _masks_of(truth, objects):
        total.update(repr(masks).encode())
    return total.hexdigest()


def _masks_of(truth: GroundTruth, object_ids: Sequence[str]) -> list[list[bytes]]:
    """The run-length bytes of each object in each frame, equal exactly where the pixels are."""
    masks = _canonical(truth.masks.select([truth.object_ids.index(name) for name in object_ids]))
    return [[masks.bytes_at(k, t) for t in range(masks.shape[1])] for k in range(masks.shape[0])]


def _canonical(masks: RleMasks) -> RleMasks:
    """Equal masks with one run-length code for equal pixels: files may hold runs of no length, or longer codes."""
    runs = masks.runs()
    starts = np.concatenate([runs.stops[:0], [0], runs.stops[:-1]])[: len(runs.stops)]
    is_first = np.zeros(len(runs.ends), bool)
    is_first[starts] = True
    if (np.diff(runs.ends, prepend=-1)[~is_first] == 0).any():
        return RleMasks.concatenate([RleMasks.from_dense(masks.dense([k])) for k in range(masks.shape[0])])
    return RleMasks.from_runs(runs)
