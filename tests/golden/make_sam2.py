"""Record what Meta's SAM 2 returns for the inputs of tests/golden/sam2.safetensors, at a small size with weights made by a rule.

    python tests/golden/make_sam2.py [--out tests/golden/sam2.safetensors]

Needs Meta's package (`sam2` 1.1.0 of the package index has the same files as facebookresearch/sam2, commit 2b90b9f) and
torchvision; nothing else of the project's tests does. Float32, CPU, one thread. Prints the differences from the values recorded
before. The model is Hiera-T with an input of 128 pixels; Meta's image predictor assumes 1024, so its map sizes are replaced.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "cache"))
sys.path.insert(0, str(Path(__file__).parents[2]))

from golden_sam2 import FOLDER, GRID, PROMPT_FRAME, SIDE, VERSIONS, golden, golden_model, unpack
from sam2 import build_sam
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2.utils.transforms import SAM2Transforms

from rvos_cache.trackers.sam2.names import to_meta
from rvos_cache.trackers.sam2.official import image_size_overrides, quiet

WIDE = (96, 160)
"""Height and width of the frame of `wide_grid` and `boxes`: not square, and not the model's size."""
BOXES = ((12, 10, 70, 60), (90, 30, 150, 88), (-14.5, 40, 60, 120), (30, -20, 200, 50), (170, 100, 190, 130), (0, 0, 160, 96))
"""x0 y0 x1 y1; three reach beyond the frame, one of them lies outside."""


def wide_frame() -> NDArray[np.uint8]:
    """(96, 160, 3): two ellipses on a ground of gradients and noise."""
    y, x = np.mgrid[: WIDE[0], : WIDE[1]]
    noise = np.random.default_rng(5).integers(0, 40, (*WIDE, 3))
    frame = np.stack([x, 160 - x, 2 * y], -1) + noise
    frame[((x - 45) / 28) ** 2 + ((y - 38) / 20) ** 2 < 1] = (220, 60, 30)
    frame[((x - 120) / 24) ** 2 + ((y - 60) / 26) ** 2 < 1] = (30, 70, 210)
    return frame.clip(0, 255).astype(np.uint8)


def meta_model(version: str) -> Any:
    """Meta's video predictor with the weights of `golden_model(version)`."""
    config = f"configs/{version.removesuffix('.0')}/{version.removesuffix('.0')}_hiera_t.yaml"
    overrides = image_size_overrides(SIDE)
    model = build_sam.build_sam2_video_predictor(config, None, device="cpu", hydra_overrides_extra=overrides)
    model.load_state_dict(to_meta(golden_model(version).state_dict(), model.state_dict()))
    # Hole filling needs the package's CUDA extension.
    model.fill_hole_area = 0
    return model.eval()


