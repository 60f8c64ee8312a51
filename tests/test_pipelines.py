"""The pages of pipelines/ that no other test runs, from data to report, on as little data as they take."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import pytest
from odd_videos import EXPRESSIONS, write_split

from pipelines.sola_mevis import sola_mevis
from pipelines.sola_shapes import demo

pytestmark = pytest.mark.slow


def run(monkeypatch: pytest.MonkeyPatch, page: click.Command, *arguments: object) -> None:
    """Run a page in this process as its command line does."""
    monkeypatch.setattr(sys, "argv", [str(page.name), *map(str, arguments)])
    page(standalone_mode=False)


@pytest.mark.timeout(600)
def test_the_demo_on_a_few_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own scores on 5 videos mean nothing; its steps, files and the order of the oracle do."""
    arguments = ("--out", tmp_path / "demo", "--videos", 5, "--jobs", 1, "--encoder", "hashed")
    run(monkeypatch, demo, *arguments)
    metrics = json.loads((tmp_path / "demo/metrics.json").read_text())
    assert metrics["oracle"]["jf"] > max(metrics[name]["jf"] for name in ("sola", "mean_cosine", "all_tracks")) > 0
    assert set(metrics["seconds"]) == {
        "shapes", "extract", "train sola", "train mean_cosine", "predict", "merge", "evaluate", "report",
    }  # fmt: skip
    assert (tmp_path / "demo/report/index.html").is_file()
    printed = capsys.readouterr().out
    assert "expressions that only motion tells apart" in printed and "page: " in printed
    # The paraphrases are scored next to the sentences that they paraphrase, on the page too.
    assert 0 < metrics["sola_paraphrases"]["jf"] < 1 and "SOLA, paraphrases" in (tmp_path / "demo/report/index.html").read_text()
    assert metrics["motion_only"].keys() == {"sola", "mean_cosine", "sola_paraphrases", "mean_cosine_paraphrases"}
    # Again: every step is there already, and the table is the same.
    run(monkeypatch, demo, *arguments)
    again = json.loads((tmp_path / "demo/metrics.json").read_text())
    assert {**again, "seconds": 0} == {**metrics, "seconds": 0}


def test_sola_mevis_on_a_tiny_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_split(tmp_path / "mevis/train", dict.fromkeys(("t0", "t1"), (5, True, EXPRESSIONS)))
    write_split(tmp_path / "mevis/valid_u", {"v0": (4, True, EXPRESSIONS)})
    write_split(tmp_path / "mevis/valid", {"h0": (4, True, EXPRESSIONS)})
    (tmp_path / "mevis/valid/mask_dict.json").unlink()
    small = ["epochs=1", "config.width=16", "config.heads=2", "config.layers=1", "config.negatives=2"]
    sets = [word for value in small for word in ("--set", value)]
    run(
        monkeypatch,
        sola_mevis,
        "--root",
        tmp_path / "mevis",
        "--out",
        tmp_path / "out",
        "--tracker",
        "flow",
        "--encoder",
        "hashed",
        *sets,
    )
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert 0 <= metrics["jf"] <= 1 and len(metrics["expressions"]) == len(EXPRESSIONS)
    assert (tmp_path / "out/mevis_valid.zip").is_file() and (tmp_path / "out/report/index.html").is_file()
    assert "the paper: mevis/valid J&F" in capsys.readouterr().out
