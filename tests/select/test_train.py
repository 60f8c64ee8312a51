"""Joined caches, labels, training, resuming and prediction on tiny caches written through the store."""

from __future__ import annotations

import copy
import errno
import json
import os
import resource
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_caches import FRAMES, TRACKS, numbers, run, settings, write

from rvos_cache.errors import InputError
from rvos_cache.store import CacheWriter, SelectionCache, read_card
from rvos_cache.types import Overlap
from rvos_select.cli import main
from rvos_select.data import sources
from rvos_select.data.caches import TrackSource
from rvos_select.data.labels import mean_iou, track_targets
from rvos_select.data.sources import held_out
from rvos_select.data.texts import find_text
from rvos_select.inference.predict import predict
from rvos_select.runs.checkpoint import load_selector
from rvos_select.training import train as loop
from rvos_select.training.train import train


def test_labels_by_hand() -> None:
    """Track 0 covers half of object 0 in frame 0 and is equal in frame 1: 0.75; frame 2 is not annotated."""
    inter = np.array([[[2, 4, 0]], [[0, 0, 0]]], np.int32)
    area, gt = np.array([[2, 4, 9], [1, 1, 1]], np.int32), np.array([[4, 4, 0]], np.int32)
    quality = mean_iou(Overlap(inter, area, gt, np.array([True, True, False])))
    assert quality[:, 0].tolist() == [0.75, 0.0]
    assert track_targets(quality, [0], 0.7).tolist() == [1, 0]
    assert track_targets(quality, [0], 0.75).tolist() == [0, 0]
    assert track_targets(quality, [], 0.1).tolist() == [0, 0]


def test_held_out_by_hash() -> None:
    names = [str(i) for i in range(2000)]
    chosen = held_out(names, 0.05)
    assert 60 < len(chosen) < 140
    assert set(chosen) <= set(held_out(names, 0.1))
    assert set(held_out(names[::-1], 0.05)) == set(chosen)
    few = [n for n in names if n not in chosen][:4]
    assert len(held_out(few, 0.05)) == 1
    assert held_out(few[:1], 0.05) == held_out(few, 0) == []


def test_a_mirror_image_is_held_out_with_its_video() -> None:
    """Else validation would be on videos that training has seen."""
    names = [str(i) for i in range(500)]
    both = held_out([*names, *(f"{n}-mirror" for n in names)], 0.05)
    assert [v for v in both if not v.endswith("-mirror")] == held_out(names, 0.05)
    assert {f"{v}-mirror" for v in held_out(names, 0.05)} == {v for v in both if v.endswith("-mirror")}
    few = [n for n in names if n not in both][:3]
    (one,) = held_out(few, 0.05)
    assert sorted(held_out([f"{n}-mirror" for n in few] + few, 0.05)) == [one, f"{one}-mirror"]
    assert held_out([few[0], f"{few[0]}-mirror"], 0.05) == []


