"""The images that the refiner is trained on, each with one expression and the masks of its objects.

Letters: B images, A objects of an expression, H W pixels, S the side of BEiT-3's frame, L words.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rvos_cache.datasets import Dataset
from rvos_cache.errors import InputError
from rvos_cache.media.resize import resize_frame
from rvos_cache.system.progress import tracked
from rvos_cache.text.beit3.encoder import pad_ids, tokenise
from rvos_cache.text.beit3.tokenizer import Beit3Tokenizer
from rvos_cache.trackers.mask2former.geometry import square_geometry
from rvos_cache.tuning.clips import ATTEMPTS, KEPT, check_ground_truth
from rvos_cache.types import Expression, GroundTruth, Words
from rvos_select.data.text_cues import word_parts
from rvos_select.selectors.dmvs.masks import in_input
from rvos_select.tuning.refiner_settings import RefinerSettings


@dataclass(frozen=True)
class TuneImage:
    """An image and an expression.

    pixels: float32 (3, side, side), DVIS++'s input; frame: uint8 (S, S, 3), BEiT-3's; truth: float32 (A, 1, side, side), the visible
    objects of the expression, 0 and 1; words: without vectors; name: video, frame and expression, for errors.
    """

    pixels: Tensor
    frame: Tensor
    truth: Tensor
    words: Words
    name: str


@dataclass(frozen=True)
class ImageBatch:
    """Images of a step.

    pixels: (B, 3, side, side); frames: uint8 (B, S, S, 3); ids: int64 (B, L); word_mask, is_word, motion_words: bool (B, L); truth: of
    each image, as in `TuneImage`.
    """

    pixels: Tensor
    frames: Tensor
    ids: Tensor
    word_mask: Tensor
    is_word: Tensor
    motion_words: Tensor
    truth: tuple[Tensor, ...]


class ImageSource:
    """All expressions with a target of some datasets, and a frame of each: the image, or of a video one that shows a target.

    Raises InputError for a split without ground truth or without a target.
    """

    def __init__(self, datasets: Sequence[Dataset], settings: RefinerSettings, tokenizer: Beit3Tokenizer) -> None:
        self.datasets, self.settings, self.tokenizer = datasets, settings, tokenizer
        self.items: list[tuple[int, Expression]] = []
        self._truth = lru_cache(KEPT)(lambda number, video_id: datasets[number].ground_truth(video_id))
        # Data sets are not made for several threads; nor is the tagger; only pictures, one file each, are read by
        # several.
        self._one_at_a_time = Lock()
        for number, dataset in enumerate(datasets):
            where = check_ground_truth(dataset)
            own = [e for video_id in tracked(dataset.video_ids(), "list") for e in dataset.expressions(video_id) if e.targets]
            if not own:
                raise InputError(f"{where}: no expression has a target; give another --split")
            self.items += [(number, expression) for expression in own]

    def __len__(self) -> int:
        return len(self.items)

    def image(self, number: int, generator: torch.Generator) -> TuneImage:
        """The image of item `number`, or of another one if no frame of it shows a target. Raises InputError after 100 such items."""
        for _ in range(ATTEMPTS):
            at, expression = self.items[number]
            with self._one_at_a_time:
                truth = self._truth(at, expression.video_id)
            assert truth is not None and expression.targets is not None
            objects = truth.indices(expression.targets)
            shown = np.flatnonzero((truth.masks.area()[objects] > 0).any(0) & truth.annotated)
            if len(shown):
                t = int(shown[int(torch.randint(len(shown), (), generator=generator))])
                return self._read(self.datasets[at], expression, truth, objects, t)
            number = int(torch.randint(len(self.items), (), generator=generator))
        raise InputError(
            f"{self.datasets[0].root}: none of {ATTEMPTS} expressions has a frame that shows its objects; check the masks"
        )

    def _read(self, dataset: Dataset, expression: Expression, truth: GroundTruth, objects: Sequence[int], t: int) -> TuneImage:
        settings = self.settings
        with self._one_at_a_time:
            video = dataset.video(expression.video_id)
        geometry = square_geometry(video.size, settings.side)
        with nullcontext() if len(video.files) == len(video) else self._one_at_a_time:
            frame: NDArray[np.uint8] = video.read(t)
        masks = np.stack([truth.masks.decode(a, t) for a in objects])
        masks = masks[masks.any((1, 2))]
        side = settings.config.side
        small = resize_frame(frame, (side, side), Image.Resampling[settings.config.resample.upper()])
        with self._one_at_a_time:
            ((ids, spans, tags),) = tokenise(self.tokenizer, [expression.text], settings.beit3)
        return TuneImage(
            geometry.image(frame),
            torch.from_numpy(small.copy()),
            in_input(torch.from_numpy(masks)[:, None], geometry),
            Words(np.zeros((len(ids), 0), np.float16), spans, tags, ids),
            f"video {expression.video_id}, frame {video.frame_names[t]}, expression {expression.expression_id}",
        )


def collate(images: Sequence[TuneImage], settings: RefinerSettings, device: torch.device) -> ImageBatch:
    """The images in one batch on `device`."""
    words = [image.words for image in images]
    ids, mask = pad_ids([own.ids for own in words if own.ids is not None])
    parts = ["spans", "motion_words", *(("particle_words",) if settings.config.cues == "particles" else ())]
    cues = word_parts(words, [settings.beit3.tagger] * len(words), ids.shape[1], parts)
    is_word = mask & (cues["spans"][..., 1] > cues["spans"][..., 0])
    motion = cues["motion_words"] | cues.get("particle_words", False)
    return ImageBatch(
        torch.stack([image.pixels for image in images]).to(device),
        torch.stack([image.frame for image in images]).to(device),
        ids.to(device),
        mask.to(device),
        is_word.to(device),
        (motion & is_word).to(device),
        tuple(image.truth.to(device) for image in images),
    )
