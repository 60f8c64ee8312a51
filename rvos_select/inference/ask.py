"""One sentence about one video of the user's own: extract, predict, merge, draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError, naming
from rvos_cache.exchange.import_masks import IMPORTED
from rvos_cache.exchange.import_sola import PRODUCER as SOLA_FILES
from rvos_cache.extraction import extract_video
from rvos_cache.identity import frames_digest
from rvos_cache.media.frames import VideoWriter, open_video
from rvos_cache.media.mask_png import read_mask_png
from rvos_cache.settings import build
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
from rvos_cache.text import encoder_class, open_encoder
from rvos_cache.trackers import open_tracker, tracker_class
from rvos_cache.types import Expression, Video
from rvos_select.data.caches import TrackSource
from rvos_select.inference.answers import Answers, Question
from rvos_select.inference.predict import score_tracks
from rvos_select.inference.progress import step_progress
from rvos_select.merging.hints import empty_hint
from rvos_select.merging.merge import write_masks
from rvos_select.merging.policy import DEFAULT_POLICY, PolicyOptions, resolve_policy
from rvos_select.paths import PathLike
from rvos_select.runs.checkpoint import best_folder, run_cards
from rvos_select.selectors.base import WEIGHTS

TINT = np.array([255, 96, 32], np.float32)
FRAMES_PER_SECOND = 12
"""Of the overlay where the video is a folder of frames."""


@dataclass(frozen=True)
class AskResult:
    """Where the masks and the overlay video lie, and how sure the selector was.

    tracks: number of candidate tracks; selected: number of selected ones; best_score: of any, in [0, 1], 0 where there is none;
    hint: what to try where nothing was selected, else None.
    """

    masks: Path
    overlay: Path
    tracks: int
    selected: int
    best_score: float
    hint: str | None = None


def ask(video: PathLike, sentence: str, run: PathLike, out: PathLike, policy: PolicyOptions = DEFAULT_POLICY) -> AskResult:
    """Segment what `sentence` names in `video`, a film or a folder of frames.

    Tracker and text encoder are those that the run was trained with. The video's tracks stay under `out`, so a second sentence
    about the same frames only needs the text encoder; every other sentence, run or policy has an answer of its own (see
    `answers`), and nothing that is there is replaced. Raises InputError for a video, run or sentence that cannot be used, and for
    an `out` that lies in the video, is about another one, or is written by another process.
    """
    source, run, out = Path(video), Path(run), Path(out)
    frames = open_video(source)
    _check_apart(source, out)
    expression = Expression(frames.video_id, "0", sentence, None)
    tracks_card, text_card = _runnable_cards(run)
    encoder_type = encoder_class(text_card.producer)
    encoder = open_encoder(text_card.producer, build(encoder_type.Settings, text_card.settings, str(run)))
    # Before the tracks, which take the time.
    _check_same_weights(encoder.weight_hashes(), text_card, f"{run}, text encoder {text_card.producer}")
    own_digest = frames_digest(frames)
    content = digest(canonical([own_digest, frames.video_id, frames.frame_names, frames.size]))
    with naming(out), folder_lock(out, "ask"):
        answers = Answers(out, source.resolve(), content)
        caches = out / "cache"
        of_video = {"dataset": "ask", "split": frames.video_id, "root": str(source.resolve())}
        words_digest = digest(f"{content} {sentence}".encode())
        card = tracks_card.model_copy(
            update={
                **of_video,
                "expressions_digest": words_digest if tracks_card.expressions_digest is not None else None,
                "extra": {**tracks_card.extra, "frames": content},
            }
        )
        tracks = _extract_tracks(caches / f"tracks-{_name(card)}.zarr", frames, expression, card, run, own_digest)
        card = text_card.model_copy(update={**of_video, "expressions_digest": words_digest})
        texts = caches / f"text-{_name(card)}.zarr"
        text_writer = CacheWriter(texts, card)
        if frames.video_id not in text_writer.published_ids():
            write_text(text_writer, TextRecord(frames.video_id, (expression,), tuple(encoder.encode_checked([sentence]))))
        weights = digest((best_folder(run) / WEIGHTS).read_bytes())
        name = digest(f"{weights} {tracks.name} {texts.name}".encode())
        selections = SelectionCache(score_tracks(run, tracks, texts, caches / f"selections-{name}.zarr"))

        chosen = resolve_policy(selections, policy)
        n = answers.number(Question(sentence, str(run.resolve()), weights, tracks.name, chosen.record()))
        masks = answers.masks(n, frames.video_id)
        write_masks(selections, TrackSource([tracks]), frames.video_id, "0", chosen, masks)
        overlay = answers.overlay(n)
        if not overlay.exists():
            with step_progress("overlay") as progress:
                draw(_reporting(frames, progress), masks, overlay)
    selection = selections.selections(frames.video_id)[0]
    scores = selection.scores[selection.candidates]
    hint = empty_hint(selections, chosen)
    return AskResult(masks, overlay, len(scores), len(chosen(selection)), float(scores.max(initial=0.0)), hint)


def _check_apart(source: Path, out: Path) -> None:
    """Raises InputError if `out` is the video, or lies in its folder of frames."""
    video, target = source.resolve(), out.resolve()
    if target == video or video in target.parents:
        raise InputError(f"{out}: lies in the video that was asked about, {source}; choose an --out outside of it")


def _runnable_cards(run: Path) -> tuple[Card, Card]:
    """The cards of the run's tracks and words. Raises InputError if no tracker finds such tracks in a new video."""
    cards = run_cards(run)
    tracks, text = cards["tracks"], cards["text"]
    if tracks.training_only:
        raise InputError(f"{run}: trained on ground-truth tracks only; train with tracks that a tracker finds")
    if tracks.producer == SOLA_FILES or IMPORTED.items() <= tracks.settings.items():
        raise InputError(
            f"{run}: trained on imported tracks, which no tracker here finds in a new video; import this one's too, then predict"
        )
    return tracks, text


