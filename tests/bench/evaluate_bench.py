"""`evaluate` beside the official procedure: the same predictions, one process and one thread each, in one run.

OSVOS's tracks of ten DAVIS-2017 videos answer the 25 expressions of the same videos in MeViS's layout: each expression's objects
by their tracks, OR-ed. They are read as PNGs, and straight from a selections file and its cache. The second table has each
expression three times, answered by its own objects and by the video's other choices in turn: MeViS too has several sentences
for the same objects, and what equal targets and equal answers share is worked out once.

Run: OMP_NUM_THREADS=1 python tests/bench/evaluate_bench.py [DATA] [--golden FILE]
--golden writes J and F of every expression by the official procedure (tests/select/golden_osvos.json) and ends.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rvos_select.evaluation import evaluate_pngs, evaluate_selections
from rvos_select.merging.merge import merge

HERE = Path(__file__).resolve().parent
GOALS = {"PNGs": 4, "selections": 8}
COPIES = (1, 3)


def timed(step: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of this process, which other processes on the machine hardly change."""
    start = time.process_time()
    result = step()
    return time.process_time() - start, result


def measure(data: Path, work: Path, copies: int, golden: Path | None = None) -> None:
    """Print a line for each route. Raises AssertionError where its scores are not the official procedure's to 1e-9."""
    sys.path.insert(0, str(HERE.parent / "select"))
    import plain_scores
    from osvos import write_osvos

    osvos = write_osvos(data, work, copies)
    pngs = merge(osvos.selections, [osvos.cache], work / "png")
    meta, masks = (json.loads((osvos.root / "valid_u" / f).read_text()) for f in ("meta_expressions.json", "mask_dict.json"))
    spent, plain = timed(lambda: plain_scores.evaluate(pngs, meta["videos"], masks))
    if golden is not None:
        write_golden(golden, plain)
        return
    frames = sum(len(v["frames"]) * len(v["expressions"]) for v in meta["videos"].values())
    print(f"{len(plain)} expressions, {frames} frames; official procedure {1e3 * spent / frames:.2f} ms a frame")
    routes: dict[str, Callable[[], Any]] = {
        "PNGs": lambda: evaluate_pngs("mevis", osvos.root, "valid_u", pngs),
        "selections": lambda: evaluate_selections(osvos.selections, [osvos.cache], root=osvos.root),
    }
    for route, step in routes.items():
        seconds, scores = timed(step)
        rows = scores["expressions"]
        assert rows.keys() == plain.keys()
        apart = max(abs(rows[key][m] - plain[key][i]) for key in plain for i, m in enumerate("jf"))
        assert apart < 1e-9, apart
        times = spent / seconds
        verdict = f"goal {GOALS[route]} {'met' if times >= GOALS[route] else 'missed'}"
        print(
            f"  {route:10s} {1e3 * seconds / frames:6.3f} ms, {times:5.1f} times as fast, {verdict}; "
            f"largest difference {apart:.0e}"
        )


def write_golden(path: Path, plain: dict[str, tuple[float, float]]) -> None:
    """The numbers and how they were made."""
    origin = (
        "python tests/bench/evaluate_bench.py --golden: plain_scores.evaluate (DAVIS-2017's own code written out again) on "
        "OSVOS's masks of davis17-osvos-tracks against mevis-davis; means over frames, then expressions"
    )
    means = {m: float(np.mean([row[i] for row in plain.values()])) for i, m in enumerate("jf")}
    content = {"made": origin, **means, "expressions": {key: {"j": a, "f": b} for key, (a, b) in plain.items()}}
    path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    """Measure, or write the golden numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=HERE.parents[2] / "shared/data")
    parser.add_argument("--golden", type=Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    for copies in COPIES[: 1 if arguments.golden else None]:
        with tempfile.TemporaryDirectory() as work:
            measure(arguments.data.resolve(), Path(work), copies, arguments.golden)


if __name__ == "__main__":
    main()
