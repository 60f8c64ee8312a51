"""The zip of a submission, and what is refused before it is written."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import davis_fixtures as davis
import numpy as np
import pytest
from chain import EXPRESSIONS, NAMES, SIZE, write_cache, write_perfect, write_split
from PIL import Image
from plain_scores import plain_davis

from rvos_cache.datasets.ref_davis17 import RefDavis17
from rvos_cache.errors import InputError
from rvos_cache.media.mask_png import read_mask_png, write_mask_png
from rvos_select.cli import main
from rvos_select.evaluation import Scope
from rvos_select.evaluation.evaluate import evaluate
from rvos_select.evaluation.ref_davis import evaluate_pngs, evaluate_selections
from rvos_select.merging import label_maps
from rvos_select.merging.label_maps import SelectionPredictions
from rvos_select.merging.merge import RECORD, merge
from rvos_select.merging.policy import PolicyOptions
from rvos_select.submission import submit, submit_selections
from rvos_select.submission.ref_davis import submit_ref_davis


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split that hides its answers (data) and masks of all its expressions (png)."""
    out = tmp_path_factory.mktemp("made")
    write_split(out / "data", "valid")
    (out / "data/valid/mask_dict.json").unlink()
    cache = write_cache(out / "c.zarr")
    merge(write_perfect(out / "s.zarr", cache), [cache], out / "png")
    return out


@pytest.fixture
def masks(source: Path, tmp_path: Path) -> Path:
    """Masks that a test may change, without merge's record of their split; the data lies beside them."""
    shutil.copytree(source / "data", tmp_path / "data")
    return shutil.copytree(source / "png", tmp_path / "png", ignore=shutil.ignore_patterns(RECORD))


def test_masks_of_another_split_are_refused(source: Path, tmp_path: Path) -> None:
    """Its videos and expressions may have the same names."""
    message = "png: masks of split valid_u, not valid; give the --split that was predicted"
    with pytest.raises(InputError, match=message):
        submit(source / "png", "mevis", tmp_path / "x.zip", root=source / "data")
    with pytest.raises(InputError, match=message):
        evaluate(predictions=source / "png", dataset="mevis", root=source / "data", split="valid")


def test_the_zip_has_exactly_the_expected_masks(masks: Path, tmp_path: Path) -> None:
    (masks / "a" / "extra").mkdir()
    (masks / "a" / "extra" / "00000.png").write_bytes(b"x")
    out = submit(masks, "mevis", tmp_path / "new/x.zip", root=tmp_path / "data")
    with zipfile.ZipFile(out) as archive:
        expected = [f"{v}/{e}/{t}.png" for v, expressions in EXPRESSIONS.items() for e in expressions for t in NAMES]
        assert archive.namelist() == sorted(expected)
        image = cv2.imdecode(np.frombuffer(archive.read("a/1/00000.png"), np.uint8), cv2.IMREAD_UNCHANGED)
    assert image.shape == SIZE
    assert set(np.unique(image)) == {0, 255}
    again = submit(masks, "mevis", tmp_path / "y.zip", root=tmp_path / "data")
    assert out.read_bytes() == again.read_bytes()


def put(masks: Path, image: np.ndarray) -> None:
    cv2.imwrite(str(masks / "a/1/00001.png"), image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: (m / "a/1/00001.png").unlink(), "missing"),
        (lambda m: (m / "a/1/00001.png").write_bytes(b""), "not a readable PNG"),
        (lambda m: (m / "a/1/00001.png").write_bytes(b"\x89PNG"), "not a readable PNG"),
        (lambda m: put(m, np.full(SIZE, 1, np.uint8)), "0 and 255"),
        (lambda m: put(m, np.zeros((5, 6), np.uint8)), "24, 32"),
        (lambda m: put(m, np.zeros((*SIZE, 3), np.uint8)), "grey"),
    ],
)
def test_a_wrong_mask_is_named_and_nothing_written(masks: Path, tmp_path: Path, change: object, message: str) -> None:
    change(masks)  # type: ignore[operator]
    with pytest.raises(InputError, match=message) as fault:
        submit(masks, "mevis", tmp_path / "x.zip", root=tmp_path / "data")
    assert "a/1/00001.png" in str(fault.value)
    assert "\n" not in str(fault.value)
    assert not list(tmp_path.glob("*x.zip*"))


