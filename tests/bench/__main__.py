"""`make bench`: every benchmark that finds its data, one after the other, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Run them; the first failure's status."""
    real = Path(os.environ.get("RVOS_REAL_DATA", HERE.parents[2] / "shared" / "data"))
    status = 0
    for script, needs in (
        ("sola_grouped.py", None),
        ("dmvs_memory.py", None),
        ("ssa_step.py", None),
        ("referdino_step.py", None),
        ("dervos_step.py", None),
        ("sam2_bench.py", None),
        ("store_bench.py", real),
        ("flow_davis.py", real),
        ("evaluate_bench.py", real),
    ):
        print(f"== {script}", flush=True)
        if needs is not None and not needs.is_dir():
            print(f"left out: no real data at {needs}; set RVOS_REAL_DATA")
            continue
        words = [str(needs)] if script in ("store_bench.py", "evaluate_bench.py") else []
        done = subprocess.run([sys.executable, str(HERE / script), *words], check=False)
        status = status or done.returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
