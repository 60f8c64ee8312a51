"""From mask logits at stride 4 to the pixels of frames and images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def upsampled(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks bool (T, Q, H, W) of logits (T, Q, h, w), bilinear to size (H, W); pixels whose logit is above 0.

    The logits are stretched over the whole frame, also where its sides are no multiples of 4 (`eval/inference_mevis.py`).
    """
    out = torch.empty((*mask_logits.shape[:2], *size), dtype=torch.bool, device=mask_logits.device)
    # Frame by frame: the logits of a whole video would take gigabytes.
    for t, logits in enumerate(mask_logits):
        if len(logits):
            out[t] = F.interpolate(logits[None].float(), size=size, mode="bilinear", align_corners=False)[0] > 0
    return out


def image_masks(mask_logits: Tensor, padded: tuple[int, int], resized: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Masks bool (Q, H, W) of the logits (Q, h, w) of an image that was resized, then padded at its right and lower side.

    padded, resized, original: sizes (height, width); the result has the last. Logits are upsampled to the padded size and cut at
    0, the padding is removed, and the mask is resized by nearest (`A2DSentencesPostProcess` of the released code).
    """
    masks = upsampled(mask_logits[None], padded)[0, :, : resized[0], : resized[1]]
    return F.interpolate(masks[None].float(), size=original, mode="nearest")[0] > 0.5
