"""The nouns of the project, as frozen dataclasses that check their shapes when they are made.

Letters of dimensions: B batch, E expressions, T frames, H W pixels, N tracks, A annotated objects, L words, C token channels,
D word channels, Q a selector's own queries, V videos of a batch (1 or B).

Glossary (the same words in code, messages and READMEs):
    split          part of a dataset ("train", "valid_u"); it has its ground truth or hides it
    Video          T frames of one size
    Expression     one sentence about one video; its targets are the objects that it names
    GroundTruth    the annotated objects of a video: A masks over T frames
    track          one candidate object of a tracker: a mask, a presence and a token in each frame
    token          feature vector (C,) of a track in a frame
    presence       probability that the object of a track is visible in a frame
    TrackSet       all N tracks of a video: what a tracker returns
    feature        extra array that a tracker declares (`FeatureSpec`) and returns for every video
    measurement    array that a tracker declares and measures against the ground truth; stored where the split has it
    Overlap        pixel counts of tracks and annotated objects, from which training makes its labels
    Words          the encoded words of one expression
    cache          a `.zarr` folder with the tracks, the words or the selections of a split
    card           what a cache is: dataset, split, tracker or encoder, settings, weights
    candidate      track that an expression may select
    selector       module of stage two that scores the candidates of an expression
    Selection      the scores of one expression's candidates: of tracks, or of a selector's own queries
    parts          the track whose mask a query has in each frame, where that is not one track in all frames
    selection policy   how scores become selected tracks: threshold, top-1, fallback
    prediction     the union of the selected tracks' masks
    run            folder of one training run
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rvos_cache.axes import check_dims, format_dims
from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks

VIDEO = -1
"""`TrackSet.prompt` of a track that belongs to the whole video: a candidate of every expression."""

FORBIDDEN = r'[/\\\x00-\x1f:*?"<>|]'
"""Characters that no id may have: ids name folders, also inside zip files and on other file systems."""

DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
"""Dtypes of declared arrays."""


def check_id(identifier: str, location: str) -> str:
    """`identifier`, if it can name a folder. Raises InputError if it is empty, hidden or would leave its parent folder."""
    bad = not isinstance(identifier, str) or not identifier or identifier.startswith(".") or not _writable(identifier)
    # At most 140 bytes: the store adds host, process and a number, and file systems allow 255.
    if bad or re.search(FORBIDDEN, identifier) or len(identifier.encode()) > 140:
        raise InputError(f"{location}: the id {identifier!r} cannot name a folder; rename it (no '/', '..', leading '.')")
    return identifier


def _writable(text: str) -> bool:
    # JSON may contain half of a surrogate pair, which files and tokenizers refuse.
    return not re.search(r"[\ud800-\udfff]", text)


@dataclass(frozen=True)
class Video:
    """The frames of one video; folders, films and corrupted frames have the same interface.

    video_id; frame_names: T stems in order, they name the output PNGs; size: (H, W) pixels;
    source: t -> (H, W, 3) uint8 RGB; rate: frames per second, None where the files do not say it (a folder of frames);
    files: what `source` reads, whose bytes identify the frames (`rvos_cache.identity`); none: their pixels do.
    """

    video_id: str
    frame_names: tuple[str, ...]
    size: tuple[int, int]
    source: Callable[[int], NDArray[np.uint8]]
    rate: Fraction | None = None
    files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        check_id(self.video_id, "video")
        if not self.frame_names:
            raise InputError(f"video {self.video_id}: it has no frames; remove it from the list or add its frames")
        if len(set(self.frame_names)) != len(self.frame_names):
            raise InputError(f"video {self.video_id}: two frames share a name; frame names must be unique")

    def __len__(self) -> int:
        return len(self.frame_names)

    def read(self, t: int) -> NDArray[np.uint8]:
        """Frame t, (H, W, 3) uint8 RGB. Raises InputError if it cannot be read or has another size."""
        frame = self.source(t)
        if frame.shape != (*self.size, 3) or frame.dtype != np.uint8:
            raise InputError(
                f"video {self.video_id}, frame {self.frame_names[t]}: expected {self.size} pixels (height, width) like the "
                f"first frame, found {frame.shape[:2]}; all frames of a video must have one size"
            )
        return frame


@dataclass(frozen=True)
class Expression:
    """One sentence about one video. targets: object ids; () if nothing matches, None if the split hides them."""

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
                f"video {self.video_id}, expression {self.expression_id}: the text has half a character; write it again"
            )

    @property
    def key(self) -> str:
        """`<video>/<expression>`, as in every JSON file that lists expressions."""
        return f"{self.video_id}/{self.expression_id}"


@dataclass(frozen=True)
class GroundTruth:
    """The annotated objects of one video.

    object_ids: A ids, unique in the dataset (MeViS: `anno_id` as text); masks: RleMasks (A, T);
    annotated: bool (T,), False for a frame without any annotation (it is not scored).
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
    """Declaration of an extra array of a tracker: a feature or a measurement.

    name: a Python identifier; dims: one entry per dimension, a size or a letter. N, T, E and A mean what they mean in
    `rvos_cache.axes`; any other letter is the tracker's own and has one size within a video. dtype: one of DTYPES.
    Raises ValueError for anything else.
    """

    name: str
    dims: tuple[str | int, ...]
    dtype: str = "float16"
    by_frame: bool = False
    """Store one chunk per entry of the first dimension (T, or a letter that counts frames), so that frames can be read alone.
    The tracker may then return an iterator over that dimension instead of an array."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ValueError(f"FeatureSpec {self.name!r}: the name must be a Python identifier")
        if self.dtype not in DTYPES:
            raise ValueError(f"FeatureSpec {self.name!r}: dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        try:
            check_dims(self.dims)
        except ValueError as error:
            raise ValueError(f"FeatureSpec {self.name!r}: {error}") from error
        if self.by_frame and not isinstance(self.dims[0], str):
            raise ValueError(f"FeatureSpec {self.name!r}: by_frame needs a letter as first dimension, it is {self.dims[0]}")
        if self.by_frame and "T" in self.dims[1:]:
            raise ValueError(
                f"FeatureSpec {self.name!r}: by_frame stores slices of the first dimension, which must be T, not {self.dims[0]}"
            )

    def __str__(self) -> str:
        return f"{self.name} {format_dims(self.dims)} {self.dtype}{', by frame' if self.by_frame else ''}"

    def to_json(self) -> dict[str, Any]:
        """The declaration as a cache's card stores it."""
        return {**asdict(self), "dims": list(self.dims)}


