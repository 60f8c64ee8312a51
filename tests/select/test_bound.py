"""Tracks, words, selections, runs and scores are bound to each other by content: what is not what it was made of is refused."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from odd_videos import EXPRESSIONS, write_split
from PIL import Image

import rvos_cache as rc
import rvos_select as rs
from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.store import CacheWriter, SelectionCache, TrackCache, write_tracks
from rvos_select.data.caches import TrackSource
from rvos_select.data.pixels import open_pixels
from rvos_select.data.samples import load_video
from rvos_select.data.texts import TextSource
from rvos_select.evaluation.compare import compare
from rvos_select.inference.predict import select_all
from rvos_select.merging.merge import merge

OTHER = {"0": ("the blue square", [1]), "1": ("a red one", [0]), "2": ("a dog", [])}
TRACKS, WORDS = "cache/valid_u/flow.zarr", "cache/valid_u/text-hashed.zarr"
SETTINGS = {"epochs": 1, "batch": "video", "config": {"width": 8}}


def extract(root: Path, out: Path) -> None:
    rc.extract_all("mevis", root, tracker="flow", encoder="hashed", out=out)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data with its caches, a run, and its selections; other: the same videos with other sentences and answers."""
    out = tmp_path_factory.mktemp("identity")
    for name, sentences in (("data", EXPRESSIONS), ("other", OTHER)):
        write_split(out / name / "train", dict.fromkeys(("t0", "t1", "t2"), (4, True, sentences)))
        write_split(out / name / "valid_u", dict.fromkeys(("v0", "v1"), (4, True, sentences)))
    extract(out / "data", out / "cache")
    extract(out / "other", out / "other-cache")
    train(out, out / "run")
    rs.predict(out / "run", out / TRACKS, out=out / "s.zarr")
    return out


def train(folder: Path, run: Path, seed: int = 0, resume: bool = False, epochs: int = 1) -> Path:
    settings = {**SETTINGS, "seed": seed, "epochs": epochs}
    caches = folder / "cache/train/flow.zarr"
    return rs.train(caches, valid_tracks=folder / TRACKS, selector="mean-cosine", settings=settings, out=run, resume=resume)


