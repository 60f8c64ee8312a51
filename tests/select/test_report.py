"""The page: what it shows, that it opens from disk, and why it says an expression fell short."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import chain
import davis_fixtures as davis
import numpy as np
import pytest
from chain import WEIGHTS, write_cache, write_perfect, write_run, write_split
from PIL import Image

from rvos_cache.errors import InputError
from rvos_cache.store import CacheWriter, SelectionCache, digest
from rvos_cache.types import Selection
from rvos_select.data.caches import TrackSource
from rvos_select.evaluation import benchmark_selections, evaluate_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.merging.policy import resolve_policy
from rvos_select.reporting import page as page_module
from rvos_select.reporting import report
from rvos_select.reporting.curves import curves, round_ticks
from rvos_select.reporting.diagnose import Case, cause_of, choose, diagnose
from rvos_select.reporting.page import _best
from rvos_select.reporting.training import tuning_charts

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
    assert "scored 0: 1 expression (b/50% #1)" in page.words
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
        (0.00, 1.00, None, "should be empty"),  # it names nothing, and something was selected
        (0.60, 1.00, None, "should be empty"),  # and that has no mask in some of the frames
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


def test_masks_of_a_selector_s_own_should_be_empty_too() -> None:
    """Without tracks there is no oracle that knows which sentences name no object."""
    assert cause_of(0.1, None, None, None, names_none=True) == "should be empty"
    assert cause_of(0.1, None, None, None) == "not good"
    cases = diagnose({"expressions": {"v/0": {"j": 0.1, "f": 0.1}, "v/1": {"j": 0.2, "f": 0.2}}}, None, None, {"v/1"})
    assert [case.cause for case in cases] == ["not good", "should be empty"]


def test_a_sentence_without_target_that_got_a_mask_should_be_empty(work: Path) -> None:
    """a/2 names nothing; no better track is there, so the selection of another one is not what went wrong."""
    assert "should be empty" not in page_of(work).words
    selections = write_perfect(work / "top1.zarr", work / "c.zarr", threshold=0.95, empty="top1", weights=WEIGHTS)
    page = Page(report(work / "run", selections, [work / "c.zarr"], work / "page"))
    assert "perfect labels 100.0 · 0 targets · 1 chosen · should be empty" in page.words
    # Once in the table of causes; the other low one, a/1, has two objects and got one.
    assert page.words.count("should be empty") == 2 and page.words.count("wrong selection") == 2


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


@pytest.mark.parametrize("values", [(0.0, 0.021), (0.0, 0.0004), (0.0, 0.9), (0.0, 1.0), (0.0, 0.07), (0.0, 0.0), (0.3, 0.3)])
def test_labels_of_an_axis_are_round_and_differ(values: tuple[float, float]) -> None:
    """Also where the values are below a few percent, or equal."""
    chart = curves("J", {"J": values}, percent=True)
    labels = re.findall(r'text-anchor="end">([0-9.]+)</text>(?=<line|<text x="48")', chart)
    numbers = [float(label) for label in labels]
    assert 2 <= len(set(labels)) == len(labels) <= 6 and len(labels) == chart.count('class="grid"')
    assert numbers[0] == 0 and numbers[-1] >= 100 * max(values) - 1e-9
    steps = np.diff(numbers)
    assert np.allclose(steps, steps[0]) and f"{steps[0]:e}"[:3] in ("1.0", "2.0", "2.5", "5.0")
    # No label needs more digits than it has.
    assert max(values) == 0 or numbers[-2] < 100 * max(values) + 1e-9


def test_an_axis_of_losses_is_close_to_them() -> None:
    for low, high in ((812.3, 1204.9), (0.4213, 0.4214), (2.0, 2.0), (0.0, 0.0), (-3.0, 7.0), (1e-9, 5e6)):
        ticks, digits = round_ticks(low, high)
        assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9
        assert len({f"{tick:.{digits}f}" for tick in ticks}) == len(ticks) <= 6
        step = ticks[1] - ticks[0]
        assert low == high or (low - ticks[0] < step and ticks[-1] - high < step)


def test_lines_that_hide_each_other_are_told_apart() -> None:
    """Dashes show what lies below; a loss that is no number leaves a gap, not a page without axis."""
    style = (Path(page_module.__file__).parent / "style.css").read_text()
    assert "stroke-dasharray" not in style.split(".s1")[0] and style.count("stroke-dasharray") == 2
    assert "nan" not in curves("Loss", {"training": [1.0, float("nan"), 2.0]})


def test_one_epoch_is_a_table(work: Path) -> None:
    row = {"epoch": 1, "train/loss": 1.25, "valid/loss": 2.5, "valid/jf": 0.345, "valid/j": 0.3, "valid/f": 0.39}
    (work / "run/metrics.jsonl").write_text(json.dumps(row) + "\n")
    page = Page(report(work / "run", None, [], work / "page"))
    assert "polyline" not in page.tags and "Training, one epoch" in page.words
    for number in ("1.25", "2.5", "34.5", "30.0", "39.0"):
        assert number in page.words


def test_the_page_says_what_was_scored(work: Path) -> None:
    """The split, the numbers of expressions and videos, the threshold, and whether sentences without target have no mask."""
    words = page_of(work).words
    assert "mevis valid_u: 4 expressions of 2 videos" in words and "prediction, threshold 0.5" in words
    assert "N-acc" in words and "T-acc" in words and words.count("4 expressions") == 3
    selections = write_perfect(work / "top1.zarr", work / "c.zarr", threshold=0.95, empty="top1", weights=WEIGHTS)
    page = Page(report(work / "run", selections, [work / "c.zarr"], work / "page"))
    assert "prediction, threshold 0.95, else the best candidate" in page.words


def test_published_numbers_are_a_row(work: Path) -> None:
    """They have no expressions of their own."""
    rows = {"ours": evaluate_selections(work / "s.zarr", [work / "c.zarr"]), "the paper": {"jf": 0.123, "j": 0.1, "f": 0.146}}
    page = Page(report(work / "run", work / "s.zarr", [work / "c.zarr"], work / "page", rows=rows))
    assert re.search(r"the paper12\.310\.014\.6––.*–", page.words)


def test_ref_davis_says_which_measure_is_which(tmp_path: Path) -> None:
    """Objects by DAVIS's protocol above, expressions below: two numbers that are both called J&F."""
    davis.write_split(tmp_path / "data")
    cache = davis.write_cache(tmp_path / "d.zarr", tmp_path / "data")
    selections = davis.write_scores(tmp_path / "s.zarr", davis.right)
    rows = {"ours": benchmark_selections(selections, [cache], {})}
    page = Page(report(None, selections, [cache], tmp_path / "page", rows=rows))
    assert f"{len(rows['ours']['objects'])} objects" in page.words and "Rows of objects are by DAVIS's protocol" in page.words
    assert f"expressions, {resolve_policy(SelectionCache(selections))}" in page.words
    assert "expressions, oracle (perfect labels)" in page.words


