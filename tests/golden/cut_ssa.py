"""Cut tests/golden/ssa.safetensors, at most 1 MB, from the recorded values of SSA's released modules.

    python tests/golden/cut_ssa.py SHARED/golden/ssa.safetensors

Outputs are cut along their axes, see `golden_ssa.cut`; of the losses those of the frame decoder fit.
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

KEPT = (
    "sentence", "words", "word_mask", "text", "stage0", "stage1", "stage2", "stage3", "w.images", "c2.queries", "c2.text",
    "c2.order", "c2.weights", "e.frame_logits", "e.frame_masks", "e.A3.truth", "e.A1.truth", "e.A0.truth", "e.points120",
    "e.points360", "e.points30", "a.text_projection",
)  # fmt: skip
SCALARS = ("frame_class", "frame_bce", "frame_dice")
CHANNELS, QUERIES = 8, 2


def main() -> None:
    tensors = load_file(sys.argv[1])
    out = {name: tensors[name] for name in KEPT}
    out |= {f"e.A{n}.{name}": tensors[f"e.A{n}.{name}"] for n in (3, 1, 0) for name in SCALARS}
    for i in range(4):
        out[f"w.stage{i}"] = tensors[f"w.stage{i}"][:, ::CHANNELS].contiguous()
    for name in ("p.level0", "p.level1", "p.level2", "p.mask_features", "p.map"):
        out[name] = tensors[name][:, ::CHANNELS].contiguous()
    out["p.text"] = tensors["p.text"]
    out["b.logits"] = tensors["b.logits"]
    out["b.masks"] = tensors["b.masks"][:, :, ::QUERIES, ::3, ::3].contiguous()
    out["b.queries"] = tensors["b.queries"][:, :, ::QUERIES, ::CHANNELS].contiguous()
    for name in ("c2.linked", "c2.frame_embed", "c2.enhanced", "c2.q_v", "c2.layers", "c2.mask_embed", "c2.clip_embed"):
        out[name] = tensors[name][..., ::CHANNELS].contiguous()
    out["c2.logits"] = tensors["c2.logits"]
    path = Path(__file__).with_name("ssa.safetensors")
    save_file(out, path)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
