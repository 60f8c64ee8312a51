"""Commands that the end-to-end tests do not need, each run as its program runs it, on the smallest data."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from odd_videos import EXPRESSIONS, SIZE, call, write_split
from PIL import Image
from rich.filesize import decimal

from rvos_cache.cli import cli as cache_cli
from rvos_cache.datasets import open_dataset
from rvos_cache.store import TextCache, TrackCache, content_digest, verify
from rvos_cache.text import TEXT_ENCODERS, encoder_class
from rvos_cache.trackers import tracker_class
from rvos_cache.trackers.flow import FlowSettings, FlowTracker
from rvos_select.cli import cli as select_cli
from rvos_select.selectors import SELECTORS, selector_class
from rvos_select.selectors.untrained import UntrainedSelector
from rvos_select.training.train import TrainSettings

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that must succeed; returns what it printed to stdout."""

    def succeed(*arguments: object) -> str:
        # Without `capsys` the helper reads nothing, and both streams stay to be read here.
        code, _ = call(monkeypatch, None, *arguments)
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return succeed


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data: moving shapes; small: two videos of two squares in train, one in valid_u, and the tracks of train."""
    out = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, None, "shapes", "--out", out / "data", "--videos", 2, "--seed", 4)[0] == 0
        write_split(out / "small/train", dict.fromkeys(("t0", "t1"), (5, True, EXPRESSIONS)))
        write_split(out / "small/valid_u", {"v0": (4, True, EXPRESSIONS)})
        split = ["--dataset", "mevis", "--root", out / "small", "--split", "train"]
        assert call(patch, None, "extract", *split, "--out", out / "train.zarr")[0] == 0
    return out


def test_shapes_are_a_dataset_of_mevis_with_a_fifth_held_out(work: Path) -> None:
    train, valid = (open_dataset("mevis", work / "data", split) for split in ("train", "valid_u"))
    assert (len(train.video_ids()), len(valid.video_ids())) == (1, 1)
    assert list(train.check()) == list(valid.check()) == []


def test_shapes_of_a_seed_are_the_same_again(work: Path, run: Run, tmp_path: Path) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    for seed in (4, 5):
        run("shapes", "--out", tmp_path / str(seed), "--videos", 2, "--seed", seed)
    assert files(tmp_path / "4") == files(work / "data") != files(tmp_path / "5")


def test_relabel(work: Path, run: Run, tmp_path: Path) -> None:
    """Nothing has changed, so nothing does."""
    run("relabel", work / "train.zarr", "--out", tmp_path / "l.zarr")
    assert content_digest(tmp_path / "l.zarr") == content_digest(work / "train.zarr")


def test_mirror(work: Path, run: Run, tmp_path: Path) -> None:
    run("mirror", work / "train.zarr", "--out", tmp_path / "m.zarr")
    original, mirrored = TrackCache(work / "train.zarr"), TrackCache(tmp_path / "m.zarr")
    assert mirrored.card.split == "train-mirror" and list(verify(tmp_path / "m.zarr")) == []
    assert mirrored.video_ids() == tuple(f"{video_id}-mirror" for video_id in original.video_ids())
    for video_id in original.video_ids():
        expected = original.masks(video_id).dense()[..., ::-1]
        assert expected.any()
        np.testing.assert_array_equal(mirrored.masks(f"{video_id}-mirror").dense(), expected)


def test_extract_all_writes_tracks_and_words_of_every_split(work: Path, run: Run, tmp_path: Path) -> None:
    printed = run(
        "extract-all", "--dataset", "mevis", "--root", work / "small", "--encoder", "hashed", "--out", tmp_path / "caches"
    )
    assert "2 done, 0 were there, 0 failed" in printed
    names = sorted(str(path.relative_to(tmp_path / "caches")) for path in (tmp_path / "caches").glob("*/*.zarr"))
    assert names == ["train/flow.zarr", "train/text-hashed.zarr", "valid_u/flow.zarr", "valid_u/text-hashed.zarr"]
    assert content_digest(tmp_path / "caches/train/flow.zarr") == content_digest(work / "train.zarr")
    for split, videos in (("train", ("t0", "t1")), ("valid_u", ("v0",))):
        assert TrackCache(tmp_path / "caches" / split / "flow.zarr").video_ids() == videos
        text = TextCache(tmp_path / "caches" / split / "text-hashed.zarr")
        assert text.video_ids() == videos
        assert [e.text for e in text.expressions(videos[0])] == [sentence for sentence, _ in EXPRESSIONS.values()]


def test_plan_counts_the_split_and_writes_nothing(work: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    split = ["--dataset", "mevis", "--root", work / "small", "--split", "train"]
    lines = run("plan", *split, "--sample", 1, "--jobs", 4).splitlines()
    assert lines[0] == "2 videos, 10 frames"
    assert re.fullmatch(r"[\d.]+ [kM]?B(ytes)? on disk|[\d.]+ bytes on disk", lines[1])
    memory = FlowTracker(FlowSettings()).planned_memory(SIZE, 5)
    assert lines[2] == f"{decimal(memory, precision=2)} of memory in each job, at most, for the video that needs most"
    assert re.match(r"[\d.]+ seconds with 4 jobs, ", lines[3])
    # The middle one of two videos of equal length is the second.
    assert re.match(r"timed: [\d.e-]+ s per frame over 5 frames, t1 with 5; the rest is loading", lines[5])
    assert list(tmp_path.iterdir()) == []


def test_export_and_import_of_sola_folders(work: Path, run: Run, tmp_path: Path) -> None:
    """Tokens and masks come back from the folders that SOLA's code reads."""
    run("export-sola", work / "train.zarr", "--out", tmp_path / "sola")
    split = ["--dataset", "mevis", "--root", work / "small", "--split", "train"]
    run("import-sola", tmp_path / "sola", "--tracks", "grid", *split, "--out", tmp_path / "again.zarr")
    original, again = TrackCache(work / "train.zarr"), TrackCache(tmp_path / "again.zarr")
    assert again.card.producer == "sola" and again.video_ids() == original.video_ids()
    for video_id in original.video_ids():
        expected, imported = original.read(video_id).tracks, again.read(video_id).tracks
        # SOLA numbers its tracks and lists them by file name: "10" before "2".
        n = len(expected.origin)
        order = sorted(range(n), key=str)
        np.testing.assert_array_equal(imported.tokens, expected.tokens[order].astype(np.float32))
        assert imported.masks == expected.masks.select(order)