def _name(card: Card) -> str:
    """Part of the name of a cache: a digest of all that its content depends on."""
    return digest(canonical(card.model_dump(exclude=set(PROVENANCE_FIELDS))))


def _check_same_weights(weights: dict[str, str], card: Card, location: str) -> None:
    """Raises InputError when what runs now has other weights than what the run was trained on."""
    for name in sorted(weights.keys() | card.weights):
        if weights.get(name) != card.weights.get(name):
            now, trained = (digests.get(name, "none that is named") for digests in (weights, card.weights))
            raise InputError(
                f"{location}: {name} is {now}, the run was trained with {trained}; bring that one back, or extract and train again"
            )


def _extract_tracks(path: Path, video: Video, expression: Expression, card: Card, run: Path, own_digest: str) -> Path:
    """The tracks cache of this one video, extracted unless it is there. own_digest: of its frames."""
    writer = CacheWriter(path, card)
    if video.video_id not in writer.published_ids():
        tracker_type = tracker_class(card.producer)
        tracker = open_tracker(card.producer, build(tracker_type.Settings, card.settings, str(path)))
        # A run of SOLA's released weights names its tracker, whose digest is not known.
        if card.weights:
            _check_same_weights(tracker.weight_hashes(), card, f"{run}, tracker {card.producer}")
        # Tracks of a tracker that reads no sentence are those of every sentence, and list none.
        sentences = (expression,) if card.expressions_digest is not None else ()
        with step_progress("tracks") as progress:
            tracker.progress = progress  # type: ignore[method-assign, assignment]
            record = extract_video(tracker, video, sentences, None)
        if record.frames_digest != own_digest:
            raise InputError(f"video {video.video_id}: its frames were changed while they were read; ask again")
        write_tracks(writer, record)
    return path


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
