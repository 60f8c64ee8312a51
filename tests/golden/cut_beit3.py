"""Cut tests/golden/beit3.safetensors, at most 1 MB with its tokens, from the recorded values of torchscale's BEiT-3.

    python tests/golden/cut_beit3.py SHARED/golden/beit3.safetensors

Whole are the inputs (but the frame of 320 pixels), the words and the class tokens; of vision every CHANNELS-th channel, of the base
size every CHANNELS-th patch too.
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

CHANNELS = 16


def main() -> None:
    out = {}
    for name, tensor in load_file(sys.argv[1]).items():
        if "320" in name:
            continue
        if name.endswith("vision"):
            tensor = tensor[:, :: CHANNELS if ".base." in name else 1, ::CHANNELS].contiguous()
        out[name] = tensor
    path = Path(__file__).with_name("beit3.safetensors")
    save_file(out, path)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
