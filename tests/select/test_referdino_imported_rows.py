"""Rows of ReferDINO reached by an imported run: one's own tuning or released weights, and what is refused beside them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from tiny_referdino_pages import called

from pipelines import referdino_mevis
from pipelines.referdino_models import Models
from pipelines.referdino_rows import published_row, way_line
from rvos_cache.errors import InputError, warn_once


def test_a_run_of_one_s_own_tuning_reaches_the_rows_that_are_tuned(tmp_path: Path) -> None:
    (tmp_path / "upstream").mkdir()
    record = {"source": "tune-referdino", "settings": {"keep_ratio": 0.35, "augment": "none", "short_side": 64}}
    (tmp_path / "upstream/referdino.json").write_text(json.dumps(record))
    models = Models(None, tmp_path, {}, 1)
    published = published_row("table_5.drop_65", "ref-youtube-vos", models)
    assert published["name"] == "table_5.drop_65_import" and published["scores"] == [66.0, 64.0, 68.0]
    overrides = models.extraction(published)["overrides"]
    assert (overrides["keep_ratio"], overrides["short_side"]) == (0.35, 64)
    with pytest.raises(InputError, match=r"was tuned with keep_ratio=0.35, the row 'table_5.drop_20' with keep_ratio=0.8"):
        published_row("table_5.drop_20", "ref-youtube-vos", models)
    (tmp_path / "upstream/referdino.json").write_text('{"source": "ryt_swinb.pth"}')
    with pytest.raises(InputError, match="was not tuned here; give --imported a run of your own tuning, or --way tune"):
        published_row("table_5.drop_65", "ref-youtube-vos", models)
    (tmp_path / "upstream/referdino.json").write_text(json.dumps(record))
    for row in ("figure_7.alpha_0", "table_2.grounded_sam2_t"):
        with pytest.raises(InputError, match="leave --imported out"):
            published_row(row, "mevis", models)


def origin(tmp_path: Path, record: dict[str, object], row: str, benchmark: str, width: int = 128) -> str:
    """What the first line of a page says of an imported run with this record of its upstream."""
    (tmp_path / "upstream").mkdir(exist_ok=True)
    (tmp_path / "upstream/referdino.json").write_text(json.dumps(record))
    (tmp_path / "upstream/config.json").write_text(json.dumps({"backbone_config": {"embed_dim": width}}))
    warn_once.cache_clear()
    return way_line(published_row(row, benchmark, Models(None, tmp_path, {}, 1)))


MEVIS_ROW, YOUTUBE_ROW, IMAGES_ROW = "table_2.referdino_b", "table_1.referdino_b", "table_1.referdino_b_images"
TUNED = {"source": "tune-referdino", "dataset": "mevis", "split": "train", "step": 3, "items": 4}
LOOP = {"steps": 0, "epochs": 2, "batch_size": 1, "accumulate": 2}


@pytest.mark.parametrize(
    ("record", "row", "benchmark", "width", "message"),
    [
        (
            {"source": "a2d_swinb.pth", "untrained": 9},
            MEVIS_ROW,
            "mevis",
            128,
            "was trained on a2d-sentences, the row .* on mevis",
        ),
        (
            {"source": "mevis_swinb.pth", "untrained": 0},
            IMAGES_ROW,
            "a2d-sentences",
            128,
            "on mevis, the row .* on a2d-sentences",
        ),
        ({"source": "mine.pth", "untrained": 9}, MEVIS_ROW, "mevis", 128, "was trained on single frames, the row .* on clips"),
        ({"source": "mine.pth", "untrained": 0}, IMAGES_ROW, "a2d-sentences", 128, "on clips, the row .* on single frames"),
        ({"source": "mevis_swinb.pth"}, MEVIS_ROW, "mevis", 96, r"its Swin has 96 channels, .* 128 \(grounding-dino-base\)"),
        (
            {**TUNED, "settings": LOOP},
            YOUTUBE_ROW,
            "ref-youtube-vos",
            128,
            "tuned on mevis train to step 3 of 4: was trained on mevis",
        ),
        ({**TUNED, "settings": {"keep_ratio": 0.1}}, MEVIS_ROW, "mevis", 128, "keep_ratio=0.1, the row .* keep_ratio=0.5"),
    ],
)
def test_an_imported_run_that_is_not_the_row_s_is_refused(
    record: dict[str, object], row: str, benchmark: str, width: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"^{tmp_path}: .*{message}.*; give a run") as fault:
        origin(tmp_path, record, row, benchmark, width)
    assert "\n" not in str(fault.value)


def test_an_imported_run_says_what_it_was_trained_on(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source, row, benchmark in (("mevis", MEVIS_ROW, "mevis"), ("ryt", YOUTUBE_ROW, "ref-youtube-vos")):
            line = origin(tmp_path, {"source": f"{source}_swinb.pth", "untrained": 0}, row, benchmark)
            assert line.endswith(
                f", by --imported RUN: the weights of --imported, {source}_swinb.pth (other ways: --way tune, --way cached)"
            )
        assert "mevis train to step 3 of 4" in origin(tmp_path, {**TUNED, "settings": LOOP}, MEVIS_ROW, "mevis")
    for record, width, message in (
        (
            {"source": "mine.pth"},
            128,
            "mine.pth: it is not known what it was trained on, the row .* on mevis: its scores are not",
        ),
        ({"source": "mevis_swinb.pth"}, 24, "its Swin has 24 channels, .* 128 .*: its scores are not those of the row"),
    ):
        with pytest.warns(UserWarning, match=message):
            origin(tmp_path, record, MEVIS_ROW, "mevis", width)


def test_an_imported_run_without_its_upstream_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = tmp_path / "tuned"
    (tuned / "upstream").mkdir(parents=True)
    (tuned / "tune.json").write_text("{}")
    (tuned / "upstream/referdino.json").write_text("{}")
    for words, reason in (
        (("--imported", tmp_path), "has no folder 'upstream'"),
        (("--imported", tuned / "upstream"), "a checkpoint of stage one; give "),
        (
            ("--imported", tuned),
            f"{tuned}: a run of rvos-cache tune-referdino; first rvos-select import-referdino {tuned} --out RUN",
        ),
        (("--imported", tmp_path, "--upstream", "x"), "--imported brings its own upstream"),
        (("--imported", tmp_path, "--way", "tune"), "leave --way tune out"),
        (("--way", "tune", "--set", "epochs=1"), "--set epochs=1: stage two is not trained .* by tune; --tune-set is for tuning"),
        (("--way", "cached", "--set", "epochs=0"), "^--set epochs=0: setting 'epochs': Input should be"),
        (("--row", "table_2.grounded_sam2_b", "--set", "epochs=1"), "not trained where a row is reached by baseline$"),
    ):
        with pytest.raises(InputError, match=reason):
            called(monkeypatch, referdino_mevis.referdino_mevis, *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
