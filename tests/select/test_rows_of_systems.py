"""A row of each other system from its dataset to its record, by the board's command, on tiny random checkpoints."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_dvis
import tiny_vita
from click.testing import CliRunner
from released_referdino import shared_grounding, shared_released
from test_dervos_pages import SMALL as DERVOS
from test_dmvs_pages import hide
from test_ssa_pages import SMALL as SSA
from test_ssa_pages import words_of
from text_fixtures import tiny_roberta
from tiny_beit3 import write_tiny_beit3
from tiny_clip import write_tiny_clip

from pipelines.__main__ import pipelines

sys.path.insert(0, str(Path(__file__).parents[1]))
from odd_videos import EXPRESSIONS, write_split

DMVS = {
    "epochs": 1, "batch_size": 2, "clip.frames": 3, "config.width": tiny_vita.CHANNELS, "config.hidden": 16, "config.layers": 1,
    "config.points": 40, "config.motion_queries": 4,
}  # fmt: skip


def call(*words: object) -> str:
    result = CliRunner().invoke(pipelines, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def mevis(tmp_path: Path) -> Path:
    for split in ("train", "valid_u", "valid"):
        write_split(tmp_path / "data" / split, {f"{split}0": (4, True, EXPRESSIONS)})
    hide(tmp_path / "data/valid")
    return tmp_path / "data"


def options(tmp_path: Path, root: Path, weights: Mapping[str, object], trackers: Mapping[str, Any]) -> list[str]:
    words = ["--root", f"mevis={root}", "--out", str(tmp_path / "rows")]
    words += [word for name, place in weights.items() for word in ("--weights", f"{name}={place}")]
    return words + [word for name, value in trackers.items() for word in ("--tracker-set", f"{name}={value}")]


def check(tmp_path: Path, row: str, given: list[str], small: Mapping[str, Any]) -> None:
    """Run the row on its open split: it ends in a record, and the board shows it."""
    printed = call("run", row, *given, *words_of(dict(small)))
    assert f"{row}, mevis/valid_u: the paper has J&F" in printed and "  ours: J&F " in printed
    record = json.loads((tmp_path / "rows" / row / "record.json").read_text())
    assert [score["split"] for score in record["scores"]] == ["mevis/valid_u"] and len(record["scores"][0]["commands"]) > 5
    shown = {entry["row"]: entry for entry in json.loads(call("--json", "--system", row.split(".")[0], *given))}
    assert shown[row]["state"] == "scored" and len(shown[row]["ours"]) == 3


def test_a_row_of_dmvs(tmp_path: Path, mevis: Path) -> None:
    vita = tiny_vita.write_checkpoint(tmp_path / "vita")
    (tmp_path / "roberta").mkdir()
    tiny_roberta(tmp_path / "roberta", list(EXPRESSIONS))
    trackers = {f"vita.{name}": value for name, value in {**tiny_vita.SMALL, "max_tracks": 4}.items()}
    given = options(tmp_path, mevis, {"vita": vita, "roberta_base": tmp_path / "roberta"}, trackers)
    check(tmp_path, "dmvs.table_1.val_u", given, DMVS)
    # The row of the hidden split has the same run, and ends in a zip.
    printed = call("run", "dmvs.table_1.val", *given, *words_of(DMVS))
    (packed,) = (tmp_path / "rows/dmvs.table_1.val").glob("*/mevis-valid/submission.zip")
    assert f"send {packed} to https://codalab" in printed and packed.is_file()
    assert len(list((tmp_path / "rows/runs").iterdir())) == 1


def test_a_row_of_ssa(tmp_path: Path, mevis: Path) -> None:
    clip = write_tiny_clip(tmp_path / "clip")
    given = options(tmp_path, mevis, {"clip_convnext_large": clip, "ssa_coco": clip}, {"frames.short_side": 32})
    check(tmp_path, "ssa.table_1.val_u", given, {**SSA, "init": ""})


def test_a_row_of_referdino_s_released_weights(tmp_path: Path, mevis: Path) -> None:
    weights = {"referdino_mevis_swinb": shared_released(), "grounding_dino_b": shared_grounding()}
    given = options(tmp_path, mevis, weights, {"queries.short_side": 32, "queries.keep_ratio": 0.4})
    printed = call("run", "referdino.table_2.referdino_b", *given)
    assert "the paper has J&F 49.3, J 44.7, F 53.9" in printed
    assert [*(tmp_path / "rows/referdino.table_2.referdino_b").glob("*/mevis-valid/submission.zip")]
    # Only what is tested is extracted, with the upstream of the run.
    assert [folder.name for folder in (tmp_path / "rows/cache/mevis").iterdir()] == ["valid"]


def test_a_row_of_dervos(tmp_path: Path, mevis: Path) -> None:
    weights = {"dvis_r50": tiny_dvis.write_checkpoint(tmp_path / "dvis"), "beit3_base": write_tiny_beit3(tmp_path / "beit3")}
    trackers = {**{f"dvis.{name}": value for name, value in tiny_dvis.SMALL.items()}, "frames.square": 64}
    check(tmp_path, "dervos.table_5.cfma", options(tmp_path, mevis, weights, trackers), DERVOS)
