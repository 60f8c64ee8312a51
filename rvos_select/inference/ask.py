"""One sentence about one video of the user's own: extract, predict, merge, draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from rvos_cache.clip.pooling import FRAME
from rvos_cache.errors import InputError, naming
from rvos_cache.exchange.pool_clip import pooled_record
from rvos_cache.extraction import extract_video
from rvos_cache.identity import frames_digest
from rvos_cache.media.frames import VideoWriter, open_video
from rvos_cache.media.mask_png import read_mask_png
from rvos_cache.store import (
    PROVENANCE_FIELDS,
    CacheWriter,
    Card,
    SelectionCache,
    TextRecord,
    canonical,
    digest,
    write_text,
    write_tracks,
)
from rvos_cache.system.locks import folder_lock
from rvos_cache.types import Expression, Video
from rvos_select.data.caches import TrackSource
from rvos_select.inference.answers import Answers, Question
from rvos_select.inference.predict import score_tracks
from rvos_select.inference.progress import step_progress
from rvos_select.inference.recipe import Recipe, recipe_of_run, recipe_without_run
from rvos_select.merging.hints import below_hint, empty_hint
from rvos_select.merging.merge import write_masks
from rvos_select.merging.policy import DEFAULT_POLICY, PolicyOptions, resolve_policy
from rvos_select.paths import PathLike

TINT = np.array([255, 96, 32], np.float32)
FRAMES_PER_SECOND = 12
"""Of the overlay where the video is a folder of frames."""
CHANGED = "video {}: its frames were changed while they were read; ask again"
T = TypeVar("T")


@dataclass(frozen=True)
class AskResult:
    """Where the masks and the overlay video lie, and how sure the selector was.

    tracks: number of candidates, tracks or a selector's queries; selected: number of selected ones; best_score: of any, in [0, 1],
    0 where there is none; hint: what to try where nothing was selected, or that the best was selected below the threshold, else None.
    """

    masks: Path
    overlay: Path
    tracks: int
    selected: int
    best_score: float
    hint: str | None = None


def ask(video: PathLike, sentence: str, run: PathLike, out: PathLike, policy: PolicyOptions = DEFAULT_POLICY) -> AskResult:
    """Segment what `sentence` names in `video`, a film or a folder of frames.

    Tracker and text encoder are those that the run was trained with, and where its tracks were pooled, the CLIP. The video's tracks
    stay under `out`, so a second sentence about the same frames only needs the text encoder; every other sentence, run or policy has
    an answer of its own (see `answers`), and nothing that is there is replaced. Raises InputError for a video, run or sentence that
    cannot be used, and for an `out` that lies in the video, is about another one, or is written by another process.
    """
    return _ask(Path(video), sentence, lambda: recipe_of_run(Path(run)), Path(out), policy)


def ask_untrained(
    video: PathLike,
    sentence: str,
    selector: str,
    out: PathLike,
    policy: PolicyOptions = DEFAULT_POLICY,
    *,
    tracker: str = "flow",
    config: Mapping[str, Any] | None = None,
    tracker_settings: Mapping[str, Any] | None = None,
    clip_settings: Mapping[str, Any] | None = None,
) -> AskResult:
    """As `ask`, without a run: by a selector that needs no training, on the tracks of `tracker`.

    config: settings of the selector; tracker_settings, clip_settings: of the tracker, and of `rvos-cache pool-clip`. Raises
    InputError also for a selector that must be trained, and for a tracker that prompts with the ground truth.
    """
    settings = (config or {}, tracker, tracker_settings or {}, clip_settings or {})
    return _ask(Path(video), sentence, lambda: recipe_without_run(selector, *settings), Path(out), policy)


def _ask(source: Path, sentence: str, open_recipe: Callable[[], Recipe], out: Path, policy: PolicyOptions) -> AskResult:
    frames = open_video(source)
    _check_apart(source, out)
    expression = Expression(frames.video_id, "0", sentence, None)
    # Before the tracks, which take the time.
    recipe = open_recipe()
    own_digest = frames_digest(frames)
    content = digest(canonical([own_digest, frames.video_id, frames.frame_names, frames.size]))
    with naming(out), folder_lock(out, "ask"):
        answers = Answers(out, source.resolve(), content)
        caches = out / "cache"
        of_video = {"dataset": "ask", "split": frames.video_id, "root": str(source.resolve())}
        words_digest = digest(f"{content} {sentence}".encode())
        paths = []
        for name, own in (("tracks", recipe), ("frames", recipe.of_frames())):
            if own is None:
                continue
            card = own.tracks.model_copy(
                update={
                    **of_video,
                    "expressions_digest": words_digest if own.tracks.expressions_digest is not None else None,
                    "extra": {**own.tracks.extra, "frames": content},
                }
            )
            paths.append(_extract_tracks(caches / f"{name}-{_name(card)}.zarr", frames, expression, card, own, own_digest))
        card = recipe.text.model_copy(update={**of_video, "expressions_digest": words_digest})
        texts = caches / f"text-{_name(card)}.zarr"
        text_writer = CacheWriter(texts, card)
        if frames.video_id not in text_writer.published_ids():
            words = tuple(recipe.encoder.encode_checked([sentence]))
            write_text(text_writer, TextRecord(frames.video_id, (expression,), words))
        tracks = " ".join(path.name for path in paths)
        name = digest(f"{recipe.weights} {tracks} {texts.name}".encode())
        selections = SelectionCache(score_tracks(recipe.open_scorer, paths, texts, caches / f"selections-{name}.zarr"))

        chosen = resolve_policy(selections, policy)
        n = answers.number(Question(sentence, recipe.name, recipe.weights, tracks, chosen.record()))
        masks = answers.masks(n, frames.video_id)
        write_masks(selections, TrackSource(paths), frames.video_id, "0", chosen, masks)
        overlay = answers.overlay(n)
        if not overlay.exists():
            with step_progress("overlay") as progress:
                draw(_reporting(frames, progress), masks, overlay)
    selection = selections.selections(frames.video_id)[0]
    scores = selection.scores[selection.candidates]
    hint = empty_hint(selections, chosen) or below_hint(chosen, float(scores.max(initial=0.0)))
    return AskResult(masks, overlay, len(scores), len(chosen(selection)), float(scores.max(initial=0.0)), hint)


def _check_apart(source: Path, out: Path) -> None:
    """Raises InputError if `out` is the video, or lies in its folder of frames."""
    video, target = source.resolve(), out.resolve()
    if target == video or video in target.parents:
        raise InputError(f"{out}: lies in the video that was asked about, {source}; choose an --out outside of it")


def _name(card: Card) -> str:
    """Part of the name of a cache: a digest of all that its content depends on."""
    return digest(canonical(card.model_dump(exclude=set(PROVENANCE_FIELDS))))


def _extract_tracks(path: Path, video: Video, expression: Expression, card: Card, recipe: Recipe, own_digest: str) -> Path:
    """The tracks cache of this one video, extracted and pooled unless it is there. own_digest: of its frames."""
    writer = CacheWriter(path, card)
    if video.video_id in writer.published_ids():
        return path
    tracker = recipe.open_tracker()
    # Before the tracks, which take the time.
    pooling = None if recipe.open_pooling is None else recipe.open_pooling()
    # Tracks of a tracker that reads no sentence are those of every sentence, and list none.
    sentences = (expression,) if card.expressions_digest is not None else ()
    with step_progress("tracks") as progress:
        tracker.progress = progress  # type: ignore[method-assign, assignment]
        record = extract_video(tracker, video, sentences, None)
    if record.frames_digest != own_digest:
        raise InputError(CHANGED.format(video.video_id))
    if pooling is None:
        write_tracks(writer, record)
        return path
    with step_progress("clip") as progress:
        record = pooled_record(record, _reporting(video, progress), pooling)
        features = {**record.tracks.features, FRAME: _unchanged(record.tracks.features[FRAME], video, own_digest)}
        write_tracks(writer, replace(record, tracks=replace(record.tracks, features=features)))
    return path


def _unchanged(values: Iterator[T], video: Video, own_digest: str) -> Iterator[T]:
    """`values`, which are read last. Raises InputError at their end, before anything is published, if the frames were changed."""
    yield from values
    if frames_digest(video) != own_digest:
        raise InputError(CHANGED.format(video.video_id))


def _reporting(video: Video, progress: Callable[[float], None]) -> Video:
    """The same video, which reports the share of its frames that is read, in order."""

    def read(t: int) -> NDArray[np.uint8]:
        progress(t / len(video))
        return video.source(t)

    return replace(video, source=read)


def draw(video: Video, masks: Path, out: Path) -> Path:
    """Write the video with the masks `<masks>/<frame>.png` tinted and outlined, an mp4; returns `out`. Raises InputError."""
    with VideoWriter(out, video.rate or FRAMES_PER_SECOND, video.size) as film:
        for t, name in enumerate(video.frame_names):
            film.write(tint(video.read(t), read_mask_png(masks / f"{name}.png", video.size)))
    return out


def tint(frame: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """`frame` (H, W, 3) uint8 RGB with `mask` (H, W) tinted at half strength and outlined."""
    out = frame.copy()
    out[mask] = (0.5 * frame[mask] + 0.5 * TINT).astype(np.uint8)
    outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(out, outline, -1, (255, 255, 255), max(1, min(mask.shape) // 240))
    return out
