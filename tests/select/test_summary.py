"""What training says before it starts and at its end, and data from which nothing can be learned."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from tiny_caches import run, settings, write

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.store import CacheWriter, TrackCache, TrackRecord, read_card, write_tracks
from rvos_cache.types import TrackSet
from rvos_select.data.sources import held_out
from rvos_select.evaluation.oracle import oracle
from rvos_select.selectors.mean_cosine import MeanCosine
from rvos_select.training.summary import best_line
from rvos_select.training.train import train


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if " to go" not in line]


def train_on(tracks: Path, text: Path, out: Path, **values: object) -> Path:
    return train([tracks], [text], settings=settings(selector="mean-cosine", config={}, epochs=1, **values), out=out)


def test_what_is_used_is_printed_before_the_first_epoch(
    tmp_path: Path, caches: tuple[Path, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """v0 to v2 and w0 have four expressions each; the tracks are the objects, so selected labels score 100."""
    run(caches, tmp_path / "run", epochs=2)
    data, valid, ceiling, first, second, best = lines(capsys)
    assert data == "train: 3 videos, 12 expressions of tiny/train"
    assert valid == "validate: 1 video, 4 expressions of tiny/valid, of the validation caches"
    assert ceiling.startswith("ceiling: J&F 100.0 (J 100.0, F 100.0) on the expressions that validation scores")
    assert first.startswith("epoch 1/2: ") and second.startswith("epoch 2/2: ") and best.startswith("best: epoch ")


def test_held_out_videos_are_named(tmp_path: Path, caches: tuple[Path, ...], capsys: pytest.CaptureFixture[str]) -> None:
    out = train_on(*caches[:2], tmp_path / "run")
    (name,) = held_out(["v0", "v1", "v2"], 0.05)
    data, valid, *_ = lines(capsys)
    assert data == "train: 2 videos, 8 expressions of tiny/train"
    by = "held out by a hash of their names (hold_out=0.05)"
    assert valid == f"validate: 1 video, 4 expressions of tiny/train, {by}: {name}"
    assert json.loads((out / "settings.json").read_text())["held_out"] == [name]


def test_the_only_video_is_trained_on_whatever_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also one whose hash is below the share that is held out, and of two such videos one is kept."""
    below = [
        name
        for name in map(str, range(500))
        if len(held_out([name, "x", "y", "z"], 0.05)) and name in held_out([name, "x"], 0.05)
    ]
    name = next(n for n in below if n in held_out([*map(str, range(500))], 0.05))
    assert held_out([name], 0.05) == []
    both = [n for n in map(str, range(500)) if n in held_out([*map(str, range(500))], 0.05)][:2]
    assert len(held_out(both, 0.05)) == 1 and len(held_out([*map(str, range(9))], 0.999)) == 8
    tracks, text = write(tmp_path, "train", [name])
    out = train_on(tracks, text, tmp_path / "run")
    data, valid, ceiling, _, best = lines(capsys)
    assert data == "train: 1 video, 4 expressions of tiny/train"
    assert valid.startswith("validate: nothing (the only video is trained on); the last epoch counts as the best")
    assert ceiling.startswith("ceiling: J&F 100.0") and "that are trained on" in ceiling
    assert best.startswith("best: epoch 1 of 1, the last one, without validation; loss ")
    assert (out / "best/model.safetensors").exists()


def test_the_ceiling_is_the_score_of_the_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """narrow: each track is two thirds of its object, J = 2/3; above 0.7 no track is a label, and only the empty target scores."""
    tracks, text = write(tmp_path / "a", "train", ["v0"])
    valid, valid_text = write(tmp_path / "b", "valid", ["w0"], narrow=True)
    ceilings = {}
    for label_iou in (0.5, 0.7):
        options = {"valid_tracks": [valid], "valid_texts": [valid_text], "out": tmp_path / str(label_iou)}
        train([tracks], [text], settings=settings(selector="mean-cosine", config={}, epochs=1, label_iou=label_iou), **options)
        ceilings[label_iou] = lines(capsys)[2]
    best = oracle([valid])
    assert best["j"] == pytest.approx((3 * 2 / 3 + 1) / 4)
    assert f"J&F {100 * best['jf']:.1f} (J 75.0, F {100 * best['f']:.1f})" in ceilings[0.5]
    assert "J&F 25.0 (J 25.0, F 25.0)" in ceilings[0.7]