def test_selections_without_a_run(work: Path) -> None:
    """Those of the baseline that selects every track."""
    selections = write_perfect(work / "all.zarr", work / "c.zarr", producer="all-tracks")
    page = Page(report(None, selections, [work / "c.zarr"], work / "page"))
    assert page.words.count("nothing was trained: reads tracks of flow") == 1 and len(page.titles) == 4
    assert "Training" not in page.words
    with pytest.raises(InputError, match="neither a run nor selections"):
        report(None, None, [], work / "page")


def tuned(folder: Path, run: Path, losses: list[float]) -> Path:
    """The folder of a tuning, of which `run` says that it was imported; returns the tuned file."""
    checkpoint = folder / "upstream/referdino.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    record = json.loads((run / "settings.json").read_text())
    record["settings"]["selector"] = "referdino"
    record["imported"] = {"checkpoint": str(checkpoint), "digest": digest(b"weights"), "tuned": True}
    (run / "settings.json").write_text(json.dumps(record))
    return checkpoint


def test_a_tuned_run_has_the_curve_of_its_tuning(work: Path) -> None:
    (work / "run/metrics.jsonl").unlink()
    checkpoint = tuned(work / "tuned", work / "run", [5.0, 4.0, 2.0])
    page = page_of(work)
    assert "tuned on mevis train: reads tracks of flow, code ?" in page.words  # the words of the caches are not read
    assert "Tuning of the upstream" in page.words and "step 1" in page.words
    assert "polyline" in page.tags and "validation" not in page.words.partition("Words")[0]
    # Tuned further, so the curve is of another upstream.
    checkpoint.write_bytes(b"other")
    assert "Tuning" not in page_of(work).words
    shutil.rmtree(work / "tuned")
    assert "Tuning" not in page_of(work).words


def test_a_long_tuning_is_shown_by_means(work: Path) -> None:
    tuned(work / "tuned", work / "run", [3.0, 1.0] * 500)
    settings = json.loads((work / "run/settings.json").read_text())
    chart = tuning_charts(settings)
    (points,) = re.findall(r'points="([^"]*)"', chart)
    assert len(points.split()) == 100 and "mean of 10 steps" in chart and "1,000" in chart
    assert len({point.split(",")[1] for point in points.split()}) == 1


def test_released_weights_are_named_by_their_file(work: Path) -> None:
    record = json.loads((work / "run/settings.json").read_text())
    record["imported"] = {"checkpoint": "weights/mevis_swinb.pth", "digest": "", "tuned": False}
    (work / "run/settings.json").write_text(json.dumps(record))
    assert "weights of mevis_swinb.pth: reads tracks of flow, words of hashed" in page_of(work).words


def test_only_words_of_the_page_are_explained(work: Path) -> None:
    explained = page_of(work).words.partition("Words")[2]
    assert "epoch" in explained and "query" not in explained and "mAP" not in explained
    (work / "run/metrics.jsonl").unlink()
    explained = page_of(work).words.partition("Words")[2]
    assert "one pass over the training data" not in explained and "what training minimises" not in explained


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
