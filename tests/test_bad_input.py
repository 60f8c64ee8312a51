"""Wrong input through the command lines: one line that names the file, status 1, nothing lost."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_chain import HASHED, SPLIT, TEXT, VALID, write_chain
from odd_videos import Result, call
from PIL import Image
from safetensors.numpy import load_file, save_file

from rvos_cache.store import CacheWriter, TrackCache, content_digest, read_card
from rvos_select.inference.ask import ask
from rvos_select.merging.policy import PolicyOptions

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "cache"))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chain(tmp_path_factory.mktemp("made"))


def test_odd_videos_go_through_the_whole_chain(work: Path, rvos: Callable[..., Result], tmp_path: Path) -> None:
    cache = TrackCache(work / "valid_u.zarr")
    assert cache.video_ids() == ("flat", "odd", "one")
    assert (cache.info("flat").tracks, cache.info("one").frames) == (0, 1)
    assert cache.info("odd").tracks >= 2
    assert len(cache.info("odd").expressions[0].text.split()) == 504
    location = ("--dataset", "mevis", "--root", work / "data", "--split", "valid_u")
    selections = ("--selections", work / "s.zarr", "--cache", work / "valid_u.zarr")
    tables = {}
    for name, arguments in {
        "png": ("evaluate", *location, "--predictions", work / "png", "--allow-missing"),
        "selections": ("evaluate", *selections, "--allow-missing"),
        "oracle": ("oracle", "--cache", work / "valid_u.zarr", "--video", "odd", "--video", "one", "--video", "flat"),
    }.items():
        code, stderr = rvos(*arguments, "--json", tmp_path / f"{name}.json")
        assert code == 0, stderr
        tables[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert tables["png"] == tables["selections"]
    assert tables["png"]["missing"] == [f"empty/{i}" for i in range(4)]
    assert tables["png"]["expressions"].keys() - set(tables["png"]["missing"]) == tables["oracle"]["expressions"].keys()
    assert tables["oracle"]["expressions"]["flat/2"] == {"j": 1.0, "f": 1.0}
    assert tables["oracle"]["expressions"]["odd/0"]["j"] > 0.5
    assert rvos("report", "--run", work / "run", *selections, "--out", tmp_path / "page") == (0, "")
    page = (tmp_path / "page/index.html").read_text("utf-8")
    assert "蓝色方块" in page and "empty/3" in page
    code, stderr = rvos("evaluate", *location, "--predictions", work / "png")
    assert code == 1 and "video empty, expression 3: the text is empty" in stderr and stderr.count("\n") == 0


def test_info_counts_videos(work: Path, rvos: Callable[..., Result], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(pytest.MonkeyPatch(), None, "info", work / "valid_u.zarr", "--json")[0] == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts.keys() == {"done", "failed", "missing", "bytes", "card", "content"}
    assert (facts["done"], facts["failed"].keys(), facts["missing"]) == (3, {"empty"}, [])
    assert facts["content"] == content_digest(work / "valid_u.zarr")
    assert facts["bytes"] == sum(p.stat().st_size for p in (work / "valid_u.zarr").rglob("*") if p.is_file())
    assert facts["card"]["settings"]["max_tracks"] == 64


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def meta(split: Path, change: Callable[[Any], object]) -> None:
    edit(split / "meta_expressions.json", lambda content: change(content["videos"]))


def write_sentence(text: str) -> Callable[[Path], object]:
    return lambda split: meta(split, lambda v: v["t0"]["expressions"]["1"].update(exp=text))


FRAME = "JPEGImages/t0/00002.jpg"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated JPEG": (lambda s: (s / FRAME).write_bytes((s / FRAME).read_bytes()[:-50]), FRAME),
    "missing frame": (lambda s: (s / FRAME).unlink(), FRAME),
    "frame of another size": (lambda s: Image.new("RGB", (9, 9)).save(s / FRAME), "00002"),
    "wrong mask size": (lambda s: edit(s / "mask_dict.json", lambda m: m["0"][2].update(size=[9, 9])), "mask_dict.json"),
    "empty expression": (write_sentence(""), "meta_expressions.json, video t0, expression 1"),
    "whitespace expression": (write_sentence(" \t\n"), "meta_expressions.json, video t0, expression 1"),
    "video id with ..": (lambda s: meta(s, lambda v: v.update({"../t0": v["t0"]})), "'../t0'"),
    "video id with /": (lambda s: meta(s, lambda v: v.update({"t0/x": v["t0"]})), "'t0/x'"),
    "expression id with ..": (
        lambda s: meta(s, lambda v: v["t0"]["expressions"].update({"..": {"exp": "a", "anno_id": []}})),
        "'..'",
    ),
    "frame name with /": (lambda s: meta(s, lambda v: v["t0"].update(frames=["../t1/00000"])), "'../t1/00000'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", sorted(DAMAGE))
def test_a_bad_video_is_one_line_and_stops_no_other(work: Path, rvos: Callable[..., Result], tmp_path: Path, fault: str) -> None:
    damage, named = DAMAGE[fault]
    shutil.copytree(work / "data/train", tmp_path / "train")
    damage(tmp_path / "train")
    arguments = ("extract", "--dataset", "mevis", "--root", tmp_path, "--split", "train", "--out", tmp_path / "c.zarr")
    code, stderr = rvos(*arguments)
    lines = stderr.splitlines()
    assert code == 1 and len(lines) == 2, stderr
    assert lines[0].startswith("failed ") and named in lines[0]
    assert lines[1].startswith("error: 1 of ") and "run the same command again" in lines[1]
    assert {p.name for p in (tmp_path / "c.zarr/videos").iterdir()} >= {"t1"}
    assert {p.name for p in tmp_path.iterdir()} == {"train", "c.zarr"}
    shutil.rmtree(tmp_path / "train")
    shutil.copytree(work / "data/train", tmp_path / "train")
    assert rvos(*arguments) == (0, "")
    assert content_digest(tmp_path / "c.zarr") == content_digest(work / "train.zarr")


def test_words_of_a_fixed_sentence_are_added_to_the_cache(work: Path, rvos: Callable[..., Result], tmp_path: Path) -> None:
    """The cache is bound to the split's sentences; one that could not be read when the cache was written is none of them."""
    shutil.copytree(work / "data/train", tmp_path / "train")
    before = (tmp_path / "train/meta_expressions.json").read_bytes()
    write_sentence("")(tmp_path / "train")
    split = ("--dataset", "mevis", "--root", tmp_path, "--split", "train")
    arguments = ("extract-text", *split, *HASHED, "--out", tmp_path / "t.zarr")
    code, stderr = rvos(*arguments)
    assert code == 1 and "failed t0: " in stderr
    (tmp_path / "train/meta_expressions.json").write_bytes(before)
    assert rvos(*arguments) == rvos(*arguments) == (0, "")
    assert content_digest(tmp_path / "t.zarr") == content_digest(work / "train-text.zarr")
    write_sentence("another sentence")(tmp_path / "train")
    code, stderr = rvos(*arguments)
    assert code == 1 and "and is 'another sentence'; remove this cache" in stderr and stderr.count("\n") == 0