def test_a_dataset_without_a_format(masks: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mevis"):
        submit(masks, "nope", tmp_path / "x.zip")


def test_a_split_with_public_answers_is_refused(source: Path, masks: Path, tmp_path: Path) -> None:
    """But for the one that MeViS's own code scores."""
    for split in ("train", "valid_u"):
        write_split(tmp_path / "public", split)
    with pytest.raises(InputError, match="split train of mevis has public ground truth"):
        submit(masks, "mevis", tmp_path / "x.zip", root=tmp_path / "public", split="train")
    assert not (tmp_path / "x.zip").exists()
    out = submit(masks, "mevis", tmp_path / "x.zip", root=tmp_path / "public", split="valid_u")
    assert out.read_bytes() == submit(masks, "mevis", tmp_path / "y.zip", root=tmp_path / "data").read_bytes()


def test_train_of_youtube_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data/meta_expressions/train/meta_expressions.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"videos": {"a": {"frames": ["00000"], "expressions": {"0": {"exp": "x", "obj_id": "1"}}}}}))
    (tmp_path / "png").mkdir()
    for split in ("train", "fit"):
        with pytest.raises(InputError, match=f"split {split} of ref-youtube-vos has public ground truth"):
            submit(tmp_path / "png", "ref-youtube-vos", tmp_path / "x.zip", root=tmp_path / "data", split=split)


def test_released_answers_of_a_hidden_split(masks: Path, tmp_path: Path) -> None:
    write_split(tmp_path / "public", "valid")
    with pytest.raises(InputError, match="split valid of mevis has public ground truth"):
        submit(masks, "mevis", tmp_path / "x.zip", root=tmp_path / "public")


# Ref-DAVIS17.


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """data and png: each expression's own object, worn, so that objects overlap."""
    davis.write_split(tmp_path / "data")
    davis.write_masks(tmp_path / "png")
    rng = np.random.default_rng(0)
    for path in sorted((tmp_path / "png").rglob("*.png")):
        mask = read_mask_png(path, davis.SIZE)
        write_mask_png(path, np.roll(mask, rng.integers(-9, 10, 2), (0, 1)) | (rng.random(davis.SIZE) < 0.05))
    return tmp_path


def pictures(out: Path) -> dict[str, np.ndarray]:
    """Name in the zip -> label map."""
    with zipfile.ZipFile(out) as archive:
        return {name: np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()}


