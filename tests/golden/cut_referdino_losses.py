"""Cut tests/golden/referdino_losses.safetensors from the recorded values of ReferDINO's released modules: part e, whole.

python tests/golden/cut_referdino_losses.py SHARED/golden/referdino.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import load_file, save_file


def main() -> None:
    out = {name: tensor for name, tensor in load_file(sys.argv[1]).items() if name.startswith("e.")}
    path = Path(__file__).with_name("referdino_losses.safetensors")
    save_file(out, path)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
