"""SAM 2 as a plain script over transformers runs it: what the tracker is compared with, in tests and in the benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixel_values(frame: NDArray[np.uint8], side: int) -> Tensor:
    """(3, S, S), by the steps of transformers' image processor: resized as bytes, with antialiasing, then normalised."""
    whole = torch.tensor(frame).permute(2, 0, 1)[None]
    small = interpolate(whole, (side, side), mode="bilinear", antialias=True)[0] / 255
    return (small - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def plain_tracks(
    model: Any, frames: Sequence[NDArray[np.uint8]], t: int, masks: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Tokens (B, T, C), score logits (B, T) and pixels (B, T, H, W) of the mask prompts (B, H, W) of frame t.

    A session of the library's own for this batch: frames are encoded as they are needed and objects run one by one.
    """
    from transformers import Sam2VideoInferenceSession

    size, side = frames[0].shape[:2], model.config.image_size
    session = Sam2VideoInferenceSession(
        video=torch.stack([pixel_values(f, side) for f in frames]), video_height=size[0], video_width=size[1], dtype=torch.float32
    )
    for b, mask in enumerate(torch.tensor(masks)):
        small = interpolate(mask[None, None].float(), (side, side), mode="bilinear", antialias=True)
        session.add_mask_inputs(session.obj_id_to_idx(b), t, (small >= 0.5).float())
    session.obj_with_new_inputs = list(range(len(masks)))
    pixels = np.zeros((len(masks), len(frames), *size), bool)
    scores = np.zeros((len(masks), len(frames)), np.float32)
    # The prompt frame first: otherwise the second object would be followed forward in the pass that goes backward.
    answers = [model(session, frame_idx=t)]
    for backward in (False, True):
        for answer in model.propagate_in_video_iterator(session, start_frame_idx=t, reverse=backward):
            answers.append(answer)
            drawn = interpolate(answer.pred_masks, size, mode="bilinear", align_corners=False)[:, 0]
            pixels[:, answer.frame_idx] = (drawn > 0).numpy()
            scores[:, answer.frame_idx] = answer.object_score_logits[:, 0].numpy()
    tokens = np.stack([_pointers(session.output_dict_per_obj[b], len(frames)) for b in range(len(masks))])
    return tokens, scores, pixels


def _pointers(outputs: dict[str, dict[int, dict[str, Tensor]]], frames: int) -> NDArray[np.float32]:
    held = outputs["cond_frame_outputs"] | outputs["non_cond_frame_outputs"]
    return np.stack([held[t]["object_pointer"].reshape(-1).numpy() for t in range(frames)])
