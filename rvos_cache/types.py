"""The nouns of the pipeline: frozen dataclasses that check their shapes when they are made.

Letters everywhere: B batch, E expressions, T frames, H W pixels, N tracks, A annotated objects, L words, C token
channels, D word channels, Q a selector's own queries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks

VIDEO = -1
"""`TrackSet.prompt` of a track that no expression asked for: a candidate of every expression."""

FORBIDDEN = r'[/\\\x00-\x1f:*?"<>|]'
"""What no id may hold: ids name folders here, in zips, and on file systems elsewhere."""


def check_id(identifier: str, where: str) -> str:
    """`identifier` when it can name a folder; InputError when it is empty, hidden or would leave its parent."""
    bad = not isinstance(identifier, str) or not identifier or identifier.startswith(".") or not _writable(identifier)
    # 140 bytes: the store adds host, process and a number to it, and 255 is what file systems take.
    if bad or re.search(FORBIDDEN, identifier) or len(identifier.encode()) > 140:
        raise InputError(f"{where}: the id {identifier!r} cannot name a folder; rename it (no '/', '..', leading '.')")
    return identifier


def _writable(text: str) -> bool:
    # JSON can hold half of a surrogate pair, which no file and no tokenizer takes.
    return not re.search(r"[\ud800-\udfff]", text)


@dataclass(frozen=True)
class Video:
    """One video as a tracker sees it. JPEG folders, mp4 files and corrupted frames look alike.

    video_id; frame_names: T stems in order, they name the output PNGs; size: (H, W) pixels;
    source: t -> (H, W, 3) uint8 RGB.
    """

    video_id: str
    frame_names: tuple[str, ...]
    size: tuple[int, int]
    source: Callable[[int], NDArray[np.uint8]]

    def __post_init__(self) -> None:
        check_id(self.video_id, "video")
        if not self.frame_names:
            raise InputError(f"video {self.video_id}: it has no frames; remove it from the list or add its frames")
        if len(set(self.frame_names)) != len(self.frame_names):
            raise InputError(f"video {self.video_id}: two frames share a name; frame names must be unique")

    def __len__(self) -> int:
        return len(self.frame_names)

    def read(self, t: int) -> NDArray[np.uint8]:
        """Frame t, (H, W, 3) uint8 RGB. Raises InputError when it cannot be read or has another size."""
        frame = self.source(t)
        if frame.shape != (*self.size, 3) or frame.dtype != np.uint8:
            raise InputError(
                f"video {self.video_id}, frame {self.frame_names[t]}: wanted {self.size} pixels (height, width) like the "
                f"first frame, found {frame.shape[:2]}; all frames of a video must have one size"
            )
        return frame


@dataclass(frozen=True)
class Expression:
    """One sentence about one video. targets: object ids; () nothing matches; None: hidden by the split."""

    video_id: str
    expression_id: str
    text: str
    targets: tuple[str, ...] | None

    def __post_init__(self) -> None:
        check_id(self.expression_id, f"video {self.video_id}, expression")
        if not self.text.strip():
            raise InputError(
                f"video {self.video_id}, expression {self.expression_id}: the text is empty; write the sentence or remove it"
            )
        if not _writable(self.text):
            raise InputError(
                f"video {self.video_id}, expression {self.expression_id}: the text holds half a character; write it again"
            )

    @property
    def key(self) -> str:
        """`<video>/<expression>`, as in every JSON that lists expressions."""
        return f"{self.video_id}/{self.expression_id}"


@dataclass(frozen=True)
class GroundTruth:
    """The annotated objects of one video.

    object_ids: A ids, unique in the dataset (MeViS: `anno_id` as text); masks: RleMasks (A, T);
    annotated: bool (T,), False where a frame has no annotation at all (it is not scored).
    """

    object_ids: tuple[str, ...]
    masks: RleMasks
    annotated: NDArray[np.bool_]

    def __post_init__(self) -> None:
        a, t = self.masks.shape
        if len(self.object_ids) != a or self.annotated.shape != (t,) or self.annotated.dtype != bool:
            raise ValueError(f"{len(self.object_ids)} objects, masks {(a, t)}, annotated {self.annotated.shape}")

    def indices(self, targets: Iterable[str]) -> list[int]:
        """Positions of the object ids `targets`. Raises InputError for an id that is not annotated."""
        position = {o: i for i, o in enumerate(self.object_ids)}
        missing = [o for o in targets if o not in position]
        if missing:
            raise InputError(f"object {missing[0]!r} is named by an expression but not annotated in its video")
        return [position[o] for o in targets]


@dataclass(frozen=True)
class FeatureSpec:
    """A named extra array that a tracker declares: dims in the letters of this module or numbers, dtype, storage."""

    name: str
    dims: tuple[str | int, ...]
    dtype: str = "float16"
    by_frame: bool = False
    """True: the first dimension is T, one chunk per frame, and the array may arrive as an iterator of frames."""


@dataclass(frozen=True)
class TrackSet:
    """What a tracker returns for one video. Track order is identity; N = 0 is legal.

    tokens: (N, T, C) floating; presence: (N, T) float16 probabilities that the object is visible; masks: RleMasks (N, T);
    prompt: int32 (N,), index of the expression that asked for the track in the order of the expressions given, or VIDEO;
    origin: N names ("grid", "box", "gt", "flow", "query" ...); prompt_frame: int32 (N,), the frame that was prompted,
    -1 where an import does not know it; prompt_box: float32 (N, 4), x0 y0 x1 y1 in pixels of that frame (unknown: zeros);
    features: extra arrays by name.
    The candidates of expression e are the tracks whose prompt is VIDEO or e.
    """

    tokens: NDArray[Any]
    presence: NDArray[np.float16]
    masks: RleMasks
    prompt: NDArray[np.int32]
    origin: tuple[str, ...]
    prompt_frame: NDArray[np.int32]
    prompt_box: NDArray[np.float32]
    features: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, t = self.masks.shape
        shapes = {
            "tokens": (self.tokens.shape[:2], (n, t)),
            "presence": (self.presence.shape, (n, t)),
            "prompt": (self.prompt.shape, (n,)),
            "origin": ((len(self.origin),), (n,)),
            "prompt_frame": (self.prompt_frame.shape, (n,)),
            "prompt_box": (self.prompt_box.shape, (n, 4)),
        }
        for name, (found, wanted) in shapes.items():
            if tuple(found) != wanted:
                raise ValueError(f"TrackSet.{name}: {tuple(found)} where masks (N, T) = {(n, t)} want {wanted}")
        if self.tokens.ndim != 3 or not np.issubdtype(self.tokens.dtype, np.floating):
            raise ValueError(f"TrackSet.tokens must be floating (N, T, C), are {self.tokens.dtype} {self.tokens.shape}")
        if not np.isfinite(self.tokens).all():
            raise ValueError("TrackSet.tokens hold NaN or infinite values")


@dataclass(frozen=True)
class Overlap:
    """Pixel counts of tracks and objects, from which labels are made at training time (int32).

    inter: (N, A, T) shared pixels; area: (N, T) of tracks; gt_area: (A, T) of objects; annotated: bool (T,).
    """

    inter: NDArray[np.int32]
    area: NDArray[np.int32]
    gt_area: NDArray[np.int32]
    annotated: NDArray[np.bool_]

    def __post_init__(self) -> None:
        n, a, t = self.inter.shape
        if self.area.shape != (n, t) or self.gt_area.shape != (a, t) or self.annotated.shape != (t,):
            raise ValueError(f"Overlap: inter {(n, a, t)}, area {self.area.shape}, gt_area {self.gt_area.shape}")


Cue = Literal["motion", "static", "other"]


@dataclass(frozen=True)
class Words:
    """One encoded expression.

    vectors: (L, D) floating, special tokens included; spans: int32 (L, 2), character range [start, end) in the text,
    (0, 0) for special tokens; tags: L raw part-of-speech tags, "" for special tokens.
    """

    vectors: NDArray[Any]
    spans: NDArray[np.int32]
    tags: tuple[str, ...]

    def __post_init__(self) -> None:
        length = self.vectors.shape[0]
        if self.vectors.ndim != 2 or self.spans.shape != (length, 2) or len(self.tags) != length or length == 0:
            raise ValueError(f"Words: vectors {self.vectors.shape}, spans {self.spans.shape}, {len(self.tags)} tags")
        if not np.isfinite(self.vectors).all():
            raise ValueError("Words.vectors hold NaN or infinite values")


@dataclass(frozen=True)
class Selection:
    """What a selector says of one expression; no decision inside.

    scores: float32 (N,) in [0, 1], or (Q,) when the selector drew its own masks: then masks: RleMasks (Q, T);
    candidates: bool, same shape: the tracks that the expression may choose.
    """

    expression_id: str
    scores: NDArray[np.float32]
    candidates: NDArray[np.bool_]
    masks: RleMasks | None = None

    def __post_init__(self) -> None:
        if self.scores.ndim != 1 or self.candidates.shape != self.scores.shape:
            raise ValueError(f"Selection: scores {self.scores.shape}, candidates {self.candidates.shape}")
        if not ((self.scores >= 0) & (self.scores <= 1)).all():
            raise ValueError(f"Selection of expression {self.expression_id}: scores leave [0, 1] or are NaN")
