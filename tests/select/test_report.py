"""The page: what it shows, that it opens from disk, and why it says an expression fell short."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import chain
import numpy as np
import pytest
from chain import WEIGHTS, write_cache, write_perfect, write_run, write_split
from PIL import Image

from rvos_cache.store import CacheWriter
from rvos_cache.types import Selection
from rvos_select.data.caches import TrackSource
from rvos_select.evaluation.oracle import oracle
from rvos_select.reporting import report
from rvos_select.reporting.curves import curves
from rvos_select.reporting.diagnose import Case, cause_of, choose, diagnose
from rvos_select.reporting.page import _best

HOSTILE = '<script>alert("1")</script> & the "dog" <img src=x>'


class Page(HTMLParser):
    """Headings of the articles, sources of the images, every link, tags, and all text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.titles: list[str] = []
        self.images: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.words = ""
        self.inside = ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        self.images += [value or "" for name, value in attrs if tag == "img" and name == "src"]
        if tag == "h3":
            self.titles.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        self.words += data
        if self.inside == "h3":
            self.titles[-1] += data


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """data, c.zarr, s.zarr and the record of a run; an id that a link must quote, a sentence that HTML must escape."""
    monkeypatch.setitem(chain.EXPRESSIONS, "b", {"50% #1": ["3"]})
    monkeypatch.setitem(chain.TEXTS, ("a", "0"), HOSTILE)
    write_split(tmp_path / "data")
    cache = write_cache(tmp_path / "c.zarr", root=tmp_path / "data")
    write_perfect(tmp_path / "s.zarr", cache, weights=WEIGHTS)
    write_run(tmp_path / "run")
    rows = [{"epoch": e, "train/loss": 1 / e, "valid/loss": 2 / e, "valid/jf": 0.1 * e} for e in (1, 2)]
    (tmp_path / "run/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def page_of(work: Path) -> Page:
    return Page(report(work / "run", work / "s.zarr", [work / "c.zarr"], work / "page"))


def test_every_chosen_expression_is_there_with_its_pictures(work: Path) -> None:
    page = page_of(work)
    assert sorted(page.titles) == sorted([HOSTILE, "thing 1", "thing 2", "thing 50% #1"])
    assert "script" not in page.tags
    assert {"svg", "polyline"} <= page.tags
    assert len(page.images) == len(set(page.images)) == 4 + 3 + 3 + 3 + 2
    for link in page.links:
        assert ":" not in link
        with Image.open(work / "page" / unquote(urlsplit(link).path)) as image:
            image.load()
    whole, tinted = (np.asarray(Image.open(work / "page/pictures/a" / e / "prediction.jpg").convert("RGB")) for e in ("2", "0"))
    orange = [(image[..., 0].astype(int) - image[..., 2] > 60).mean() for image in (whole, tinted)]
    assert orange[0] == 0 and orange[1] > 0.02  # where nothing is meant nothing is drawn


def test_the_page_shows_what_an_empty_choice_becomes(work: Path) -> None:
    """No score is above 0.95: each expression has one track or none, as the card says. a/2 names nothing."""
    for empty, chosen in (("zeros", "0 chosen"), ("top1", "1 chosen")):
        selections = write_perfect(work / f"{empty}.zarr", work / "c.zarr", threshold=0.95, empty=empty, weights=WEIGHTS)
        page = Page(report(work / "run", selections, [work / "c.zarr"], work / "page"))
        assert page.words.count(chosen) == len(page.titles) == 4
        tinted = np.asarray(Image.open(work / "page/pictures/a/2/prediction.jpg").convert("RGB")).astype(int)
        orange = (tinted[..., 0] - tinted[..., 2] > 60).mean()
        assert orange > 0.02 if empty == "top1" else orange == 0


def test_without_frames_the_masks_are_drawn_on_grey(work: Path) -> None:
    frame = work / "data/valid_u/JPEGImages/a/00000.jpg"
    frame.write_bytes(frame.read_bytes()[:-20])
    assert len(page_of(work).titles) == 4
    with Image.open(work / "page/pictures/a/2/prediction.jpg") as image:
        assert np.abs(np.asarray(image.convert("L"))[:, :50].astype(int) - 128).max() < 5
    shutil.rmtree(work / "data")
    assert "Give --root" in page_of(work).words


def test_expressions_without_prediction_are_named(work: Path) -> None:
    shutil.rmtree(work / "c.zarr/videos/b")
    CacheWriter(work / "c.zarr", TrackSource([work / "c.zarr"]).card).fail("b", "truncated")
    shutil.rmtree(work / "s.zarr/videos/b")
    page = page_of(work)
    assert "scored 0: 1 expressions (b/50% #1)" in page.words
    assert sorted(page.titles) == sorted([HOSTILE, "thing 1", "thing 2"])
    assert page.words.count("75.0") == 6  # J&F, J and F of the prediction and of the oracle


def test_without_selections_only_the_training_is_shown(work: Path) -> None:
    page = Page(report(work / "run", None, [], work / "page"))
    assert page.titles == [] and page.images == []
    assert "Loss" in page.words


@pytest.mark.parametrize(
    ("jf", "best", "best_iou", "cause"),
    [
        (0.80, 0.99, 0.9, "good"),
        (0.75, 0.80, 0.4, "good"),
        (0.40, 0.90, 0.9, "wrong selection"),
        (0.00, 0.40, 0.51, "wrong selection"),
        (0.00, 1.00, None, "wrong selection"),  # it names nothing, and something was selected
        (0.70, 0.80, 0.8, "poor tracks"),
        (0.30, 0.40, 0.6, "poor tracks"),
        (0.00, 0.40, 0.5, "missed by the tracker"),  # a label needs more than the threshold
        (0.30, 0.40, 0.1, "missed by the tracker"),
    ],
)
def test_causes_by_hand(jf: float, best: float, best_iou: float | None, cause: str) -> None:
    assert cause_of(jf, best, best_iou, 0.5) == cause
    if cause == "missed by the tracker":
        assert cause_of(jf, best, best_iou, None) in ("wrong selection", "poor tracks")


def test_an_object_without_a_track_is_not_a_wrong_selection(work: Path) -> None:
    """Each track has a quarter of its object's columns, but one that only a/1 may select; a/2 names nothing."""
    assert page_of(work).words.count("missed by the tracker") == 1  # in the table of causes
    cache = write_cache(work / "thin.zarr", root=work / "data", thin=True)
    page = Page(report(work / "run", write_perfect(work / "t.zarr", cache, weights=WEIGHTS), [cache], work / "page2"))
    assert page.words.count("missed by the tracker") == 1 + 1
    assert oracle([cache])["best_iou"] == {"a/0": 0.25, "a/1": 1.0, "a/2": None, "b/50% #1": 1.0}
    record = json.loads((work / "run/settings.json").read_text())
    record["settings"]["label_iou"] = 0.2
    (work / "run/settings.json").write_text(json.dumps(record))
    page = Page(report(work / "run", work / "t.zarr", [cache], work / "page3"))
    assert page.words.count("missed by the tracker") == 1 and "above 20 (label_iou=0.2)" in page.words


def test_the_words_of_the_page_are_defined(work: Path) -> None:
    page = page_of(work)
    for word in ("perfect labels", "J&F", "mean IoU", "track", "chosen", "missed by the tracker", "wrong selection", "label_iou"):
        assert word in page.words
    assert "above 50 (label_iou=0.5)" in page.words


def test_labels_of_an_axis_differ() -> None:
    """Also where the values are below a few percent, or nearly equal."""
    for values in ([0.0, 0.021], [0.0, 0.0004], [0.0, 0.9], [0.0, 0.07], [0.0, 0.0]):
        labels = re.findall(r'text-anchor="end">([0-9.]+)<', curves("J", {"J": values}, percent=True))[:5]
        assert len(set(labels)) == 5, labels
        assert all(abs(float(a) - 25 * k * (max(values) or 1)) < 0.51 for k, a in enumerate(labels))


def test_diagnosis_is_worst_first_and_chooses_no_case_twice() -> None:
    scores = {"expressions": {f"v/{i}": {"j": i / 10, "f": i / 10 + 0.04} for i in range(9)}, "missing": ["v/0"]}
    perfect = {
        "expressions": {f"v/{i}": {"j": 0.8, "f": 0.8} for i in range(9)},
        "best_iou": {f"v/{i}": i / 10 for i in range(9)},
    }
    cases = diagnose(scores, perfect, 0.25)
    assert [case.cause for case in cases[:3]] == ["missed by the tracker", "missed by the tracker", "wrong selection"]
    assert [case.key for case in cases] == [f"v/{i}" for i in range(1, 9)]
    assert cases[0].jf == pytest.approx(0.12) and cases[0].oracle == 0.8
    picked = choose(cases, 3)
    keys = [case.key for part in picked.values() for case in part]
    assert keys == ["v/1", "v/2", "v/3", "v/4", "v/5", "v/6", "v/8", "v/7"]


def test_the_best_cases_show_something() -> None:
    cases = [Case("v", str(i), jf, 1.0, "good") for i, jf in enumerate((0.1, 0.5, 0.8, 0.9, 0.95, 1.0, 1.0))]
    assert [case.jf for case in choose(cases, 1)["best"]] == [0.95]


def test_only_candidates_are_among_the_best_tracks() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.2, 0.1, 0.4], np.float32)
    assert _best(Selection("0", scores, np.array([False, False, False, True, True, True]))) == [5, 3, 4]
    assert _best(Selection("0", scores, np.array([False, False, False, True, False, False]))) == [3]
