"""The names of SSA's released checkpoint (detectron2's format) and of this module: one prefix each, the rest is the same."""

from __future__ import annotations

PREFIXES = {
    "backbone.stage_adapter_layers.": "adapters.",
    "sem_seg_head.pixel_decoder.": "pixel_decoder.",
    "sem_seg_head.predictor.": "frame_decoder.",
    "vita_module.vita_mask_features.": "mask_features.",
    "vita_module.": "video.",
    "resizer.": "text_projection.",
}
"""Released prefix -> prefix here, the longer of two that fit first."""
CLIP = "backbone.clip_model."
"""Prefix of frozen CLIP's tensors, which `rvos-cache convert-clip` reads."""
UNREAD = ("criterion.empty_weight", "vita_criterion.empty_weight")
"""Buffers of the released losses."""


def from_official(name: str) -> str | None:
    """The name here of a released tensor; None for one that is none of this module's."""
    for official, own in PREFIXES.items():
        if name.startswith(official):
            return own + name.removeprefix(official)
    return None


def to_official(name: str) -> str:
    """The released name of a tensor of this module. Raises KeyError for a name that has none."""
    for official, own in PREFIXES.items():
        if name.startswith(own):
            return official + name.removeprefix(own)
    raise KeyError(name)
