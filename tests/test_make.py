"""`make extract`, the short form of rvos-cache extract-all: variables of make become its options."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

from rvos_cache.cli.extract import extract_all
from rvos_cache.settings import parse_overrides

ROOT = Path(__file__).parents[1]


def parsed_options(*arguments: str) -> dict[str, Any]:
    """The options of the command that `make extract` would run, read as the command reads them."""
    # Without MAKEFLAGS and variables of the make that runs these tests.
    clean = {"PATH": os.environ["PATH"]}
    command = ["make", "-n", "extract", *arguments]
    process = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=30, check=True)
    words = shlex.split(process.stdout[process.stdout.index("rvos-cache extract-all") :].replace("\\\n", " "))
    return dict(extract_all.make_context("extract-all", words[2:]).params)


def test_defaults() -> None:
    options = parsed_options()
    assert (options["dataset"], options["root"], options["tracker"]) == ("mevis", Path("data/mevis"), "flow")
    assert not any(options[name] for name in ("encoder", "splits", "overrides", "text_overrides", "corrupt", "budget", "out"))


def test_every_variable_reaches_the_command() -> None:
    options = parsed_options(
        "DATASET=plain", "ROOT=/videos", "TRACKER=sam2-grid", "ENCODER=roberta", "SPLIT=train valid_u", "CORRUPT=motion_blur:5",
        "SET=checkpoint=/models/sam2 prompt_every=half gpu_memory=4GB", "TEXT_SET=checkpoint=/models/roberta", "BUDGET=2GB",
    )  # fmt: skip
    assert (options["dataset"], options["root"], options["encoder"]) == ("plain", Path("/videos"), "roberta")
    assert (options["splits"], options["corrupt"], options["budget"]) == (("train", "valid_u"), "motion_blur:5", 2 * 10**9)
    expected = {"checkpoint": "/models/sam2", "prompt_every": "half", "gpu_memory": "4GB"}
    assert parse_overrides(options["overrides"]) == expected
    assert parse_overrides(options["text_overrides"]) == {"checkpoint": "/models/roberta"}


def test_a_model_that_may_be_on_a_gpu_runs_in_one_process() -> None:
    """Forked processes cannot share a GPU, and extraction refuses them."""
    assert [parsed_options(f"TRACKER={name}")["jobs"] for name in ("flow", "sam2-grid", "vita")] == [2, 1, 1]
    assert parsed_options("TRACKER=vita", "JOBS=3")["jobs"] == 3