def test_join_and_find(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    other, _ = write(tmp_path / "again", "train", ["v0", "v1", "v2"])
    joined = TrackSource([caches[0], other])
    assert joined.tokens("v1").shape == (2 * TRACKS, FRAMES, 8)
    assert joined.overlap("v1").inter.shape == (2 * TRACKS, 3, FRAMES)
    assert TrackSource([caches[0], caches[2]]).video_ids() == ("v0", "v1", "v2", "w0")
    assert find_text(caches[0]) == caches[1]
    clash, _ = write(tmp_path / "clash", "other", ["v0"])
    with pytest.raises(InputError, match="v0"):
        TrackSource([caches[0], clash])
    with pytest.raises(InputError, match=r"flow\.zarr: given twice; give each cache once"):
        TrackSource([caches[0], other, caches[0]])


def test_a_video_that_one_of_the_joined_caches_lacks_is_left_out_and_said(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    """In training, validation and prediction; none in common is an error."""
    other, _ = write(tmp_path / "again", "train", ["v0", "v1", "v7"])
    small = settings(epochs=1)
    says = r"2 videos are left out, .* first .*again/train/flow.zarr: lacks video v2 that .*train/flow.zarr has; extract it there"
    with pytest.warns(UserWarning, match=says) as told:
        out = train(
            [caches[0], other],
            [caches[1]],
            settings=small,
            valid_tracks=[caches[2]],
            valid_texts=[caches[3]],
            out=tmp_path / "run",
        )
    assert len([w for w in told if "left out" in str(w.message)]) == 1 and "\n" not in str(told[0].message)
    with pytest.warns(UserWarning, match=f"validation: {says}"):
        train(
            [caches[2]],
            [caches[3]],
            settings=small,
            valid_tracks=[caches[0], other],
            valid_texts=[caches[1]],
            out=tmp_path / "run2",
        )
    with pytest.warns(UserWarning, match=says):
        selections = predict(out, [caches[0], other], [caches[1]], tmp_path / "s.zarr")
    assert SelectionCache(selections).video_ids() == ("v0", "v1")
    shard, _ = write(tmp_path / "shard", "train", ["v8"])
    with pytest.raises(InputError, match="lacks video v0"):
        TrackSource([caches[0], shard])


@pytest.mark.parametrize("batch", ["video", "single"])
def test_resume_gives_the_same_numbers(
    tmp_path: Path, caches: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch, batch: str
) -> None:
    whole = run(caches, tmp_path / "whole", batch=batch)
    step, calls = loop.Run._step, []

    def interrupted(self: loop.Run, *arguments: object) -> dict[str, float]:
        calls.append(0)
        if len(calls) == self.steps_per_epoch + 2:
            raise KeyboardInterrupt
        return step(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(caches, tmp_path / "cut", batch=batch)
    with pytest.warns(UserWarning, match="cut: is not finished: epoch 1 of 3; rvos-select train --resume finishes it"):
        predict(tmp_path / "cut", [caches[2]], [caches[3]], tmp_path / "early.zarr")
    cut = run(caches, tmp_path / "cut", resume=True, batch=batch)
    assert len(numbers(whole)) == 3
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not finished")
        predict(cut, [caches[2]], [caches[3]], tmp_path / "late.zarr")
    assert numbers(cut) == numbers(whole)
    for name in ("last/model.safetensors", "last/optimizer.safetensors", "best/model.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    with pytest.raises(InputError, match="--resume"):
        run(caches, cut, batch=batch)
    with pytest.raises(InputError, match="started with seed = 0, now it is 1; give the same, or another --out"):
        run(caches, cut, resume=True, batch=batch, seed=1)


def test_overfits_and_predicts(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    out = run(caches, tmp_path / "run", selector="mean-cosine", config={}, optim={"lr": 0.03}, epochs=40)
    assert numbers(out)[-1]["valid/jf"] == 1.0
    chosen = SelectionCache(predict(out, [caches[2]], [caches[3]], tmp_path / "s.zarr")).selections("w0")
    assert [(s.scores > 0.5).tolist() for s in chosen] == [*np.eye(3, dtype=bool).tolist(), [False] * 3]
    again = SelectionCache(predict(out, [caches[2]], [caches[3]], tmp_path / "t.zarr")).selections("w0")
    assert all(np.array_equal(a.scores, b.scores) for a, b in zip(chosen, again))
    only, text = write(tmp_path / "gt", "train", ["v0"], only=True)
    with pytest.raises(InputError, match="ground truth"):
        predict(out, [only], [text], tmp_path / "u.zarr")
    (out / "best/model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="safetensors"):
        predict(out, [caches[2]], [caches[3]], tmp_path / "u.zarr")


def test_videos_that_failed_are_said_and_recorded(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    cards = [read_card(caches[i]) for i in (0, 2)]
    CacheWriter(caches[0], cards[0]).fail("v9", "v9/00000.jpg: truncated")
    CacheWriter(caches[0], cards[0]).fail("v8", "v8/00003.jpg: truncated")
    CacheWriter(caches[2], cards[1]).fail("w9", "w9/00000.jpg: truncated")
    with pytest.warns(UserWarning, match="left out") as told:
        out = run(caches, tmp_path / "run", epochs=1)
    training, validation = (str(w.message) for w in told if "left out" in str(w.message))
    assert training.startswith(f"training: 2 videos failed in extraction, left out; first {caches[0]}, video v8: v8/0000")
    assert "run the extraction again" in training and "\n" not in training
    assert validation.startswith(f"validation: 1 video failed in extraction, left out; first {caches[2]}, video w9: ")
    missing = json.loads((out / "settings.json").read_text())["missing"]
    assert {what: sorted(videos) for what, videos in missing.items()} == {"training": ["v8", "v9"], "validation": ["w9"]}
    assert "truncated" in missing["training"]["v9"]
    with pytest.warns(UserWarning, match="training: 2 videos failed") as told:
        train([caches[0]], [caches[1]], settings=settings(epochs=1), out=tmp_path / "own")
    assert len([w for w in told if "left out" in str(w.message)]) == 1


def test_videos_of_the_split_that_were_not_extracted_are_said_and_recorded(tmp_path: Path) -> None:
    """In training and prediction, where the dataset is still there: an extraction that was interrupted."""
    root = tmp_path / "data"
    for video_id in ("v0", "v1", "v2", "v3", "v4"):
        (root / "train/videos" / video_id).mkdir(parents=True)
        cv2.imwrite(str(root / f"train/videos/{video_id}/00000.jpg"), np.zeros((8, 12, 3), np.uint8))
    (root / "train/expressions.json").write_text(json.dumps({f"v{k}": ["a dog"] for k in range(5)}))
    tracks, text = write(tmp_path / "c", "train", ["v0", "v1", "v2"], dataset="plain", root=str(root))
    CacheWriter(tracks, read_card(tracks)).fail("v3", "truncated")
    says = f"1 of the 5 videos of plain train are not in {tracks}, first v4: .* rvos-cache extract"
    with pytest.warns(UserWarning, match=f"training: {says}"):
        out = train([tracks], [text], settings=settings(epochs=1), out=tmp_path / "run")
    assert sorted(json.loads((out / "settings.json").read_text())["missing"]["training"]) == ["v3", "v4"]
    with pytest.warns(UserWarning, match=f"selections: {says}"):
        predict(out, [tracks], [text], tmp_path / "s.zarr")


def test_the_command_says_in_one_line_that_videos_failed(
    tmp_path: Path, caches: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    CacheWriter(caches[0], read_card(caches[0])).fail("v9", "v9/00000.jpg:\ntruncated")
    words = [
        "--cache",
        caches[0],
        "--text",
        caches[1],
        "--selector",
        "mean-cosine",
        "--set",
        "epochs=1",
        "--out",
        tmp_path / "run",
    ]
    monkeypatch.setattr("sys.argv", ["rvos-select", "train", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    line, *_, epoch, _ = [line for line in capsys.readouterr().err.splitlines() if " to go" not in line]
    assert stop.value.code == 0 and epoch.startswith("epoch 1/1: loss 0.")
    assert line.startswith("warning: training: 1 video failed in extraction, left out; first ")
    assert "video v9: v9/00000.jpg: truncated; fix it and run the extraction again" in line


def test_hidden_answers_are_never_negatives(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    hidden = write(tmp_path / "hidden", "test", ["v9"], hidden=True)
    with pytest.raises(InputError, match="hides"):
        run((*hidden, *caches[2:]), tmp_path / "run")


def test_nan_stops_with_the_video_s_name_and_the_state_is_kept(
    tmp_path: Path, caches: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run(caches, tmp_path / "run", epochs=1)
    before = (out / "last/model.safetensors").read_bytes()
    load = sources.load_video

    def spoiled(*arguments: object, **named: object) -> object:
        sample = load(*arguments, **named)  # type: ignore[arg-type]
        if sample.video_id == "v1":
            sample.tokens[0, 0, 0] = float("nan")
        return sample

    monkeypatch.setattr(sources, "load_video", spoiled)
    with pytest.raises(InputError, match="v1.*loss is nan"):
        run(caches, out, resume=True, epochs=2)
    assert (out / "last/model.safetensors").read_bytes() == before
    assert len(numbers(out)) == 1


def test_a_kill_between_the_renames_of_a_checkpoint_loses_nothing(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    out = run(caches, tmp_path / "run", epochs=2)
    whole = {name: (out / name / "model.safetensors").read_bytes() for name in ("last", "best")}
    for name in whole:
        (out / name).rename(out / f".{name}.old")
        (out / f".{name}.{'0123' * 8}").mkdir()
    assert load_selector(out).state_dict().keys()
    run(caches, out, resume=True, epochs=2)
    assert {name: (out / name / "model.safetensors").read_bytes() for name in whole} == whole
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("refused", ["best", "last", "metrics.jsonl"])
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, caches: tuple[Path, ...], refused: str) -> None:
    """No file may grow beyond the size of the weights; beyond that, so that only the optimiser's does not fit; or beyond a
    line of the record that is long already."""
    out, whole = run(caches, tmp_path / "run", epochs=1), run(caches, tmp_path / "whole", epochs=2)
    weights = (out / "last/model.safetensors").stat().st_size
    size = {"best": weights - 1, "last": weights + 1000, "metrics.jsonl": 9 * weights}[refused]
    if refused == "metrics.jsonl":
        (out / "metrics.jsonl").write_text(json.dumps({**numbers(out)[0], "seconds": "9" * size})[: size - 3] + '"}\n')
    before = {path: path.read_bytes() for path in (out / "last").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(InputError, match=rf"run/{refused}: cannot be written .*File too large.*--resume"):
            run(caches, out, resume=True, epochs=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in (out / "last").iterdir()} == before
    assert load_selector(out).state_dict().keys()
    run(caches, out, resume=True, epochs=2)
    assert numbers(out) == numbers(whole)
    for name in ("last/model.safetensors", "last/optimizer.safetensors", "best/model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_a_full_disk_under_the_curves_is_one_line(
    tmp_path: Path, caches: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """TensorBoard writes in a thread of its own."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    with pytest.raises(InputError, match="run/tensorboard: cannot be written .No space left"):
        run(caches, tmp_path / "run")
    assert "Traceback" not in capfd.readouterr().err


def test_the_record_holds_what_the_caches_decided(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    out = run(caches, tmp_path / "run", epochs=1)
    resolved = json.loads((out / "settings.json").read_text())["resolved"]
    assert resolved["label_iou"] == 0.5
    assert resolved["config"]["token_channels"] == 8
    assert resolved["config"]["motion_dropout"] == 0.2
    with pytest.raises(InputError, match="layers"):
        run(caches, out, resume=True, epochs=1, config={**settings().config, "layers": 2})


def test_a_validation_cache_without_videos_is_no_validation(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    CacheWriter(tmp_path / "none.zarr", read_card(caches[2]))
    with pytest.raises(InputError, match=r"none\.zarr: no expression to validate with; extract its videos, or leave"):
        run((*caches[:2], tmp_path / "none.zarr", caches[3]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_caches_of_the_other_kind_are_named(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    tracks, text, *valid = caches
    for wrong, path, kinds in (
        ((text, text, *valid), text, "text, expected tracks"),
        ((tracks, tracks, *valid), tracks, "tracks, expected text"),
    ):
        with pytest.raises(InputError, match=f"^{path}: holds {kinds}; --cache and --valid-cache want tracks, --text"):
            run(wrong, tmp_path / "run")


def test_other_caches_do_not_resume_a_run_and_the_field_is_named(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    """As of a text cache that older code had tagged: its card named no tagger."""
    out = run(caches, tmp_path / "run", epochs=1)
    record = json.loads((out / "settings.json").read_text())
    tagged = copy.deepcopy(record)
    tagged["cards"]["valid_text"][0]["weights"] = {"hanta": "rules 0"}
    (out / "settings.json").write_text(json.dumps(tagged))
    wanted = "was started with valid_text caches of weights.hanta = 'rules 0', now it is None; give the same, or another --out"
    with pytest.raises(InputError, match=wanted):
        run(caches, out, resume=True, epochs=2)
    record["cards"]["tracks"] *= 2
    (out / "settings.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="was started with 2 tracks caches, now there are 1; give the same"):
        run(caches, out, resume=True, epochs=2)


def test_bf16_learns_too(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    out = run(caches, tmp_path / "run", precision="bf16", epochs=4)
    losses = [row["train/loss"] for row in numbers(out)]
    assert losses[-1] < losses[0]
    weights = load_selector(out).state_dict()
    assert all(value.dtype == torch.float32 for value in weights.values())


def test_a_selector_is_fitted_to_the_training_words_once(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    """Four sentences with the unit vectors as words: by hand, their mean, and 1 / sqrt(variance) where there is any."""
    config = {"word_channels": 8, "width": 16, "layers": 1, "heads": 2, "negatives": 2, "align_width": 16}
    out = run(caches, tmp_path / "run", config=config)
    projection = load_selector(out).word_projection
    assert projection.mean.tolist() == [0.25] * 4 + [0.0] * 4
    share = projection.SHARE * 3 * 0.25 / 8
    # The variance along (1, 1, 1, 1) is zero, and 1/4 in the other three directions of the four.
    expected = (0.25 + share) ** -0.5 * (np.eye(4) - 0.25) + share**-0.5 * 0.25
    assert np.allclose(projection.matrix[:4, :4], expected, rtol=1e-4)
    resumed = run(caches, tmp_path / "part", config=config, epochs=1)
    resumed = run(caches, tmp_path / "part", config=config, resume=True)
    assert numbers(resumed) == numbers(out)
