"""Cut tests/golden/referdino.safetensors, at most 1 MB, from the recorded values of ReferDINO's released modules.

    python tests/golden/cut_referdino.py SHARED/golden/referdino.safetensors SHARED/golden/referdino.json

Outputs are cut along their axes, see `golden_referdino.cut`; of part g the first frame fits. It also writes
tests/golden/referdino_names.txt: group, name and shape of each released tensor that the parts need.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

CASES = ("a1", "b1", "b3", "c1", "c3", "d3", "f", "f0", "f1", "f2", "f3", "g")
INPUTS = (
    "hidden", "memory", "real", "reference", "valid_ratios", "text", "text_mask", "queries", "sentence", "map4", "map8", "map16",
    "map32", "images", "input_ids",
)  # fmt: skip
CHANNELS = 8


def main() -> None:
    out = {}
    for name, tensor in load_file(sys.argv[1]).items():
        case, _, what = name.partition(".")
        if case not in CASES:
            continue
        if case == "g" and what != "input_ids":
            tensor = tensor[:1]
        is_input = what in INPUTS and (case != "g" or what == "images")
        if not is_input and tensor.is_floating_point() and 256 in tensor.shape[-1:]:
            tensor = tensor[..., ::CHANNELS]
        if case == "g" and what.startswith("map"):
            tensor = tensor[:, :: 4 * CHANNELS]
        out[name] = tensor.contiguous()
    path = Path(__file__).with_name("referdino.safetensors")
    save_file(out, path)
    print(f"{path}: {path.stat().st_size} bytes")
    groups = json.loads(Path(sys.argv[2]).read_text("utf-8"))["weights"]
    lines = [" ".join([group, name, *map(str, shape)]) for group, shapes in groups.items() for name, shape in shapes.items()]
    path.with_name("referdino_names.txt").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
