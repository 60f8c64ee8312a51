"""SAM 2 as a plain script over transformers runs it: objects one by one, frames encoded as they are needed.

Batches of objects and stored features are compared with it, in tests and in the benchmark. `as_meta` replaces what transformers'
port computes differently from Meta's package; that the result is Meta's is tested with recorded values (test_sam2_golden.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def video_values(frame: NDArray[np.uint8], side: int) -> Tensor:
    """(3, S, S), by the steps of Meta's video predictor: resized with Pillow, then normalised."""
    return _normalised(np.asarray(Image.fromarray(frame).resize((side, side))) / 255.0)


def image_values(frame: NDArray[np.uint8], side: int) -> Tensor:
    """(3, S, S), by the steps of Meta's image predictor: resized as floating pixels with antialiasing, then normalised."""
    pixels = torch.tensor(frame / 255.0, dtype=torch.float32).permute(2, 0, 1)[None]
    resized = interpolate(pixels, (side, side), mode="bilinear", antialias=True)[0]
    return _normalised(resized.permute(1, 2, 0).numpy())


def _normalised(pixels: NDArray[np.floating]) -> Tensor:
    return torch.tensor((pixels - np.array(MEAN)) / np.array(STD), dtype=torch.float32).permute(2, 0, 1)


@contextmanager
def as_meta(model: Any) -> Iterator[None]:
    """Give a Sam2VideoModel the pointer and the memory of prompt frames that Meta's package computes."""
    use_mask, single_frame = model._use_mask_as_output, model._single_frame_forward

    def patched(*inputs: Any) -> Any:
        model._single_frame_forward = partial(single_frame, multimask_output=False)
        output = use_mask(*inputs)
        model._single_frame_forward = single_frame
        size = output.high_res_masks.shape[-2:]
        output.high_res_masks = interpolate(output.pred_masks, size, mode="bilinear", align_corners=False)
        return output

    model._use_mask_as_output = patched
    try:
        yield
    finally:
        # Both were attributes of the class.
        del model._use_mask_as_output
        model.__dict__.pop("_single_frame_forward", None)


def plain_tracks(
    model: Any, frames: Sequence[NDArray[np.uint8]], t: int, masks: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Tokens (B, T, C), score logits (B, T) and pixels (B, T, H, W) of the mask prompts (B, H, W) of frame t."""
    from transformers import Sam2VideoInferenceSession

    size, side = frames[0].shape[:2], model.config.image_size
    session = Sam2VideoInferenceSession(
        video=torch.stack([video_values(f, side) for f in frames]).to(model.device),
        video_height=size[0], video_width=size[1], dtype=torch.float32, inference_device=model.device,
    )  # fmt: skip
    for b, mask in enumerate(torch.tensor(masks)):
        resized = interpolate(mask[None, None].float(), (side, side), mode="bilinear", antialias=True)
        session.add_mask_inputs(session.obj_id_to_idx(b), t, (resized >= 0.5).float().to(model.device))
    session.obj_with_new_inputs = list(range(len(masks)))
    pixels = np.zeros((len(masks), len(frames), *size), bool)
    scores = np.zeros((len(masks), len(frames)), np.float32)
    with as_meta(model), torch.inference_mode():
        # The prompt frame first: otherwise the second object would be tracked forward in the pass that goes backward.
        model(session, frame_idx=t)
        for backward in (False, True):
            for output in model.propagate_in_video_iterator(session, start_frame_idx=t, reverse=backward):
                logits = interpolate(output.pred_masks.float(), size, mode="bilinear", align_corners=False)[:, 0]
                pixels[:, output.frame_idx] = (logits > 0).cpu().numpy()
                scores[:, output.frame_idx] = output.object_score_logits[:, 0].float().cpu().numpy()
    tokens = np.stack([_pointers(session.output_dict_per_obj[b], len(frames)) for b in range(len(masks))])
    return tokens, scores, pixels


def _pointers(outputs: dict[str, dict[int, dict[str, Tensor]]], frames: int) -> NDArray[np.float32]:
    by_frame = outputs["cond_frame_outputs"] | outputs["non_cond_frame_outputs"]
    return np.stack([by_frame[t]["object_pointer"].reshape(-1).float().cpu().numpy() for t in range(frames)])
