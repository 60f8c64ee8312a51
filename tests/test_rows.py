"""Rows of the papers: every row resolves, and rows of each shape run end to end on tiny checkpoints, as their commands typed do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_sam2
from click.testing import CliRunner
from test_end_to_end_sam2 import FEW, SENTENCES, SMALL, keep_expressions, read_meta, set_options
from text_fixtures import tiny_roberta

from pipelines.__main__ import pipelines
from rvos_cache.shapes import write_shapes


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    with tiny_sam2.without_gpu():
        yield


class Work:
    """A dataset in MeViS's layout, tiny checkpoints, and the options that name them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_shapes(folder / "data/mevis", 2, 3)
        for split in ("train", "valid_u"):
            keep_expressions(folder / "data/mevis", split, slice(SENTENCES))
        (folder / "roberta").mkdir()
        videos = read_meta(folder / "data/mevis", "train").values()
        tiny_roberta(folder / "roberta", [e["exp"] for video in videos for e in video["expressions"].values()])
        sam2, grounding = tiny_sam2.shared_checkpoint(), tiny_sam2.shared_grounding()
        weights = {"sam2": sam2, "grounding_dino_t": grounding, "roberta_large": folder / "roberta"}
        trackers = {"grid": FEW["sam2-grid"], "grid_half": FEW["sam2-grid"], "box": FEW["sam2-box"]}
        self.options: list[str] = ["--root", f"mevis={folder / 'data/mevis'}", "--out", str(folder / "out"), *set_options(SMALL)]
        for name, place in weights.items():
            self.options += ["--weights", f"{name}={place}"]
        for name, settings in trackers.items():
            for key, value in settings.items():
                self.options += ["--tracker-set", f"{name}.{key}={value}"]

    def call(self, *words: object) -> str:
        """What `python -m pipelines` prints, with the options of this folder. Raises what it raises."""
        result = CliRunner().invoke(pipelines, [*map(str, words), *self.options], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    def entries(self, *words: object) -> dict[str, dict[str, Any]]:
        """Row and split -> its entry on the board."""
        return {f"{entry['row']} {entry['split']}": entry for entry in json.loads(self.call("--json", *words))}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("rows"))


ROW = "sola.table_1.val_u"


@pytest.fixture(scope="module")
def ran(work: Work) -> str:
    """What running the row printed."""
    return work.call("run", ROW)


def test_a_row_ends_with_our_number_beside_the_papers(work: Work, ran: str) -> None:
    last = ran[ran.rindex(f"{ROW}, mevis/valid_u") :].splitlines()
    assert last[0].endswith("the paper has no number") and last[1].startswith("  ours J&F ")
    assert last[-1].startswith("  oracle of its candidates: ")
    entry = work.entries("--system", "sola")[f"{ROW} mevis/valid_u"]
    scores = json.loads((work.folder / "out" / ROW / "mevis-valid_u/scores.json").read_text())
    assert [value["mean"] for value in entry["ours"]] == pytest.approx([100 * scores[key] for key in ("jf", "j", "f")])
    assert entry["state"] == "scored" and entry["hours"] == 0 and entry["oracle"] >= entry["ours"][0]["mean"]
