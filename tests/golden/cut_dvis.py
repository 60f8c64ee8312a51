"""Cut tests/golden/dvis.safetensors, at most 1 MB, and dvis_names.txt from the recorded values of DVIS++'s released modules.

    python tests/golden/cut_dvis.py SHARED/golden

Outputs are cut along their axes, see `golden_dvis.cut`; of the mask features every sixth cell is kept.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

KEPT = (
    "input.reid.q", "input.queries", "input.raw", "input.scores.refiner_logits", "input.scores.tracker_logits",
    "input.adapter.images", "output.tracker.logits", "output.tracker.order", "output.refiner.logits",
    "output.one_frame.refiner.logits", "output.scores",
)  # fmt: skip
CHANNELS_LAST = (
    "output.reid.queries", "output.reid.raw", "output.tracker.embeds", "output.refiner.embeds", "output.refiner.mask_embed",
    "output.one_frame.tracker.embeds", "output.one_frame.refiner.embeds",
)  # fmt: skip
CELLS = ("input.mask_features", "output.refiner.P_mask")
STEP = 16


def main() -> None:
    folder = Path(sys.argv[1])
    tensors = load_file(folder / "dvis.safetensors")
    out = {name: tensors[name] for name in KEPT}
    out |= {name: tensors[name][..., ::STEP].contiguous() for name in CHANNELS_LAST}
    out |= {name: tensors[name][..., ::2, ::3].contiguous() for name in CELLS}
    out |= {f"output.adapter.stride{s}": tensors[f"output.adapter.stride{s}"][:, ::48].contiguous() for s in (4, 8, 16, 32)}
    path = Path(__file__).with_name("dvis.safetensors")
    save_file(out, path)
    card = json.loads((folder / "dvis.json").read_text("utf-8"))
    lines = [" ".join(map(str, (name, *shape))) for name, shape in {**card["weights"], **card["weights_unchanged"]}.items()]
    path.with_name("dvis_names.txt").write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{path}: {path.stat().st_size} bytes, {len(lines)} names")


if __name__ == "__main__":
    main()
