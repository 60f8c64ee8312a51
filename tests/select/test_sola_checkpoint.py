"""SOLA's checkpoint as a run, and SOLA's tracks through training, prediction, merging and scores."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from odd_videos import EXPRESSIONS, SIZE, Result, call
from sola_folder import VIDEOS, write_data, write_tracks
from test_sola import reference, released
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.exchange.export_sola import export_sola
from rvos_cache.exchange.import_masks import import_masks
from rvos_cache.exchange.import_sola import import_sola as import_tracks
from rvos_cache.extraction import extract, extract_text
from rvos_cache.media.mask_png import read_mask_png
from rvos_cache.settings import build
from rvos_cache.store import CacheWriter, Card, SelectionCache, TextCache, TrackCache, read_card
from rvos_cache.store import write_tracks as write_record
from rvos_cache.text.roberta import RobertaEncoder, RobertaSettings
from rvos_cache.trackers import tracker_class
from rvos_cache.trackers.flow import FlowTracker
from rvos_select import cli
from rvos_select.data.same_tracker import check_same_tracker, warn_of_other_settings
from rvos_select.exchange.import_sola import import_sola
from rvos_select.inference.predict import predict
from rvos_select.runs.checkpoint import run_cards, run_settings, trained_cards
from rvos_select.selectors.sola import Sola, SolaConfig

sys.path.append(str(Path(__file__).parents[1] / "cache"))
from text_fixtures import tiny_roberta

WORDS = 64
CONFIG = SolaConfig(token_channels=256, word_channels=WORDS, width=16, layers=1, negatives=5)


def check_tokens(run: Path, cache: Path) -> None:
    arguments = (trained_cards(run), f"{run} was trained", {str(cache): read_card(cache)})
    check_same_tracker(*arguments)
    warn_of_other_settings(*arguments)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data, SOLA's tracks of both splits and their caches <split>-<kind>.zarr, words <split>-text.zarr, and epoch_3.pth."""
    out = tmp_path_factory.mktemp("sola")
    for split, kinds in (("train", ("gt", "grid")), ("valid_u", ("grid", "gdino"))):
        write_data(out / "data", split)
        extract_text("mevis", out / "data", split, "hashed", out / f"{split}-text.zarr", overrides={"channels": WORDS})
        for kind in kinds:
            write_tracks(out / "sola", kind, split)
            cache = out / f"{split}-{kind}.zarr"
            assert not import_tracks(out / "sola", "mevis", out / "data", split, cache, tracks=kind).report.failed
    torch.save(released(CONFIG), out / "epoch_3.pth")
    return out


def run(capsys: pytest.CaptureFixture[str], *words: object) -> Result:
    """Exit status of rvos-select, and what it wrote to stderr, progress apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rvos-select", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    lines = capsys.readouterr().err.splitlines()
    return int(stop.value.code or 0), "\n".join(line for line in lines if " to go" not in line)


def given(work: Path, option: str, split: str, *kinds: str) -> list[object]:
    return [w for kind in kinds for w in (option, work / f"{split}-{kind}.zarr")]


def test_imported_tracks_are_trained_on_and_scored(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SOLA's own arrangement: ground-truth and grid tracks to train, grid and box tracks to validate and to select among."""
    tracks, text = given(work, "--cache", "valid_u", "grid", "gdino"), given(work, "--text", "valid_u", "text")
    words = [*given(work, "--cache", "train", "gt", "grid"), *given(work, "--text", "train", "text")]
    words += [*given(work, "--valid-cache", "valid_u", "grid", "gdino"), *given(work, "--valid-text", "valid_u", "text")]
    small = [w for s in ("epochs=2", "batch=video", "optim.lr=1e-3", "config.width=16", "config.layers=1") for w in ("--set", s)]
    status, output = run(capsys, "train", *words, *small, "--out", tmp_path / "run")
    assert status == 0 and "warning" not in output
    arguments = ("--run", tmp_path / "run", *tracks, *text)
    assert run(capsys, "predict", *arguments, "--out", tmp_path / "s.zarr") == (0, "")
    selections = ("--selections", tmp_path / "s.zarr", *tracks)
    assert run(capsys, "merge", *selections, "--top1", "--out", tmp_path / "png") == (0, "")
    where = ("--dataset", "mevis", "--root", work / "data", "--split", "valid_u")
    tables = []
    for name, scored in {"a": (*where, "--predictions", tmp_path / "png"), "b": (*selections, "--top1")}.items():
        assert run(capsys, "evaluate", *scored, "--json", tmp_path / name) == (0, "")
        tables.append(json.loads((tmp_path / name).read_text()))
    assert tables[0]["jf"] == tables[1]["jf"] and set(tables[0]["expressions"]) == {
        f"{v}/{e}" for v in VIDEOS for e in EXPRESSIONS
    }
    assert 0.05 < tables[0]["jf"] < 1
    record = run_settings(tmp_path / "run")
    assert record["resolved"]["label_iou"] == 0.7
    refused = ("--run", tmp_path / "run", *given(work, "--cache", "train", "gt"), *given(work, "--text", "train", "text"))
    code, told = run(capsys, "predict", *refused, "--out", tmp_path / "g.zarr")
    assert code == 1 and "prompted with ground truth are for training" in told