@pytest.mark.parametrize("verb", ["extract", "extract-text", "check"])
def test_malformed_json_writes_nothing(work: Path, rvos: Callable[..., Result], tmp_path: Path, verb: str) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/meta_expressions.json").write_text('{"videos": {\n "a": }}')
    out = () if verb == "check" else ("--out", tmp_path / "c.zarr")
    code, stderr = rvos(verb, "--dataset", "mevis", "--root", tmp_path, "--split", "train", *out)
    assert code == 1 and stderr.startswith("error: ") and stderr.count("\n") == 0
    assert "meta_expressions.json, line 2, column 7" in stderr
    assert not (tmp_path / "c.zarr").exists()


def test_tokens_that_are_not_numbers(rvos: Callable[..., Result], tmp_path: Path) -> None:
    options = ("--dataset", "store_fixtures:Tiny", "--root", tmp_path / "4", "--split", "train")
    tracker = ("--tracker", "store_fixtures:TinyTracker", "--set", "nan=v03")
    code, stderr = rvos("extract", *options, *tracker, "--out", tmp_path / "c.zarr")
    assert code == 1 and "failed v03: ValueError: TrackSet.tokens hold NaN" in stderr
    assert TrackCache(tmp_path / "c.zarr").video_ids() == ("v00", "v01", "v02")