def test_one_picture_of_all_objects(split: Path) -> None:
    """The names, the form, and that of overlapping objects the lower one wins."""
    out = submit(split / "png", "ref-davis17", split / "x.zip", root=split / "data")
    maps_of = pictures(out)
    expected = [f"anno_{a}/{v}/{t}.png" for a in range(4) for v in davis.NAMED for t in davis.NAMES]
    assert list(maps_of) == sorted(expected)
    with zipfile.ZipFile(out) as archive:
        image = Image.open(io.BytesIO(archive.read("anno_2/a/00001.png")))
        assert (image.mode, image.size) == ("P", davis.SIZE[::-1])
        colours = np.array(image.getpalette()).reshape(-1, 3)
    assert colours[[0, 1, 2, 3, 9, 22, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [191, 0, 0], [22, 22, 22], [255, 255, 255]
    ]  # fmt: skip
    for name, pixels in maps_of.items():
        annotator, video, frame = name.removeprefix("anno_").split("/")
        masks_of_objects = [
            read_mask_png(split / "png" / video / str(4 * i + int(annotator)) / frame, davis.SIZE)
            for i in range(davis.NAMED[video])
        ]
        assert np.array_equal(pixels, np.concatenate([~np.any(masks_of_objects, axis=0)[None], masks_of_objects]).argmax(0))
    again = submit(split / "png", "ref-davis17", split / "y.zip", root=split / "data")
    assert out.read_bytes() == again.read_bytes()


def test_the_benchmarks_code_gives_the_zip_the_same_score(split: Path) -> None:
    maps_of = pictures(submit(split / "png", "ref-davis17", split / "x.zip", root=split / "data"))
    scores = evaluate_pngs("ref-davis17", split / "data", "valid", split / "png")["annotators"]
    for a in range(4):
        sums = np.zeros(2)
        for video in davis.NAMED:
            maps = np.stack([maps_of[f"anno_{a}/{video}/{t}.png"] for t in davis.NAMES])
            sums += plain_davis(maps, np.stack([davis.annotation(video, t) for t in range(davis.FRAMES)]))
        assert (scores[str(a)]["j"], scores[str(a)]["f"]) == pytest.approx(tuple(sums / 5), abs=1e-9)


def test_a_zip_of_selections_knows_their_scores(split: Path) -> None:
    """The third sentence takes everything and is the surest: PNGs of the same masks cannot say so."""
    cache = davis.write_cache(split / "c.zarr", split / "data")
    selections = davis.write_scores(
        split / "s.zarr",
        lambda v, i: np.where(np.arange(7) == 6, 0.7, 0.1) if (v, i) == ("a", 2) else davis.right(v, i),
    )
    data = RefDavis17(split / "data", "valid")
    sure = pictures(submit_ref_davis(SelectionPredictions(selections, [cache]), data, split / "x.zip"))
    assert set(np.unique(sure["anno_1/a/00000.png"])) == {0, 3}
    pngs = merge(selections, [cache], split / "merged", PolicyOptions(top1=True))
    plain = pictures(submit_ref_davis(pngs, data, split / "y.zip"))
    assert set(np.unique(plain["anno_1/a/00000.png"])) == {0, 1, 2, 3}
    maps = np.stack([sure[f"anno_1/a/{t}.png"] for t in davis.NAMES])
    expected = plain_davis(maps, np.stack([davis.annotation("a", t) for t in range(davis.FRAMES)]))
    scores = evaluate_selections(selections, [cache], scope=Scope(videos=["a"]))["annotators"]["1"]
    assert (scores["j"], scores["f"]) == pytest.approx(tuple(np.array(expected) / 3), abs=1e-9)


def test_the_command_packs_selections_as_their_scores_say(
    split: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the hint in the card or by --root, the same bytes; every other way to ask is one line, and nothing is written."""
    cache = davis.write_cache(split / "c.zarr", split / "data")
    selections = davis.write_scores(split / "s.zarr", davis.right)
    expected = submit_ref_davis(
        SelectionPredictions(selections, [cache]), RefDavis17(split / "data", "valid"), split / "w.zip"
    ).read_bytes()

    def submit_command(*words: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["rvos-select", "submit", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), capsys.readouterr().err

    cached = ("--selections", selections, "--cache", cache)
    assert submit_command(*cached, "--out", split / "x.zip") == (0, "")
    assert (
        submit_command(
            *cached, "--root", split / "data", "--dataset", "ref-davis17", "--split", "valid", "--out", split / "y.zip"
        )[0]
        == 0
    )
    assert (split / "x.zip").read_bytes() == (split / "y.zip").read_bytes() == expected
    # Tracks above 0.05 are all of them: each object's mask is the union of everything.
    assert submit_command(*cached, "--threshold", 0.05, "--out", split / "z.zip")[0] == 0
    assert (split / "z.zip").read_bytes() != expected
    # No score is above 0.95: the best track, as where nothing is asked, or nothing.
    for policy, same in ((("--top1",), True), (("--threshold", 0.95, "--empty", "top1"), True), (("--threshold", 0.95), False)):
        assert submit_command(*cached, *policy, "--out", split / "z.zip")[0] == 0
        assert ((split / "z.zip").read_bytes() == expected) is same
    assert "give --empty together with --threshold" in submit_command(*cached, "--empty", "top1", "--out", split / "no.zip")[1]
    out = ("--out", split / "no.zip")
    for words in ((), ("--selections", selections), ("--cache", cache), (*cached, "--predictions", split / "png")):
        status, stderr = submit_command(*words, *out)
        assert status == 2 and "--selections S.zarr with --cache" in stderr
    pngs = ("--predictions", split / "png")
    assert "--predictions needs --dataset" in submit_command(*pngs, *out)[1]
    for policy in (("--threshold", 0.5), ("--top1",), ("--empty", "zeros")):
        status, stderr = submit_command(*pngs, "--dataset", "mevis", *policy, *out)
        assert status == 2 and "--predictions takes no --threshold, --top1 or --empty: give them to merge" in stderr
    for words, message in ((("--split", "train"), "not split train"), (("--dataset", "mevis"), "not dataset mevis")):
        status, stderr = submit_command(*cached, *words, *out)
        assert status == 1 and message in stderr and stderr.count("\n") == 1
    (split / "data").rename(split / "elsewhere")
    status, stderr = submit_command(*cached, *out)
    assert status == 1 and "is not at the root of the card; give --root" in stderr
    assert submit_command(*cached, "--root", split / "elsewhere", "--out", split / "v.zip")[0] == 0
    assert (split / "v.zip").read_bytes() == expected
    assert not (split / "no.zip").exists()


def test_a_video_without_a_selection_is_named(split: Path) -> None:
    cache = davis.write_cache(split / "c.zarr", split / "data")
    selections = davis.write_scores(split / "s.zarr", davis.right, videos=["a"])
    with pytest.raises(InputError, match="no selection of expression b/0; extract and predict its video"):
        submit_selections(selections, [cache], split / "x.zip")
    assert not (split / "x.zip").exists()


def test_selections_of_other_datasets_are_merged_first(source: Path, tmp_path: Path) -> None:
    data = write_split(tmp_path / "data")
    with pytest.raises(InputError, match="c.zarr: of mevis, not ref-davis17; run rvos-select merge, then submit --predictions"):
        submit_selections(
            write_perfect(tmp_path / "s.zarr", source / "c.zarr"), [source / "c.zarr"], tmp_path / "x.zip", root=data
        )


def test_each_mask_is_read_once(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths_read: list[Path] = []

    def counted(path: Path, size: tuple[int, int]) -> np.ndarray:
        paths_read.append(path)
        return read_mask_png(path, size)

    monkeypatch.setattr(label_maps, "read_mask_png", counted)
    submit(split / "png", "ref-davis17", split / "x.zip", root=split / "data")
    assert sorted(paths_read) == sorted((split / "png").rglob("*.png"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.unlink(), "missing"),
        (lambda p: p.write_bytes(b""), "not a whole PNG"),
        (lambda p: Image.new("L", (6, 5)).save(p), r"\(40, 60\)"),
        (lambda p: Image.new("L", davis.SIZE[::-1], 3).save(p), "0 and 255"),
        (lambda p: Image.new("RGB", davis.SIZE[::-1]).save(p), "grey"),
    ],
)
def test_a_wrong_mask_of_davis_is_named_and_nothing_written(split: Path, change: Callable[[Path], object], message: str) -> None:
    change(split / "png/a/5/00001.png")
    with pytest.raises(InputError, match=message) as fault:
        submit(split / "png", "ref-davis17", split / "x.zip", root=split / "data")
    assert "a/5/00001.png" in str(fault.value)
    assert "\n" not in str(fault.value)
    assert not list(split.glob("*x.zip*"))


def test_an_object_number_that_the_benchmark_refuses(split: Path) -> None:
    path = split / "data/meta_expressions/valid/meta_expressions.json"
    meta = json.loads(path.read_text())
    for i in range(4):
        meta["videos"]["b"]["expressions"][str(i)]["obj_id"] = "21"
    path.write_text(json.dumps(meta))
    with pytest.raises(InputError, match="video b, frame 00000: object 21, the benchmark takes 20"):
        submit(split / "png", "ref-davis17", split / "x.zip", root=split / "data")
    assert not list(split.glob("*x.zip*"))


def test_davis_train_is_scored_by_no_benchmark(split: Path) -> None:
    for folder in (split / "data/valid", split / "data/meta_expressions/valid"):
        folder.rename(folder.with_name("train"))
    with pytest.raises(InputError, match="split train of ref-davis17 has public ground truth"):
        submit(split / "png", "ref-davis17", split / "x.zip", root=split / "data", split="train")


def test_the_zip_is_sorted_whatever_the_order_of_the_videos(masks: Path, tmp_path: Path) -> None:
    first = submit(masks, "mevis", tmp_path / "x.zip", root=tmp_path / "data").read_bytes()
    path = tmp_path / "data/valid/meta_expressions.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({"videos": dict(reversed(meta["videos"].items()))}))
    assert submit(masks, "mevis", tmp_path / "y.zip", root=tmp_path / "data").read_bytes() == first