@pytest.mark.usefixtures("on_cpu")
def test_a_checkpoint_scores_as_the_plain_implementation(work: Path, tmp_path: Path) -> None:
    """Selections of the imported run against tensors put through `test_sola`'s loops, expression by expression."""
    caches, texts = [work / "valid_u-grid.zarr", work / "valid_u-gdino.zarr"], [work / "valid_u-text.zarr"]
    imported = import_sola(work / "epoch_3.pth", tmp_path / "run", caches, texts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Random weights select nothing.
        warnings.filterwarnings("ignore", ".*every mask is empty")
        selection_cache = SelectionCache(predict(imported, caches, texts, tmp_path / "s.zarr"))
    state = released(CONFIG)
    again = Sola.from_pretrained(str(imported / "best"))
    assert {name: tuple(value.shape) for name, value in again.state_dict().items()} == {
        n: tuple(v.shape) for n, v in state.items()
    }
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    grid, boxes = (TrackCache(path) for path in caches)
    for video in VIDEOS:
        arrays = grid.tokens(video), boxes.tokens(video), boxes.info(video).prompt
        for i, (selection, words) in enumerate(
            zip(selection_cache.selections(video), TextCache(texts[0]).words(video), strict=True)
        ):
            tokens = np.concatenate([arrays[0], arrays[1][arrays[2] == i]])
            vectors = torch.from_numpy(words.vectors.astype(np.float32))
            logits, _ = reference(state, CONFIG, torch.from_numpy(tokens), vectors)
            np.testing.assert_allclose(selection.scores[selection.candidates], torch.sigmoid(logits), atol=1e-5)
            assert (selection.scores[~selection.candidates] == 0).all()


def test_ask_answers_with_an_imported_run(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint that SOLA's code trained on exported tracks of a tracker of ours: that tracker is run on the video."""
    where = ("--dataset", "mevis", "--root", work / "data", "--split", "valid_u", "--out", tmp_path / "flow.zarr")
    assert call(monkeypatch, capsys, "extract", *where)[0] == 0
    (base,) = export_sola(tmp_path / "flow.zarr", tmp_path)
    assert len(list(base.rglob("*.npy"))) == sum(TrackCache(tmp_path / "flow.zarr").info(v).tracks for v in VIDEOS)
    words = ("import-sola", work / "epoch_3.pth", "--cache", tmp_path / "flow.zarr", *given(work, "--text", "valid_u", "text"))
    assert run(capsys, *words, "--out", tmp_path / "run") == (0, "")
    asked = ("ask", work / "data/valid_u/JPEGImages/a", "the red square", "--run", tmp_path / "run", "--top1")
    assert run(capsys, *asked, "--out", tmp_path / "ask") == (0, "")
    assert read_mask_png(tmp_path / "ask/masks/a/0/00000.png", SIZE).any()
    # Where the tracker was never run for the checkpoint, as SAM 2 for the released one, its weights are not known.
    monkeypatch.setattr(FlowTracker, "weight_hashes", lambda self: {"flow": "a digest"})
    assert run(capsys, *asked, "--out", tmp_path / "unknown") == (0, "")
    assert run(capsys, "report", "--run", tmp_path / "run", "--out", tmp_path / "page") == (0, "")
    code, told = run(capsys, *words, "--out", tmp_path / "run")
    assert code == 1 and "exists already" in told


def test_another_trackers_masks_are_scored_like_the_same_masks_of_flow(work: Path, tmp_path: Path) -> None:
    """Masks of the flow tracker, taken for another's: the same tokens, so the same scores, and a word that they are imported."""
    extract("mevis", work / "data", "valid_u", "flow", tmp_path / "flow.zarr")
    flow, texts = TrackCache(tmp_path / "flow.zarr"), [work / "valid_u-text.zarr"]
    for video in VIDEOS:
        masks = flow.masks(video)
        rows = {f"{k:03d}": [rle | {"counts": rle["counts"].decode()} for rle in masks.row(k)] for k in range(masks.shape[0])}
        (tmp_path / f"{video}.json").write_text(json.dumps(rows))
    assert not import_masks(tmp_path, "mevis", work / "data", "valid_u", tmp_path / "masks.zarr").failed
    imported = import_sola(work / "epoch_3.pth", tmp_path / "run", [tmp_path / "flow.zarr"], texts)
    own = SelectionCache(predict(imported, [tmp_path / "flow.zarr"], texts, tmp_path / "a.zarr"))
    with pytest.warns(UserWarning, match="settings.masks = 'imported'"):
        other = SelectionCache(predict(imported, [tmp_path / "masks.zarr"], texts, tmp_path / "b.zarr"))
    for video in VIDEOS:
        for a, b in zip(own.selections(video), other.selections(video), strict=True):
            assert len(a.scores) > 1 and np.array_equal(a.scores, b.scores)


class Code:
    """Unpickling it makes the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def changed(**tensors: Tensor | None) -> dict[str, Tensor]:
    """The released tensors with some replaced (__ for .), or left out (None)."""
    named = {name.replace("__", "."): value for name, value in tensors.items()}
    return {name: value for name, value in {**released(CONFIG), **named}.items() if value is not None}


Write = Callable[[Path], object]
FAULTS: dict[str, tuple[Write, str]] = {
    "code": (lambda p: torch.save({"x": Code(p.with_name("ran"))}, p), "cannot be read as tensors alone"),
    "cut short": (lambda p: p.write_bytes(_bytes(p)[:-3000]), "cannot be read as tensors alone"),
    "no bytes": (lambda p: p.touch(), "cannot be read as tensors alone"),
    "not a checkpoint": (lambda p: p.write_text("hi"), "cannot be read as tensors alone (KeyError, not written by torch.save"),
    "absent": (lambda p: None, "no such file"),
    "a folder": (lambda p: p.mkdir(), "is a folder, expected a file"),
    "a list": (lambda p: torch.save([torch.zeros(1)], p), "found list"),
    "nothing": (lambda p: torch.save({}, p), "found none"),
    "more than tensors": (lambda p: torch.save({"model": released(CONFIG), "epoch": 3}, p), "model: dict, epoch: int"),
    "a tensor less": (lambda p: torch.save(changed(negative_token__weight=None), p), "negative_token.weight"),
    "a tensor more": (lambda p: torch.save(changed(classifier=torch.zeros(1)), p), "unexpected 1 (classifier)"),
    "no convolution": (lambda p: torch.save(changed(short_motion_encoder__0__weight=None), p), "short_motion_encoder.0.weight"),
    "another shape": (
        lambda p: torch.save(changed(short_motion_encoder__20__bias=torch.zeros(7)), p),
        "short_motion_encoder.20.bias has shape (7,)",
    ),
    "a width that no norm takes": (lambda p: torch.save(changed(negative_token__weight=torch.zeros(5, 12)), p), "multiple of 8"),
    "not finite": (lambda p: torch.save(changed(negative_token__weight=torch.full((5, WORDS), torch.nan)), p), "finite numbers"),
    "whole numbers": (
        lambda p: torch.save(changed(negative_token__weight=torch.zeros(5, WORDS, dtype=torch.int)), p),
        "finite numbers",
    ),
    "tokens of other channels": (
        lambda p: torch.save(released(CONFIG.model_copy(update={"token_channels": 12})), p),
        "reads tokens of 12 channels, those of sola have 256",
    ),
    "words of other channels": (
        lambda p: torch.save(released(CONFIG.model_copy(update={"word_channels": 32})), p),
        "reads words of 32 channels, those of hashed have 64",
    ),
}  # fmt: skip


def _bytes(path: Path) -> bytes:
    torch.save(released(CONFIG), path)
    return path.read_bytes()


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_file_that_is_no_checkpoint_is_one_line(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    write, says = FAULTS[fault]
    write(tmp_path / "epoch_1.pth")
    words = (*given(work, "--cache", "valid_u", "grid"), *given(work, "--text", "valid_u", "text"))
    code, told = run(capsys, "import-sola", tmp_path / "epoch_1.pth", *words, "--out", tmp_path / "run")
    assert code == 1 and told.startswith(f"error: {tmp_path / 'epoch_1.pth'}: ") and says in told, told
    assert told.count("\n") == 0 and {p.name for p in tmp_path.iterdir()} <= {"epoch_1.pth"}


def test_a_run_takes_the_tracks_that_sola_was_made_for(work: Path, tmp_path: Path) -> None:
    """Whether they were imported from its files or extracted here; `ask` gets a tracker that it can run."""
    imported = import_sola(work / "epoch_3.pth", tmp_path / "run", texts=[work / "valid_u-text.zarr"])
    record = TrackCache(work / "valid_u-grid.zarr").read("a")
    known: list[tuple[str, dict[str, Any]]] = [("sam2-grid", {}), ("sam2-grid", {"prompt_every": "half"}), ("sam2-box", {})]
    paths = [work / "valid_u-grid.zarr", work / "valid_u-gdino.zarr"]
    for i, (producer, changed) in enumerate(known):
        settings = tracker_class(producer).Settings().model_dump(mode="json")
        assert changed.keys() <= settings.keys()
        card = Card(
            kind="tracks",
            dataset="mevis",
            split="v",
            producer=producer,
            settings=settings | changed,
            channels=256,
            dtype="float32",
        )
        paths.append(tmp_path / f"{i}.zarr")
        write_record(CacheWriter(paths[-1], card), record)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in paths:
            check_tokens(imported, path)
    fewer = tracker_class("sam2-grid").Settings(max_tracks=9).model_dump(mode="json")
    other = card.model_copy(update={"producer": "sam2-grid", "settings": fewer})
    write_record(CacheWriter(tmp_path / "other.zarr", other), record)
    with pytest.warns(UserWarning, match=r"settings.max_tracks = 9, .* was trained with 64"):
        check_tokens(imported, tmp_path / "other.zarr")
    flow = card.model_copy(update={"producer": "flow"})
    write_record(CacheWriter(tmp_path / "flow.zarr", flow), record)
    with pytest.raises(InputError, match="tokens of tracker flow, .* was trained with sam2-box, sam2-grid, sam2-gt, sola"):
        check_tokens(imported, tmp_path / "flow.zarr")
    first = run_cards(imported)["tracks"]
    assert not first.training_only and build(tracker_class(first.producer).Settings, first.settings, "ask")


def test_words_of_solas_encoder_are_the_default(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a tiny RoBERTa in its place, loaded for the digest that tells its words from another's."""
    folder = tiny_roberta(tmp_path, [text for text, _ in EXPRESSIONS.values()])

    other = tmp_path / "other"
    other.mkdir()

    class Small(RobertaSettings):
        checkpoint: str = str(folder)

    monkeypatch.setattr(RobertaEncoder, "Settings", Small)
    for name, directory in {"same": folder, "other": tiny_roberta(other, ["a"])}.items():
        overrides = {"checkpoint": str(directory)}
        extract_text("mevis", work / "data", "valid_u", "roberta", tmp_path / f"{name}.zarr", overrides=overrides)
    torch.save(released(CONFIG.model_copy(update={"word_channels": 32})), tmp_path / "epoch_1.pth")
    imported = import_sola(tmp_path / "epoch_1.pth", tmp_path / "run")
    assert SelectionCache(
        predict(imported, [work / "valid_u-grid.zarr"], [tmp_path / "same.zarr"], tmp_path / "s.zarr")
    ).video_ids()
    with pytest.raises(InputError, match=r"other.zarr: words with settings.checkpoint"):
        predict(imported, [work / "valid_u-grid.zarr"], [tmp_path / "other.zarr"], tmp_path / "o.zarr")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no --text was given, .*text checkpoint .* cannot be loaded"):
        import_sola(tmp_path / "epoch_1.pth", tmp_path / "again")
    assert not (tmp_path / "again").exists()