def test_ask_again_reads_only_the_new_sentence(work: Path, tmp_path: Path) -> None:
    """The same video and output folder: the tracks stay. No score is above 1: the same mask as the best track's, or none."""
    frames, out, masks = work / "data/train/JPEGImages/t0", tmp_path / "ask", {}
    for name, sentence, policy in (
        ("other", "something blue", PolicyOptions(top1=True)),
        ("best", "the red square", PolicyOptions(top1=True)),
        ("fallback", "the red square", PolicyOptions(1.0, empty="top1")),
        ("none", "the red square", PolicyOptions(1.0)),
    ):
        result = ask(frames, sentence, work / "run", out, policy)
        assert result.selected == int(name != "none") < result.tracks
        masks[name] = [path.read_bytes() for path in sorted(result.masks.iterdir())]
        assert len(masks[name]) == 5
    assert masks["best"] == masks["fallback"] != masks["none"]
    assert len(list((out / "cache").glob("tracks-*"))) == 1
    assert len(list((out / "cache").glob("text-*"))) == 2


def damaged_run(work: Path, to: Path, change: Callable[[dict[str, np.ndarray]], object]) -> Path:
    shutil.copytree(work / "run", to)
    weights = load_file(to / "best/model.safetensors")
    change(weights)
    save_file(weights, to / "best/model.safetensors")
    return to


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update({"token_map.weight": np.zeros((8, 9), np.float32)}), "best"),
        (lambda w: w.pop("word_map.weight"), "best"),
        (lambda w: w.update({"bias": np.array(np.nan, np.float32)}), "s.zarr: 2 of its videos failed"),
    ],
)
def test_a_wrong_checkpoint(
    work: Path, rvos: Callable[..., Result], tmp_path: Path, change: Callable[[Any], object], message: str
) -> None:
    run = damaged_run(work, tmp_path / "run", change)
    options = ("--cache", work / "valid_u.zarr", "--text", work / "valid_u-text.zarr", "--out", tmp_path / "s.zarr")
    code, stderr = rvos("predict", "--run", run, *options)
    assert code == 1 and stderr.startswith("error: ") and stderr.count("\n") == 0
    assert message in stderr


def test_a_damaged_cache_stops_no_other_video_in_predict(work: Path, rvos: Callable[..., Result], tmp_path: Path) -> None:
    shutil.copytree(work / "valid_u.zarr", tmp_path / "c.zarr")
    tokens = tmp_path / "c.zarr/videos/odd/tokens/c/0/0/0"
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:40])
    arguments = ("predict", "--run", work / "run", "--cache", tmp_path / "c.zarr", "--text", work / "valid_u-text.zarr")
    code, stderr = rvos(*arguments, "--out", tmp_path / "s.zarr")
    assert code == 1 and stderr.count("\n") == 0 and "videos/odd/tokens" in stderr
    assert {p.name for p in (tmp_path / "s.zarr/videos").iterdir()} == {"flat", "one"}
    assert json.loads((tmp_path / "s.zarr/failures.jsonl").read_text())["video"] == "odd"
    tokens.write_bytes(whole)
    code, stderr = rvos(*arguments, "--out", tmp_path / "s.zarr")
    # The fourth video of the split failed in its extraction.
    left_out = f"warning: selections: 1 video failed in extraction, left out; first {tmp_path}/c.zarr, video empty: "
    assert code == 0 and stderr.startswith(left_out) and stderr.count("\n") == 0
    assert content_digest(tmp_path / "s.zarr") == content_digest(work / "s.zarr")