@pytest.fixture
def work(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may change. The roots in the cards are those of the original."""
    return shutil.copytree(original, tmp_path / "work")


def retrack(path: Path, video: str) -> None:
    """The video extracted again, with other tracks of the same number, frames and sentences."""
    cache = TrackCache(path)
    record = cache.read(video)
    masks = record.tracks.masks
    shifted = RleMasks.from_dense(np.roll(masks.dense(), 1, axis=3))
    shutil.rmtree(path / "videos" / video)
    write_tracks(CacheWriter(path, cache.card), replace(record, tracks=replace(record.tracks, masks=shifted)))


def test_words_of_other_sentences_are_refused(work: Path) -> None:
    """Video names coincide in many datasets."""
    tracks, words = work / TRACKS, work / "other-cache/valid_u/text-hashed.zarr"
    message = r"video v\d: other sentences than .* lists: expression 0 is 'the red square' and here it is 'the blue square'"
    with pytest.raises(InputError, match=message):
        load_video(TrackSource(tracks), TextSource(words), "v0")
    with pytest.raises(InputError, match=message):
        rs.predict(work / "run", tracks, words, work / "p.zarr")
    with pytest.raises(InputError, match=message):
        select_all(tracks, words, work / "a.zarr")


def test_words_of_another_split_may_not_add_sentences(work: Path) -> None:
    """Sentences that were added to a split since its extraction may select all its tracks."""
    added = {**EXPRESSIONS, "7": ("another one", [0])}
    for split in ("valid_u", "elsewhere"):
        write_split(work / "added" / split, dict.fromkeys(("v0", "v1"), (4, True, added)))
        rc.extract_text("mevis", work / "added", split, "hashed", work / f"{split}.zarr")
    sample = load_video(TrackSource(work / TRACKS), TextSource(work / "valid_u.zarr"), "v0")
    assert sample.candidates[-1].all() and len(sample.expressions) == 4
    with pytest.raises(InputError, match="words of mevis elsewhere with the sentence 'another one'"):
        load_video(TrackSource(work / TRACKS), TextSource(work / "elsewhere.zarr"), "v0")


def test_selections_do_not_apply_to_tracks_that_were_made_again(work: Path) -> None:
    """Of the same number, so that nothing else would tell."""
    retrack(work / TRACKS, "v1")
    message = r"s.zarr, video v1: made of other tracks or labels than .*flow.zarr holds now: it was .* again; predict again"
    with pytest.raises(InputError, match=message):
        rs.evaluate(work / "s.zarr", work / TRACKS)
    with pytest.raises(InputError, match=message):
        merge(work / "s.zarr", [work / TRACKS], work / "png")
    with pytest.raises(InputError, match=message):
        rs.report(work / "run", work / "s.zarr", work / TRACKS, work / "page")
    with pytest.raises(InputError, match=message):
        rs.predict(work / "run", work / TRACKS, out=work / "s.zarr")


def test_selections_are_not_continued_with_other_words(work: Path) -> None:
    words = TextSource(work / WORDS)
    shutil.rmtree(work / WORDS / "videos/v0")
    changed = words.caches[0].folder("v1").attributes
    assert changed["video"] == "v1"
    added = {**EXPRESSIONS, "7": ("another one", [0])}
    shutil.rmtree(work / "data/valid_u")
    write_split(work / "data/valid_u", dict.fromkeys(("v0", "v1"), (4, True, added)))
    shutil.rmtree(work / WORDS)
    rc.extract_text("mevis", work / "data", "valid_u", "hashed", work / WORDS)
    with pytest.raises(InputError, match=r"s.zarr, video v0: made of other words than .*text-hashed.zarr holds now"):
        rs.predict(work / "run", work / TRACKS, out=work / "s.zarr")


def test_a_run_is_the_same_under_any_path(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rc.content_digest(work / "s.zarr")
    merge(work / "s.zarr", [work / TRACKS], work / "png")
    (work / "run").rename(work / "RUN2")
    monkeypatch.chdir(work)
    for run in (Path("RUN2"), work / "RUN2", Path("..", work.name, "RUN2")):
        rs.predict(run, work / TRACKS, out=work / "s.zarr")
        rs.predict(run, Path(TRACKS), out="new.zarr")
    assert rc.content_digest(work / "new.zarr") == before
    merge(work / "new.zarr", [work / TRACKS], work / "png")
    card = SelectionCache(work / "new.zarr").card
    assert (card.producer, card.run) == ("mean-cosine", str(work / "RUN2"))


def test_a_report_shows_the_scores_of_its_own_run(work: Path) -> None:
    train(work, work / "second", seed=1)
    page = rs.report(work / "run", work / "s.zarr", work / TRACKS, work / "page")
    assert page.exists()
    with pytest.raises(
        InputError, match=r"s.zarr: made by the run that was in .*/run \([0-9a-f]{32}\), not by the best module of"
    ):
        rs.report(work / "second", work / "s.zarr", work / TRACKS, work / "page")
    select_all(work / TRACKS, out=work / "all.zarr")
    with pytest.raises(InputError, match=r"all.zarr: made by all-tracks \(no weights\)"):
        rs.report(work / "run", work / "all.zarr", work / TRACKS, work / "page")


def test_a_report_draws_on_no_other_pictures(work: Path) -> None:
    frame = next((work / "data/valid_u/JPEGImages/v0").iterdir())
    times = frame.stat()
    Image.fromarray(255 - np.asarray(Image.open(frame))).save(frame, quality=95)
    os.utime(frame, (times.st_atime, times.st_mtime))
    with pytest.raises(InputError, match="video v0: its frames are other pictures than those that were tracked"):
        rs.report(work / "run", work / "s.zarr", work / TRACKS, work / "page", root=work / "data")


def test_pixels_are_those_that_were_tracked(work: Path) -> None:
    card = TrackCache(work / TRACKS).card
    path = CacheWriter(work / "moved.zarr", card.model_copy(update={"root": str(work / "data")})).path
    shutil.copytree(work / TRACKS / "videos", path / "videos", dirs_exist_ok=True)
    frame = sorted((work / "data/valid_u/JPEGImages/v0").iterdir())[2]
    assert len(open_pixels(TrackSource(path), "v0").select({"T": np.arange(4)})) == 4
    frame.write_bytes(frame.read_bytes() + b"\0")
    with pytest.raises(InputError, match="video v0: tracked in other pictures than the frames of the dataset are now"):
        open_pixels(TrackSource(path), "v0").select({"T": np.arange(1)})


def test_training_is_resumed_with_the_same_data_only(work: Path) -> None:
    run = train(work, work / "again", epochs=1)
    train(work, run, resume=True, epochs=2)
    retrack(work / "cache/train/flow.zarr", "t1")
    with pytest.raises(InputError, match=r"again: was started with other tracks: those of 1 videos are changed, first t1"):
        train(work, run, resume=True, epochs=3)
    shutil.rmtree(work / "cache/train/flow.zarr/videos/t1")
    with pytest.raises(InputError, match=r"again: was started with other tracks: those of 1 videos are gone, first t1"):
        train(work, run, resume=True, epochs=3)


def test_other_data_at_the_root_is_refused(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card may name a relative root, as older versions wrote it: what lies there is compared."""
    card = json.loads((work / TRACKS / "card.json").read_text())
    assert Path(card["root"]).is_absolute()
    cache = CacheWriter(work / "old.zarr", TrackCache(work / TRACKS).card.model_copy(update={"root": "data"})).path
    shutil.copytree(work / TRACKS / "videos", cache / "videos", dirs_exist_ok=True)
    monkeypatch.chdir(work)
    expected = rs.oracle(cache)
    assert rs.evaluate(work / "s.zarr", cache)["against"]["root"] == str(work / "data")
    shutil.move(work / "data", work / "away")
    shutil.move(work / "other", work / "data")
    message = r"old.zarr, video v0: extracted from other data than data holds: expression 0 was 'the red square' and is 'the blue"
    for score in (lambda: rs.oracle(cache), lambda: rs.evaluate(work / "s.zarr", cache)):
        with pytest.raises(InputError, match=message):
            score()
    shutil.rmtree(work / "data")
    without = rs.oracle(cache)
    assert without.pop("against")["root"] is None
    assert without["objects"] == expected["objects"] and without["jf"] == expected["jf"]


def test_masks_that_were_mended_in_the_dataset_are_noticed(work: Path) -> None:
    path = work / "data/valid_u/mask_dict.json"
    masks = json.loads(path.read_text())
    masks["0"] = [None] * len(masks["0"])
    path.write_text(json.dumps(masks))
    with pytest.raises(InputError, match=r"flow.zarr, video v0: extracted from other data than .*: object 0 has other masks"):
        rs.evaluate(work / "s.zarr", work / TRACKS, root=work / "data")


def test_scores_against_other_ground_truth_are_not_compared(work: Path) -> None:
    for name, cache in (("a", "cache"), ("b", "other-cache"), ("c", "cache")):
        select_all(work / cache / "valid_u/flow.zarr", out=work / f"{name}.zarr")
        scores = rs.evaluate(work / f"{name}.zarr", work / cache / "valid_u/flow.zarr")
        assert set(scores["against"]["videos"]) == {"v0", "v1"}
        (work / f"{name}.json").write_text(json.dumps(scores))
    assert compare(work / "a.json", work / "c.json")["jf"]["difference"] == 0
    with pytest.raises(InputError, match=r"b.json: 2 videos were scored against other sentences or masks .*, first v0"):
        compare(work / "a.json", work / "b.json")


def test_caches_of_one_split_are_of_the_same_data(work: Path) -> None:
    """Two trackers, between whose extractions the dataset changed."""
    card = TrackCache(work / "other-cache/valid_u/flow.zarr").card.model_copy(update={"producer": "second"})
    path = CacheWriter(work / "second.zarr", card).path
    shutil.copytree(work / "other-cache/valid_u/flow.zarr/videos", path / "videos", dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"second.zarr, video v0: extracted from other data than .*: expression 0 was"):
        TrackSource([work / TRACKS, path]).info("v0")


def test_videos_that_were_trained_on_are_told(work: Path) -> None:
    """By their content: the same tracks in a cache of another name."""
    shutil.copytree(work / "cache/train", work / "elsewhere")
    with pytest.warns(UserWarning, match="3 of 3 videos were trained on by .*run, first t0: their scores will flatter"):
        rs.predict(work / "run", work / "elsewhere/flow.zarr", out=work / "t.zarr")
    retrack(work / "elsewhere/flow.zarr", "t0")
    with pytest.warns(UserWarning, match="2 of 3 videos were trained on by .*run, first t1"):
        selections = rs.predict(work / "run", work / "elsewhere/flow.zarr", out=work / "u.zarr")
    assert SelectionCache(selections).video_ids() == ("t0", "t1", "t2")


def test_words_of_another_split_give_no_slices(work: Path) -> None:
    words = work / "cache/train/text-hashed.zarr"
    with pytest.raises(InputError, match="words of mevis train, scored is mevis valid_u; give --text of that split"):
        rs.evaluate(work / "s.zarr", work / TRACKS, texts=words)


def test_masks_that_were_lost_are_made_again(work: Path) -> None:
    out = merge(work / "s.zarr", [work / TRACKS], work / "png")
    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    lost, empty, *_ = sorted(before)
    lost.unlink()
    empty.write_bytes(b"")
    merge(work / "s.zarr", [work / TRACKS], out)
    assert {path: path.read_bytes() for path in out.rglob("*.png")} == before