def test_expressions_without_a_positive_label_are_counted(tmp_path: Path) -> None:
    """Expression 3 names nothing, so its labels are rightly negative."""
    tracks, text = write(tmp_path, "train", ["v0"], narrow=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_on(tracks, text, tmp_path / "a")
    assert not [w for w in caught if "positive" in str(w.message)]
    says = (
        r"^no positive label for 3 of 3 expressions that name objects \(first v0/0\): .* by max_iou at label_iou=0.7; .*label_iou"
    )
    with pytest.warns(UserWarning, match=says):
        train_on(tracks, text, tmp_path / "b", label_iou=0.7)


def without_tracks(tracks: Path, out: Path) -> Path:
    """The cache with the same videos and no track."""
    writer, cache = CacheWriter(out, read_card(tracks)), TrackCache(tracks)
    for video_id in cache.video_ids():
        info, truth = cache.info(video_id), cache.ground_truth(video_id)
        none, numbers = np.zeros((0, info.frames), np.float16), np.zeros(0, np.int32)
        masks = RleMasks.empty(0, info.frames, info.size)
        empty = TrackSet(
            np.zeros((0, info.frames, 8), np.float16), none, masks, numbers, (), numbers, np.zeros((0, 4), np.float32)
        )
        overlap = cache.overlap(video_id)
        overlap = type(overlap)(overlap.inter[:0], overlap.area[:0], overlap.gt_area, overlap.annotated)
        write_tracks(writer, TrackRecord(video_id, info.frame_names, info.size, info.expressions, empty, truth, overlap))
    return out


def test_a_cache_without_any_track_is_an_error(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    tracks = without_tracks(caches[0], tmp_path / "none/flow.zarr")
    with pytest.raises(InputError, match=r"^none of the 2 videos to train on has a track \(tiny/train, v\d …\)") as error:
        train_on(tracks, caches[1], tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_clips_of_which_none_shows_an_object_are_an_error(
    tmp_path: Path, caches: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expressions of objects that are never visible are left out of clips; here all are."""
    from rvos_select.data import sources

    load = sources.load_video

    def invisible(*arguments: object, **named: object) -> object:
        sample = load(*arguments, **named).with_rows([0, 1, 2])  # type: ignore[arg-type]
        sample.overlap.gt_area[:] = 0
        return sample

    monkeypatch.setattr(sources, "load_video", invisible)
    with pytest.warns(UserWarning, match="left out"), pytest.raises(InputError, match="no expression to train on is left"):
        train_on(*caches[:2], tmp_path / "run", batch="clip")
    assert not (tmp_path / "run").exists()


def test_expressions_that_name_nothing_are_told(
    tmp_path: Path, caches: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rvos_select.data import sources

    load = sources.load_video

    def last_alone(*arguments: object, **named: object) -> object:
        return load(*arguments, **named).with_rows([3])  # type: ignore[arg-type]

    monkeypatch.setattr(sources, "load_video", last_alone)
    with pytest.warns(UserWarning, match="^no expression to train on names an object"):
        train_on(*caches[:2], tmp_path / "run")
    assert (tmp_path / "run/best").is_dir()


def test_modules_that_make_their_own_targets_are_not_warned_of_labels(
    tmp_path: Path, caches: tuple[Path, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that read overlaps or measurements, as DMVS with frozen masks; nor is there a ceiling of labels that they do not read."""
    monkeypatch.setattr(MeanCosine, "requires", ("overlap",))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_on(*write(tmp_path, "train", ["v0"], narrow=True), tmp_path / "b", label_iou=0.7)
    assert not [w for w in caught if "positive" in str(w.message)]
    assert not [line for line in lines(capsys) if line.startswith("ceiling")]


def test_the_best_epoch_is_the_one_that_is_kept() -> None:
    """Of equal scores the later epoch, whose weights replace the earlier ones; the scores of each set follow."""
    rows = [{"epoch": e, "train/loss": 1 / e, "valid/jf": jf, "valid/j": jf - 0.1, "valid/f": jf + 0.1} for e, jf in
            ((1, 0.2), (2, 0.5), (3, 0.5), (4, 0.4))]  # fmt: skip
    assert best_line(rows) == "best: epoch 3 of 4, J&F 50.0 (J 40.0, F 60.0) in validation"
    sets = {"valid/a/valid/jf": 0.25, "valid/a/valid/j": 0.2, "valid/a/valid/f": 0.3}
    assert best_line([{**rows[0], **sets}]).endswith("in validation; a/valid J&F 25.0 (J 20.0, F 30.0)")


def test_a_finished_run_says_its_best_epoch_again(
    tmp_path: Path, caches: tuple[Path, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    run(caches, tmp_path / "run", epochs=1)
    first = lines(capsys)
    run(caches, tmp_path / "run", epochs=1, resume=True)
    assert lines(capsys) == [f"{tmp_path / 'run'}: was finished already, after 1 epoch; nothing is trained", first[-1]]