FOREIGN: dict[str, tuple[tuple[str, ...], str]] = {
    "another split's cache": (("extract", *SPLIT, "--out", "{work}/valid_u.zarr"), "made with split = 'valid_u'"),
    "other settings": (("extract", *SPLIT, "--set", "max_tracks=3", "--out", "{work}/train.zarr"), "settings.max_tracks"),
    "another kind": (("predict", "--run", "{work}/run", *TEXT, "--cache", "{work}/s.zarr", "--out", "{new}"), "holds selections"),
    "another split's words": (
        ("predict", "--run", "{work}/run", *VALID, "--text", "{work}/train-text.zarr", "--out", "{new}"),
        "give --text of its split",
    ),
    "another split's tracks": (
        ("merge", "--selections", "{work}/s.zarr", "--cache", "{work}/train.zarr", "--out", "{new}"),
        "with split valid_u",
    ),
    "no run": (("predict", "--run", "{work}/data", *VALID, *TEXT, "--out", "{new}"), "not a training run"),
    "an empty sentence": (("ask", "{work}/data/train/JPEGImages/t0", " ", "--run", "{work}/run", "--out", "{new}"), "empty"),
    "no video": (("ask", "{work}/run/settings.json", "a", "--run", "{work}/run", "--out", "{new}"), "settings.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(FOREIGN))
def test_files_of_different_origin_are_one_line(work: Path, rvos: Callable[..., Result], tmp_path: Path, case: str) -> None:
    arguments, message = FOREIGN[case]
    before = sorted((str(p), p.stat().st_mtime_ns) for p in work.rglob("*") if p.is_file())
    code, stderr = rvos(*(w.format(work=work, new=tmp_path / "new") for w in arguments))
    assert code == 1 and stderr.startswith("error: ") and stderr.count("\n") == 0
    assert message in stderr
    assert not (tmp_path / "new").exists()
    assert before == sorted((str(p), p.stat().st_mtime_ns) for p in work.rglob("*") if p.is_file())


EMPTY_SPLIT = ("--dataset", "mevis", "--root", "{new}", "--split", "train")
EMPTY: dict[str, tuple[tuple[str, ...], str]] = {
    "predict": (("predict", "--run", "{work}/run", "--cache", "{new}/c.zarr", *TEXT, "--out", "{new}/o"), "c.zarr: holds no video"),
    "merge": (("merge", "--selections", "{new}/s.zarr", *VALID, "--out", "{new}/o"), "s.zarr: holds no video"),
    "mirror": (("mirror", "{new}/c.zarr", "--out", "{new}/o.zarr"), "c.zarr: holds no video"),
    "export-sola": (("export-sola", "{new}/c.zarr", "--out", "{new}/o"), "c.zarr: holds no video"),
    "train": (("train", "--cache", "{new}/c.zarr", *TEXT, "--out", "{new}/o"), "c.zarr: no expression to train on"),
    "extract": (("extract", *EMPTY_SPLIT, "--out", "{new}/o.zarr"), "split train of mevis: lists no video"),
    "extract-text": (("extract-text", *EMPTY_SPLIT, "--out", "{new}/o.zarr"), "split train of mevis: lists no video"),
    "extract-all": (("extract-all", *EMPTY_SPLIT, "--out", "{new}/o"), "split train of mevis: lists no video"),
    "import-masks": (("import-masks", "{new}", *EMPTY_SPLIT, "--out", "{new}/o.zarr"), "split train of mevis: lists no video"),
    "check": (("check", *EMPTY_SPLIT), "split train of mevis: lists no video"),
    "submit": (("submit", "--predictions", "{new}", *EMPTY_SPLIT, "--out", "{new}/o.zip"), "split train of mevis: lists no video"),
}  # fmt: skip


@pytest.mark.parametrize("verb", sorted(EMPTY))
def test_nothing_to_work_on_is_an_error(work: Path, rvos: Callable[..., Result], tmp_path: Path, verb: str) -> None:
    """A cache whose videos all failed, or a split that lists none, looks like success otherwise."""
    for name, source in (("c.zarr", "valid_u.zarr"), ("s.zarr", "s.zarr")):
        CacheWriter(tmp_path / name, read_card(work / source))
    (tmp_path / "train/JPEGImages").mkdir(parents=True)
    (tmp_path / "train/meta_expressions.json").write_text('{"videos": {}}')
    (tmp_path / "train/mask_dict.json").write_text("{}")
    arguments, message = EMPTY[verb]
    code, stderr = rvos(*(w.format(work=work, new=tmp_path) for w in arguments))
    assert code == 1 and stderr.startswith("error: ") and message in stderr and stderr.count("\n") == 0, stderr
    assert not list(tmp_path.glob("o*"))