Measure = Callable[[GroundTruth], Mapping[str, NDArray[Any]]]
"""Ground truth of a video -> its measurements by name."""


@dataclass(frozen=True)
class TrackSet:
    """What a tracker returns for one video. The order of the tracks is their identity; N = 0 is legal.

    tokens: (N, T, C) floating; presence: (N, T) float16 probabilities that the object is visible; masks: RleMasks (N, T);
    prompt: int32 (N,), index of the expression that the track belongs to, in the order of the expressions given, or VIDEO;
    origin: N names ("grid", "box", "gt", "flow", "query" ...); prompt_frame: int32 (N,), the frame that was prompted,
    -1 if unknown; prompt_box: float32 (N, 4), x0 y0 x1 y1 in pixels of that frame (zeros if unknown);
    features: the declared features by name; measure: computes the declared measurements; it is called once, after `track` has
    returned and before a feature's iterator is read, and only if the split has its ground truth.
    The candidates of expression e are the tracks whose prompt is VIDEO or e. `from_masks` fills in what can be derived.
    """

    tokens: NDArray[Any]
    presence: NDArray[np.float16]
    masks: RleMasks
    prompt: NDArray[np.int32]
    origin: tuple[str, ...]
    prompt_frame: NDArray[np.int32]
    prompt_box: NDArray[np.float32]
    features: Mapping[str, Any] = field(default_factory=dict)
    measure: Measure | None = None

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
        for name, (shape, expected) in shapes.items():
            if tuple(shape) != expected:
                raise ValueError(f"TrackSet.{name} has shape {tuple(shape)}, expected {expected}: masks are (N, T) = {(n, t)}")
        if self.tokens.ndim != 3 or not np.issubdtype(self.tokens.dtype, np.floating):
            raise ValueError(f"TrackSet.tokens must be floating (N, T, C), are {self.tokens.dtype} {self.tokens.shape}")
        if not np.isfinite(self.tokens).all():
            raise ValueError("TrackSet.tokens hold NaN or infinite values")

    @classmethod
    def from_masks(
        cls,
        tokens: ArrayLike,
        masks: NDArray[np.bool_] | RleMasks,
        *,
        presence: ArrayLike | None = None,
        prompt: ArrayLike | None = None,
        origin: str | Sequence[str] = "track",
        features: Mapping[str, Any] | None = None,
        measure: Measure | None = None,
    ) -> TrackSet:
        """A TrackSet from masks and tokens; everything else is derived from the masks unless it is given.

        tokens: (N, T, C), stored as float16; masks: bool (N, T, H, W) or RleMasks (N, T); presence: (N, T), by default 1 where
        a mask has pixels and 0 elsewhere; prompt: (N,), by default VIDEO; origin: one name for all tracks, or N.
        prompt_frame is the first frame in which a track has pixels (0 if there is none), prompt_box its box there (zeros if
        there is none). Raises ValueError if shapes do not fit together, or tokens are not finite as float16.
        """
        if not isinstance(masks, RleMasks):
            dense = np.asarray(masks)
            if dense.ndim != 4 or dense.dtype != bool:
                raise ValueError(f"masks must be bool (N, T, H, W) or RleMasks, are {dense.dtype} {dense.shape}")
            masks = RleMasks.from_dense(dense)
        n = masks.shape[0]
        visible = masks.area() > 0
        frames = visible.argmax(1).astype(np.int32) if masks.shape[1] else np.zeros(n, np.int32)
        boxes = masks.boxes()[np.arange(n), frames].astype(np.float32).reshape(n, 4)
        boxes[:, 2:] += boxes[:, :2]
        with np.errstate(over="ignore"):
            halved = np.asarray(tokens).astype(np.float16)
        return cls(
            tokens=halved,
            presence=np.asarray(visible if presence is None else presence).astype(np.float16),
            masks=masks,
            prompt=np.full(n, VIDEO, np.int32) if prompt is None else np.asarray(prompt).astype(np.int32).reshape(-1),
            origin=(origin,) * n if isinstance(origin, str) else tuple(origin),
            prompt_frame=frames,
            prompt_box=boxes,
            features=features or {},
            measure=measure,
        )


