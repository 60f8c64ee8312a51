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


def words_of(program: str, *arguments: str) -> list[str]:
    """The words after `program` in the command line that `make` would run, as the shell splits them."""
    # Without MAKEFLAGS and variables of the make that runs these tests.
    clean = {"PATH": os.environ["PATH"], "HOME": "/my home"}
    process = subprocess.run(
        ["make", "-n", *arguments], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=30, check=True
    )
    return shlex.split(process.stdout.partition(program)[2].replace("\\\n", " "))


def parsed_options(*arguments: str) -> dict[str, Any]:
    """The options of the command that `make extract` would run, read as the command reads them."""
    words = words_of("rvos-cache extract-all", "extract", *arguments)
    return dict(extract_all.make_context("extract-all", words).params)


def test_defaults() -> None:
    options = parsed_options()
    assert (options["dataset"], options["root"], options["tracker"]) == ("mevis", Path("data/mevis"), "flow")
    assert not any(
        options[name] for name in ("splits", "overrides", "text_overrides", "also", "also_overrides", "corrupt", "budget", "out")
    )


def test_every_variable_reaches_the_command() -> None:
    options = parsed_options(
        "DATASET=plain", "ROOT=/videos", "TRACKER=sam2-grid", "ENCODER=roberta", "SPLIT=train valid_u", "CORRUPT=motion_blur:5",
        "SET=checkpoint=/models/sam2 prompt_every=half gpu_memory=4GB", "TEXT_SET=checkpoint=/models/roberta", "BUDGET=2GB",
        "ALSO=frames vita", "ALSO_SET=frames.short_side=448 vita.checkpoint=/models/vita",
    )  # fmt: skip
    assert (options["dataset"], options["root"], options["encoder"]) == ("plain", Path("/videos"), "roberta")
    assert (options["splits"], options["corrupt"], options["budget"]) == (("train", "valid_u"), "motion_blur:5", 2 * 10**9)
    expected = {"checkpoint": "/models/sam2", "prompt_every": "half", "gpu_memory": "4GB"}
    assert parse_overrides(options["overrides"]) == expected
    assert parse_overrides(options["text_overrides"]) == {"checkpoint": "/models/roberta"}
    assert options["also"] == ("frames", "vita")
    assert options["also_overrides"] == ("frames.short_side=448", "vita.checkpoint=/models/vita")


def test_a_value_may_have_blanks_and_quotes() -> None:
    options = parsed_options(
        "ROOT=/my data/a 'b' $$HOME", "OUT=/my caches", "SPLIT=train valid_u", "BUDGET=2 GB", 'TEXT_SET=a=it\'s "x"',
        'SET=checkpoint=/my weights/sam2 prompt_every=half names=["a","b"]',
    )  # fmt: skip
    assert (options["root"], options["out"]) == (Path("/my data/a 'b' $HOME"), Path("/my caches"))
    assert (options["splits"], options["budget"]) == (("train", "valid_u"), 2 * 10**9)
    assert options["overrides"] == ("checkpoint=/my weights/sam2", "prompt_every=half", 'names=["a","b"]')
    assert options["text_overrides"] == ('a=it\'s "x"',)
    assert parsed_options("SET=misspelt epochs=1")["overrides"] == ("misspelt", "epochs=1")
    assert parsed_options("ROOT=~/a b")["root"] == Path("/my home/a b")


def test_the_demo_is_written_where_out_says() -> None:
    assert words_of("pipelines.sola_shapes", "demo") == ["--out", "out/demo"]
    assert words_of("pipelines.sola_shapes", "demo", "OUT=/my demo") == ["--out", "/my demo"]


def test_a_model_that_may_be_on_a_gpu_runs_in_one_process() -> None:
    """Forked processes cannot share a GPU, and extraction refuses them."""
    assert [parsed_options(f"TRACKER={name}")["jobs"] for name in ("flow", "sam2-grid", "vita")] == [2, 1, 1]
    assert parsed_options("TRACKER=vita", "JOBS=3")["jobs"] == 3


def test_a_row_and_its_options() -> None:
    words = words_of("-m pipelines run ", "reproduce", "ROW=sola.table_1.val_u", "ARGS=--seeds 3")
    assert words == ["sola.table_1.val_u", "--seeds", "3"]
