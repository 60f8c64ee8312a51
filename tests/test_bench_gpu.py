"""`python -m tests.bench.gpu` where there is no GPU: every line is there, and SOLA's steps read nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ABSENT = "SAM 2, Meta's package"


@pytest.mark.slow
def test_every_measurement_has_a_line() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-m", "tests.bench.gpu"]
    run = subprocess.run(words, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert "no GPU on this machine" in run.stdout and lines[0]["shapes"] == "tiny"
    assert {line["what"] for line in lines if "failed" in line} <= {ABSENT}
    sola = [line for line in lines if "host_reads_per_step" in line and line["what"].startswith("SOLA")]
    assert len(sola) == 6 and {line["host_reads_per_step"] for line in sola} == {0}
    assert [line["what"] for line in lines if line["what"].startswith("MeViS")] and lines[-1]["what"] == "all"