def record_video(model: Any, frames: NDArray[np.uint8], masks: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """Tracks of the masks of the prompt frame, forward, then backward."""
    out: dict[str, list[Any]] = {"pointers": [], "score_logits": [], "low_res_logits": []}
    pixels = np.zeros((len(masks), *frames.shape[:3]), bool)
    with tempfile.TemporaryDirectory() as folder, quiet():
        for t, frame in enumerate(frames):
            # The package requires names in .jpg but reads any format.
            Image.fromarray(frame).save(Path(folder) / f"{t:05d}.jpg", format="PNG")
        state = model.init_state(folder)
        for i, mask in enumerate(masks):
            model.add_new_mask(state, frame_idx=PROMPT_FRAME, obj_id=i, mask=mask)
        for backward in (False, True):
            for t, _, logits in model.propagate_in_video(state, start_frame_idx=PROMPT_FRAME, reverse=backward):
                pixels[:, t] = (logits[:, 0] > 0).numpy()
    for i in range(len(masks)):
        kinds = state["output_dict_per_obj"][i]
        outputs = [kinds["cond_frame_outputs"].get(t) or kinds["non_cond_frame_outputs"][t] for t in range(len(frames))]
        out["pointers"].append(np.stack([o["obj_ptr"][0].numpy() for o in outputs]))
        out["score_logits"].append(np.stack([o["object_score_logits"].reshape(()).numpy() for o in outputs]))
        out["low_res_logits"].append(np.stack([o["pred_masks"][0, 0].numpy() for o in outputs]))
    return {**{name: np.stack(values) for name, values in out.items()}, "masks": np.packbits(pixels, -1)}


def small_maps(predictor: SAM2ImagePredictor) -> SAM2ImagePredictor:
    """The image predictor, for a model of SIDE pixels."""
    predictor._bb_feat_sizes = [(SIDE // part, SIDE // part) for part in (4, 8, 16)]
    return predictor


def record_grid(model: Any, frame: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Masks of the automatic generator."""
    generator = SAM2AutomaticMaskGenerator(
        model, points_per_side=GRID["points_per_side"], pred_iou_thresh=GRID["predicted_iou"],
        stability_score_thresh=GRID["stability"], box_nms_thresh=GRID["nms_iou"],
    )  # fmt: skip
    small_maps(generator.predictor)
    records = generator.generate(frame)
    return {
        "masks": np.packbits(np.stack([r["segmentation"] for r in records]), -1),
        "predicted_iou": np.array([r["predicted_iou"] for r in records], np.float32),
        "stability": np.array([r["stability_score"] for r in records], np.float32),
    }


def record_prompts(model: Any, frame: NDArray[np.uint8], **prompts: Any) -> dict[str, NDArray[Any]]:
    """Outputs of the image predictor for points or boxes."""
    images = small_maps(SAM2ImagePredictor(model))
    images.set_image(frame)
    if "box" in prompts:
        masks, iou, low = images.predict(**prompts)
        return {"masks": np.packbits(masks[:, 0] > 0, -1), "predicted_iou": iou[:, 0], "low_res_logits": low[:, 0]}
    rows = [images.predict(point_coords=p[None], point_labels=np.ones(1), **prompts) for p in prompts.pop("points")]
    return {"predicted_iou": np.stack([r[1] for r in rows]), "low_res_logits": np.stack([r[2] for r in rows])}


def record() -> dict[str, NDArray[Any]]:
    """Every tensor of the file."""
    known = golden()
    inputs = {f"input.{name}": known[f"input.{name}"].numpy() for name in ("frames", "prompt_masks", "grid_frame", "points")}
    frames, wide, boxes = inputs["input.frames"], wide_frame(), np.array(BOXES, np.float32)
    inputs["input.wide_frame"], inputs["input.boxes"] = wide, boxes
    inputs["input.frames_resized"] = np.stack([np.array(Image.fromarray(f).resize((SIDE, SIDE))) for f in frames[:1]])
    out = dict(inputs)
    out["output.wide_frame_rows"] = SAM2Transforms(SIDE, 0.0)(wide)[:, ::8].numpy()
    masks = unpack(known["input.prompt_masks"])
    for version in VERSIONS:
        model = meta_model(version)
        parts = {
            "": record_video(model, frames, masks),
            "grid.": record_grid(model, inputs["input.grid_frame"]),
            "wide_grid.": record_grid(model, wide),
            "points.": record_prompts(model, inputs["input.grid_frame"], points=inputs["input.points"]),
            "boxes.": record_prompts(model, wide, box=boxes, multimask_output=False),
        }
        out |= {f"output.{version}.{part}{name}": v for part, values in parts.items() for name, v in values.items()}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER / "sam2.safetensors")
    options = parser.parse_args()
    torch.set_num_threads(1)
    from safetensors.numpy import save_file

    with torch.inference_mode():
        recorded = record()
    for name, tensor in golden().items():
        if name in recorded:
            before, now = tensor.numpy().astype(np.float64), recorded[name].astype(np.float64)
            print(
                f"{name}: {np.abs(before[: len(now)] - now).max() if before[: len(now)].shape == now.shape else 'shape differs'}"
            )
    save_file({name: np.ascontiguousarray(value) for name, value in recorded.items()}, options.out)
    print(f"{options.out}: {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