def test_convert_ref_davis(run: Run, tmp_path: Path) -> None:
    """Two videos of DAVIS-2017 with one object each, and the four published text files."""
    base, splits = tmp_path / "davis/DAVIS", {"train": "boat", "val": "bear"}
    for video, t in itertools.product(splits.values(), range(2)):
        for kind, suffix in (("JPEGImages", "jpg"), ("Annotations_unsupervised", "png")):
            path = base / kind / "480p" / video / f"{t:05d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.zeros((24, 32), np.uint8)
            pixels[2:9, 3 + t : 12 + t] = 1
            image = Image.fromarray(pixels * (120 if suffix == "jpg" else 1))
            if suffix == "png":
                image = image.convert("P")
                image.putpalette([0, 0, 0, 128, 0, 0])
            image.save(path)
    (base / "ImageSets/2017").mkdir(parents=True)
    for split, video in splits.items():
        (base / f"ImageSets/2017/{split}.txt").write_text(f"{video}\n")
    (tmp_path / "text").mkdir()
    for name in ("annot1", "annot1_full_video", "annot2", "annot2_full_video"):
        (tmp_path / f"text/Davis17_{name}.txt").write_text("".join(f'{v} 1 "the {v} of {name}"\n' for v in splits.values()))
    printed = run("convert", "ref-davis", "--davis", tmp_path / "davis", "--text", tmp_path / "text", "--out", tmp_path / "out")
    assert "valid: 1 video, 2 frames, 4 expressions" in printed
    dataset = open_dataset("ref-davis17", tmp_path / "out", "valid")
    (video_id,) = dataset.video_ids()
    assert sorted(e.text for e in dataset.expressions(video_id)) == sorted(
        f"the bear of {name}" for name in ("annot1", "annot1_full_video", "annot2", "annot2_full_video")
    )
    truth = dataset.ground_truth(video_id)
    assert truth is not None and truth.masks.area().tolist() == [[63, 63]]


@pytest.mark.parametrize(
    ("program", "name"), [("cache", "flow"), ("cache", "sam2-box"), ("cache", "hashed"), ("select", "sola"), ("select", "train")]
)
def test_settings_lists_every_setting(program: str, name: str) -> None:
    if program == "cache":
        model = encoder_class(name).Settings if name in TEXT_ENCODERS else tracker_class(name).Settings
    else:
        model = TrainSettings if name == "train" else selector_class(name).Config
    result = CliRunner().invoke({"cache": cache_cli, "select": select_cli}[program], ["settings", name])
    assert result.exit_code == 0, result.output
    assert set(model.model_fields) <= set(re.findall(r"[a-z_0-9]+", result.output))


def test_check_tracker_names_each_test() -> None:
    """`flow` passes; the fixture's tracker makes random masks, presence apart from them, and boxes outside the frame."""
    for name, status in (("flow", 0), ("store_fixtures:TinyTracker", 1)):
        result = CliRunner().invoke(cache_cli, ["check-tracker", name])
        lines = result.output.splitlines()
        verdicts = {line.split()[0] for line in lines if line.split()[0] in ("ok", "skipped", "FAILED")}
        assert len(lines) > 5 and ("FAILED" in verdicts) == bool(status) and bool(result.exception) == bool(status)
        assert (f"tracker {name} passes" in lines) == (not status)


def test_check_selector_names_each_test(run: Run) -> None:
    lines = run("check-selector", "mean-cosine").splitlines()
    assert len(lines) > 5 and lines[-1] == "selector mean-cosine passes"
    assert {line.split()[0] for line in lines[:-1]} <= {"ok", "skipped"}


def test_train_names_every_selector_that_is_trained() -> None:
    usage = CliRunner().invoke(select_cli, ["train", "--help"]).output
    trained = [name for name in SELECTORS if not issubclass(selector_class(name), UntrainedSelector)]
    assert [name for name in trained if f"{name}, " not in usage] == []
