"""The tracker `gdino-queries`: the queries of GroundingDINO's pruned decoder, linked over the frames (ReferDINO, section 3).

Letters: E expressions, T frames, Q queries that the decoder keeps, N = E Q tracks, C channels, L tokens of a text, W those of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks, empty_rle
from rvos_cache.settings import Settings, build
from rvos_cache.trackers.base import Tracker, part_of
from rvos_cache.trackers.planned import PlannedBytes, Size
from rvos_cache.trackers.referdino import planning
from rvos_cache.trackers.referdino.alignment import align
from rvos_cache.trackers.referdino.drawing import Rows, decoded_masks, filled_boxes, pixel_boxes, prompted_masks
from rvos_cache.trackers.referdino.frame_maps import FrameMaps
from rvos_cache.trackers.referdino.settings import GdinoQueriesSettings
from rvos_cache.trackers.referdino.upstream import HEAD_FILE, WHAT, Upstream, warn_if_behind, warn_of_other_settings
from rvos_cache.trackers.spool import ArraySpool
from rvos_cache.types import Expression, FeatureSpec, TrackSet, Video

LARGEST = 6e4
"""Largest absolute value of a token; float16 ends at 65504."""
MEMORY = 1 << 29
"""Bytes of the encoded frames of one text that stay in host memory (masks=head); the others lie in a temporary file."""
FRAME_COST, TEXT_COST = 45.0, 146.0
"""GFLOP of the backbone for one frame, and of encoder and decoder for one frame and text (360x640, Swin-T)."""


@dataclass(frozen=True)
class TextTracks:
    """The tracked queries of one text.

    tokens: float16 (Q, T, C); presence: float32 (Q, T); reference, boxes: float32 (Q, T, 4), cxcywh in [0, 1], before and after the
    last refinement; raw: int16 (Q, T); words: float16 (T, L, C); masks: what has been drawn, None if SAM 2 draws later.
    """

    tokens: NDArray[np.float16]
    presence: NDArray[np.float32]
    reference: NDArray[np.float32]
    boxes: NDArray[np.float32]
    raw: NDArray[np.int16]
    words: NDArray[np.float16]
    masks: Rows | None


class GdinoQueries(Tracker):
    """Q tracks of each expression, in the order of frame 0's queries, best first; candidates of that expression alone.

    The queries of each frame are linked by ReferDINO's memory-augmented tracker, from what is stored, so that a selector that
    links the stored queries again has the same tracks. presence is the sigmoid of the best product with a word, before the
    enhancer. Boxes, which prompt SAM 2, are those of the enhanced queries where the checkpoint has an enhancer.
    """

    Settings: type[Settings] = GdinoQueriesSettings
    reads_expressions = True

    def __init__(self, settings: GdinoQueriesSettings) -> None:
        self.settings = settings
        self.upstream = Upstream(settings.checkpoint, settings.keep_ratio, settings.prune_score)
        if settings.masks == "head" and self.upstream.head is None:
            raise InputError(
                f"{WHAT} {settings.checkpoint!r}: masks=head needs ReferDINO's mask decoder ({HEAD_FILE} in the folder), which it "
                "lacks; give a folder of rvos-select import-referdino, or --set masks=sam2"
            )
        warn_of_other_settings(settings.checkpoint, settings)
        warn_if_behind(settings.checkpoint)
        self.backend: Any = None
        if settings.masks == "sam2":
            from rvos_cache.trackers.sam2.settings import Sam2Settings
            from rvos_cache.trackers.sam2.tracker import open_backend

            try:
                self.backend = open_backend(build(Sam2Settings, {"checkpoint": settings.sam2_checkpoint}, "SAM 2"))
            except InputError as error:
                raise InputError(str(error).replace("--set checkpoint=", "--set sam2_checkpoint=")) from error
        self.channels = self.upstream.channels
        c = self.channels
        self.feature_specs = (
            FeatureSpec("reference", ("N", "T", 4), "float32"),
            FeatureSpec("raw", ("N", "T"), "int16"),
            FeatureSpec("words", ("N", 2), "int32"),
            FeatureSpec("text", ("T", "W", c), "float16", by_frame=True),
        )

    def weight_hashes(self) -> dict[str, str]:
        """Digests of GroundingDINO, of ReferDINO's head and of SAM 2, of those that are loaded."""
        hashes = dict(self.upstream.digest)
        if self.backend is not None:
            # The two folders may have the same name.
            hashes |= {f"sam2/{name}": digest for name, digest in self.backend.weight_hashes().items()}
        return hashes

    def planned_bytes(self, videos: Iterable[Size]) -> PlannedBytes | None:
        """Bytes of a cache of `videos` for each value of `masks`; None if a video's texts are not known."""
        tokenizer, caption = self.upstream.tokenizer, self.upstream.caption
        return planning.planned_bytes(
            videos,
            self.upstream.queries,
            self.channels,
            self.settings.masks,
            lambda text: len(tokenizer(caption(text))["input_ids"]),
        )

    def planned_memory(self, size: tuple[int, int], frames: int) -> int:
        """About how many bytes of memory `track` takes, the GPU's included, without the weights; masks=sam2: without SAM 2's."""
        upstream = self.upstream
        width = upstream.model.config.backbone_config.embed_dim
        return planning.planned_memory(size, frames, self.settings, upstream.queries, self.channels, width, MEMORY)

    def track(self, video: Video, expressions: Sequence[Expression]) -> TrackSet:
        """The tracks of one video, those of the first expression first. Equal captions are computed once."""
        captions = [self.upstream.caption(e.text) for e in expressions]
        different = list(dict.fromkeys(captions))
        # float32, whatever the caller's autocast: which queries survive must not depend on it.
        with torch.inference_mode(), torch.autocast(self.upstream.device.type, enabled=False):
            by_caption = dict(zip(different, self._texts(video, different)))
        of_text = [by_caption[caption] for caption in captions]
        masks = self._masks(video, different, by_caption)
        return self._track_set(video, of_text, [masks[caption] for caption in captions])

    def _texts(self, video: Video, captions: Sequence[str]) -> list[TextTracks]:
        """The tracked queries of each caption."""
        if not captions:
            return []
        settings, drawn = self.settings, 0.5 if self.settings.masks == "sam2" else 1.0
        total, done = len(video) * (FRAME_COST + TEXT_COST * len(captions)), 0.0

        def advance(cost: float) -> None:
            nonlocal done
            done += cost
            self.progress(drawn * done / total)

        with_head = settings.masks == "head"
        maps = FrameMaps(
            self.upstream,
            video,
            settings.short_side,
            settings.frames_per_pass,
            with_head,
            settings.resizing,
            lambda k: advance(k * FRAME_COST),
        )
        return [self._text(video, maps, caption, advance) for caption in captions]

    def _text(self, video: Video, maps: FrameMaps, caption: str, advance: Any) -> TextTracks:
        upstream, with_head = self.upstream, self.settings.masks == "head"
        memory = ArraySpool(MEMORY)
        outputs: list[tuple[Tensor, Tensor, Tensor]] = []
        for part in maps.parts:
            one = upstream.read(maps.levels(part), caption)
            outputs.append((one.hs.cpu(), one.reference.cpu(), one.text.cpu()))
            if with_head:
                for t, frame in zip(part, one.memory.cpu().numpy()):
                    memory[t] = frame.copy()
            advance(len(part) * TEXT_COST)
        hs, reference, text = (torch.cat(values) for values in zip(*outputs))
        for name, values in (("queries", hs), ("words", text)):
            check_float16(values, video, name)
        # From float16, as stored: a selector that aligns the stored queries again has the same order.
        places = self._places(hs.half(), text.half())
        hs, reference = (x.take_along_dim(places[..., None], 1) for x in (hs, reference))
        logits = (hs @ text.transpose(1, 2)).amax(-1)
        enhanced = self._enhanced(hs, text)
        boxes = upstream.boxes(enhanced.to(upstream.device), reference.to(upstream.device)).cpu()
        masks: Rows | None = None
        if with_head:
            assert upstream.head is not None
            masks = decoded_masks(upstream.head, maps, memory, enhanced, reference, text, video.size, self.settings.resizing)
        return TextTracks(
            tokens=_by_track(hs.half()),
            presence=_by_track(logits.sigmoid()),
            reference=_by_track(reference),
            boxes=_by_track(boxes),
            raw=_by_track(places.to(torch.int16)),
            words=text.half().numpy(),
            masks=masks,
        )

    def _places(self, hs: Tensor, text: Tensor) -> Tensor:
        """The place of each track among the queries of its frame, int64 (T, Q), of queries (T, Q, C) and words (T, L, C)."""
        settings = self.settings
        if settings.tracker == "none":
            return torch.arange(hs.shape[1]).repeat(len(hs), 1)
        return align(hs[None], text[None], alpha=settings.alpha, confidence=settings.confidence)[0]

    def _enhanced(self, hs: Tensor, text: Tensor) -> Tensor:
        """Tracked queries (T, Q, C) after the enhancer, if there is one and more than one frame, as in ReferDINO's training."""
        head, device = self.upstream.head, self.upstream.device
        if head is None or len(hs) == 1:
            return hs
        return head.enhance(hs[None].to(device), text[None, :, 0].to(device))[0].cpu()

    def _masks(self, video: Video, captions: Sequence[str], by_caption: dict[str, TextTracks]) -> dict[str, Rows]:
        """The masks of each caption."""
        kind, frames = self.settings.masks, len(video)
        if not captions:
            return {}
        boxes = [pixel_boxes(by_caption[caption].boxes, video.size) for caption in captions]
        if kind == "sam2":
            return dict(zip(captions, prompted_masks(self.backend, video, boxes, part_of(self.progress, 0.5, 1.0))))
        if kind == "box":
            return {caption: filled_boxes(of_text, video.size) for caption, of_text in zip(captions, boxes)}
        if kind == "none":
            return {caption: [[empty_rle(video.size)] * frames for _ in of_text] for caption, of_text in zip(captions, boxes)}
        return {caption: tracks.masks for caption, tracks in by_caption.items() if tracks.masks is not None}

    def _track_set(self, video: Video, of_text: Sequence[TextTracks], rows: Sequence[Rows]) -> TrackSet:
        """All tracks in the form that a cache stores."""
        q, t, c = self.upstream.queries, len(video), self.channels
        n = len(of_text) * q
        masks = RleMasks.from_bytes([row for of_one in rows for row in of_one], t, video.size)
        tokens, raw, probability, reference, boxes = (
            np.concatenate([np.zeros((0, t, *end), dtype), *(getattr(one, name) for one in of_text)])
            for name, end, dtype in (
                ("tokens", (c,), np.float16),
                ("raw", (), np.int16),
                ("presence", (), np.float32),
                ("reference", (4,), np.float32),
                ("boxes", (4,), np.float32),
            )
        )
        visible = masks.area() > 0
        # Frames with a mask come before the others.
        frames = np.where(visible, probability, probability - 1).argmax(1).astype(np.int32)
        prompts = pixel_boxes(boxes[np.arange(n), frames].reshape(n, 4), video.size)
        prompts[(prompts[:, 2:] <= prompts[:, :2]).any(1)] = 0
        ends = np.cumsum([0, *(one.words.shape[1] for one in of_text)])
        words = np.stack([ends[:-1], ends[1:]], 1).astype(np.int32).repeat(q, 0)
        text = np.concatenate([np.zeros((t, 0, c), np.float16), *(one.words for one in of_text)], 1)
        return TrackSet(
            tokens=tokens,
            presence=np.where(visible, probability, 0).astype(np.float16),
            masks=masks,
            prompt=np.arange(len(of_text), dtype=np.int32).repeat(q),
            origin=("query",) * n,
            prompt_frame=frames,
            prompt_box=prompts,
            features={"reference": reference, "raw": raw, "words": words, "text": text},
        )


def check_float16(values: Tensor, video: Video, name: str) -> None:
    """Raises InputError naming a frame whose values (T, ...) do not fit in float16."""
    # The comparison is false for NaN, too.
    bad = ~(values.abs().flatten(1).amax(1) < LARGEST)
    if bool(bad.any()):
        frame = video.frame_names[int(bad.int().argmax())]
        raise InputError(
            f"video {video.video_id}, frame {frame}: {name} of GroundingDINO are NaN or above {LARGEST:g} and do not fit in float16; "
            "check the frame and the checkpoint"
        )


def _by_track(values: Tensor) -> NDArray[Any]:
    """Values (Q, T, ...) of values (T, Q, ...)."""
    return values.transpose(0, 1).contiguous().numpy()
