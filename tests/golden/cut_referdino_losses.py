"""Cut tests/golden/referdino_losses.safetensors from part e of the recorded values of ReferDINO's released modules.

    python tests/golden/cut_referdino_losses.py SHARED/golden/referdino.safetensors

Together with referdino.safetensors it has at most 1 MB: all of the last layer, and of the encoder what does not need its masks. The
truth's masks are packed, eight pixels in a byte.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

PACKED = ("e.truth.masks", "e.truth.real")
MASKS = "e.interm.masks"


def main() -> None:
    out = {name: tensor for name, tensor in load_file(sys.argv[1]).items() if name.startswith("e.") and name != MASKS}
    out |= {name: np.packbits(out[name], axis=-1) for name in PACKED}
    path = Path(__file__).with_name("referdino_losses.safetensors")
    save_file(out, path)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