@dataclass(frozen=True)
class Overlap:
    """Pixel counts of tracks and annotated objects, from which labels are made at training time (int32).

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
    (0, 0) for special tokens; tags: L raw part-of-speech tags, "" for special tokens; ids: int32 (L,), the number of each word in
    the vocabulary of its encoder, None where that has none.
    """

    vectors: NDArray[Any]
    spans: NDArray[np.int32]
    tags: tuple[str, ...]
    ids: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        length = self.vectors.shape[0]
        if self.vectors.ndim != 2 or self.spans.shape != (length, 2) or len(self.tags) != length or length == 0:
            raise ValueError(f"Words: vectors {self.vectors.shape}, spans {self.spans.shape}, {len(self.tags)} tags")
        if self.ids is not None and (self.ids.shape != (length,) or self.ids.dtype != np.int32):
            raise ValueError(f"Words.ids are {self.ids.dtype} {self.ids.shape}, expected int32 ({length},)")
        if not np.isfinite(self.vectors).all():
            raise ValueError("Words.vectors hold NaN or infinite values")


@dataclass(frozen=True)
class Selection:
    """The output of a selector for one expression: scores, before any selection policy.

    scores: float32 (N,) in [0, 1] of the tracks, or (Q,) of a selector's own queries; candidates: bool, same shape: which of them
    the expression may select. Of queries either masks: RleMasks (Q, T), predicted ones; or parts: int32 (Q, T), the track whose
    mask query q has in frame t, counted over all caches of the video in their order, -1: none in that frame.
    Raises ValueError for other shapes and dtypes, scores outside [0, 1], parts below -1, and masks together with parts. That parts
    are below N is checked where the tracks are known.
    """

    expression_id: str
    scores: NDArray[np.float32]
    candidates: NDArray[np.bool_]
    masks: RleMasks | None = None
    parts: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        if self.scores.ndim != 1 or self.candidates.shape != self.scores.shape:
            raise ValueError(f"Selection: scores {self.scores.shape}, candidates {self.candidates.shape}")
        if not ((self.scores >= 0) & (self.scores <= 1)).all():
            raise ValueError(f"Selection of expression {self.expression_id}: scores leave [0, 1] or are NaN")
        if self.masks is not None and self.masks.shape[0] != len(self.scores):
            raise ValueError(
                f"Selection of expression {self.expression_id}: {self.masks.shape[0]} masks, expected {len(self.scores)}, one a score"
            )
        if self.parts is None:
            return
        if self.masks is not None:
            raise ValueError(f"Selection of expression {self.expression_id}: has masks and parts; queries have one of them")
        if self.parts.ndim != 2 or len(self.parts) != len(self.scores) or self.parts.dtype != np.int32:
            raise ValueError(
                f"Selection of expression {self.expression_id}: parts are {self.parts.dtype} {self.parts.shape}, expected int32 "
                f"({len(self.scores)}, T)"
            )
        if self.parts.size and self.parts.min() < -1:
            raise ValueError(
                f"Selection of expression {self.expression_id}: parts has {self.parts.min()}, expected -1 or a track"
            )
