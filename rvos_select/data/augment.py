"""Augmentation of clips: one hook that changes pixels, masks and the sentence of an expression together.

An augmentation is a function `(Clip, torch.Generator) -> Clip`, named "package.module:function" in the training settings or one of
`AUGMENTATIONS`. It sees what a live model reads; tokens and features of a cache belong to the unchanged frames, and words to the
unchanged sentence, so a selector that reads what an augmentation may change is refused (see `check_augmentation`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.media.boxes import mask_boxes
from rvos_cache.plugins import resolve, resolve_function, type_text
from rvos_select.data.text_cues import WORD_PARTS


@dataclass(frozen=True)
class Clip:
    """The clip of one expression. pixels: uint8 (T, H, W, 3); truth: bool (A, T, H, W), masks of its objects; sentence.

    still: its frames are all one frame of the video, as those of an image dataset.
    """

    pixels: Tensor
    truth: Tensor
    sentence: str
    still: bool = False

    @property
    def boxes(self) -> Tensor:
        """float32 (A, T, 4): x0, y0, x1, y1 of each mask in pixels, x1 and y1 exclusive; zeros where an object is not visible."""
        return mask_boxes(self.truth)


Augmentation = Callable[[Clip, torch.Generator], Clip]


def keeps_sentence(augmentation: Augmentation) -> Augmentation:
    """Decorator of an augmentation that changes frames and masks and never the sentence; cached words stay true then."""
    augmentation.keeps_sentence = True  # type: ignore[attr-defined]
    return augmentation


def changes_sentence(name: str) -> bool:
    """Whether the augmentation `name` may change the sentence: unless it is declared with `keeps_sentence`."""
    return not getattr(resolve(AUGMENTATIONS, name, "augmentation"), "keeps_sentence", False)


AUGMENTATIONS = {
    name: f"rvos_select.data.augment_clips:{name}"
    for name in ("horizontal_flip", "horizontal_flip_frames", "crop_and_resize", "rotate_over_clip")
}


def load_augmentation(names: Sequence[str]) -> Augmentation | None:
    """The augmentations `names`, one after another; None for none. Raises InputError for what is no augmentation."""
    if not names:
        return None
    steps = {name: resolve_function(AUGMENTATIONS, name, "augmentation", ("clip", "generator")) for name in names}
    keeping = {name for name in names if not changes_sentence(name)}

    def augment(clip: Clip, generator: torch.Generator) -> Clip:
        for name in names:
            before, clip = clip, steps[name](clip, generator)
            if not isinstance(clip, Clip):
                raise InputError(
                    f"augmentation {name}: returned {type_text(clip)}, expected a Clip; see rvos_select.data.augment"
                )
            if name in keeping and clip.sentence != before.sentence:
                raise InputError(
                    f"augmentation {name}: is declared with keeps_sentence, and changed {before.sentence!r} to {clip.sentence!r}; "
                    "leave the declaration out"
                )
        return clip

    return augment


def check_augmentation(names: Sequence[str], selector: Any, clips: bool) -> None:
    """Raises InputError where augmented frames or sentences would meet cached values of the unchanged ones."""
    if not names:
        return
    if not clips:
        raise InputError("augment changes clips; --set batch=clip, or leave it out")
    # Parts of the words are those of the sentence, which the augmentations below keep.
    true_still = {"pixels", "truth"} if selector.encodes_text else {"pixels", "truth", *WORD_PARTS}
    cached = [name for name in selector.requires if name not in true_still]
    kind = type(selector).__name__
    if "pixels" not in selector.requires or cached:
        reason = f"it requires {cached[0]}" if cached else "it reads no pixels"
        raise InputError(
            f"augment changes frames, but {kind} also reads cached values of the unchanged ones ({reason}); leave augment out, or "
            "train on the split's mirror image"
        )
    changing = [name for name in names if changes_sentence(name)]
    if changing and not selector.encodes_text:
        flip = "; horizontal_flip_frames flips and keeps it" if "horizontal_flip" in changing else ""
        raise InputError(
            f"augment: {changing[0]} changes the sentence, but {kind} reads cached words of the unchanged one; leave it out{flip} (a "
            "function of your own that changes frames alone is declared with rvos_select.data.augment.keeps_sentence)"
        )
