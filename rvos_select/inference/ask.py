"""One sentence about one video of the user's own: extract, predict, merge, draw."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.exchange.import_masks import IMPORTED
from rvos_cache.exchange.import_sola import PRODUCER as SOLA_FILES
from rvos_cache.extraction import extract_video
from rvos_cache.frames import VideoWriter, open_video
from rvos_cache.mask_png import read_mask_png
from rvos_cache.settings import build
from rvos_cache.store import CacheWriter, Card, SelectionCache, TextRecord, write_text, write_tracks
from rvos_cache.text import encoder_class, open_encoder
from rvos_cache.trackers import open_tracker, tracker_class
from rvos_cache.types import Expression, Video
from rvos_select.inference.predict import predict
from rvos_select.merging.merge import RECORD, merge
from rvos_select.merging.policy import DEFAULT_POLICY, PolicyOptions, resolve_policy
from rvos_select.paths import PathLike
from rvos_select.runs.checkpoint import run_cards

TINT = np.array([255, 96, 32], np.float32)
FRAMES_PER_SECOND = 12
"""Of the overlay where the video is a folder of frames."""


@dataclass(frozen=True)
class AskResult:
    """Where the masks and the overlay video lie, and how sure the selector was.

    tracks: number of candidate tracks; selected: number of selected ones; best_score: of any, in [0, 1], 0 where there is none.
    """

    masks: Path
    overlay: Path
    tracks: int
    selected: int
    best_score: float


def ask(video: PathLike, sentence: str, run: PathLike, out: PathLike, policy: PolicyOptions = DEFAULT_POLICY) -> AskResult:
    """Segment what `sentence` names in `video`, an mp4 or a folder of frames.

    Tracker and text encoder are those that the run was trained with. The video's tracks stay under `out`, so a second
    sentence about the same video only needs the text encoder; its masks replace the first ones. Raises InputError for a video, run
    or sentence that cannot be used.
    """
    source, run, out = Path(video), Path(run), Path(out)
    frames = open_video(source)
    expression = Expression(frames.video_id, "0", sentence, None)
    cards = run_cards(run)
    tracks_card, text_card = cards["tracks"], cards["text"]
    if tracks_card.training_only:
        raise InputError(f"{run}: trained on ground-truth tracks only; train with tracks that a tracker finds")
    if tracks_card.producer == SOLA_FILES or IMPORTED.items() <= tracks_card.settings.items():
        raise InputError(
            f"{run}: trained on imported tracks, which no tracker here finds in a new video; import this one's too, then predict"
        )

    # The split names the very file and, for the words and for trackers that read them, the sentence: another video or
    # sentence gets other caches, the same one finds its own again.
    video_digest = _digest(f"{source.resolve()} {source.stat().st_mtime_ns} {len(frames)}")
    sentence_digest = _digest(video_digest + sentence)
    identity = {"dataset": "ask", "split": video_digest, "root": str(source)}
    caches = out / "cache"
    encoder_type = encoder_class(text_card.producer)
    encoder = open_encoder(text_card.producer, build(encoder_type.Settings, text_card.settings, str(run)))
    # Before the tracks, which take the time.
    _check_same_weights(encoder.weight_hashes(), text_card, f"{run}, text encoder {text_card.producer}")
    expressions_digest = sentence_digest if tracks_card.expressions_digest is not None else None
    card = tracks_card.model_copy(update={**identity, "expressions_digest": expressions_digest})
    tracks = _extract_tracks(caches / f"tracks-{expressions_digest or video_digest}.zarr", frames, expression, card, run)
    text_path = caches / f"text-{sentence_digest}.zarr"
    text_writer = CacheWriter(text_path, text_card.model_copy(update={**identity, "expressions_digest": sentence_digest}))
    if frames.video_id not in text_writer.published_ids():
        write_text(text_writer, TextRecord(frames.video_id, (expression,), tuple(encoder.encode_checked([sentence]))))

    selections = SelectionCache(predict(run, tracks, text_path, caches / f"selections-{sentence_digest}.zarr"))
    # The masks of an earlier sentence are replaced; merge refuses a folder that it did not write.
    if (out / "masks" / RECORD).exists():
        shutil.rmtree(out / "masks")
    masks = merge(Path(selections.path), [tracks], out / "masks", policy) / frames.video_id / "0"
    selection = selections.selections(frames.video_id)[0]
    scores = selection.scores[selection.candidates]
    overlay = draw(frames, masks, out / "overlay.mp4")
    selected = len(resolve_policy(selections, policy)(selection))
    return AskResult(masks, overlay, len(scores), selected, float(scores.max(initial=0.0)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check_same_weights(weights: dict[str, str], card: Card, location: str) -> None:
    """Raises InputError when what runs now has other weights than what the run was trained on."""
    for name in sorted(weights.keys() | card.weights):
        if weights.get(name) != card.weights.get(name):
            now, trained = (digests.get(name, "none that is named") for digests in (weights, card.weights))
            raise InputError(
                f"{location}: {name} is {now}, the run was trained with {trained}; bring that one back, or extract and train again"
            )


def _extract_tracks(path: Path, video: Video, expression: Expression, card: Card, run: Path) -> Path:
    """The tracks cache of this one video, extracted unless it is there."""
    writer = CacheWriter(path, card)
    if video.video_id not in writer.published_ids():
        tracker_type = tracker_class(card.producer)
        tracker = open_tracker(card.producer, build(tracker_type.Settings, card.settings, str(path)))
        # A run of SOLA's released weights names its tracker, whose digest is not known.
        if card.weights:
            _check_same_weights(tracker.weight_hashes(), card, f"{run}, tracker {card.producer}")
        # Tracks of a tracker that reads no sentence are those of every sentence, and list none.
        sentences = (expression,) if card.expressions_digest is not None else ()
        write_tracks(writer, extract_video(tracker, video, sentences, None))
    return path


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
