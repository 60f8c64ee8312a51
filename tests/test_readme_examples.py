"""Examples of the READMEs: printed as the files in `tests/examples`, and run as printed; links lead somewhere; the first is short."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from readme_commands import READMES, ROOT
from text_fixtures import tiny_roberta

import rvos_cache as rc
import rvos_select as rs
from rvos_cache.contracts import run_tracker_checks
from rvos_select.contracts import SelectorCase, run_selector_checks
from rvos_select.data.augment import Clip, load_augmentation
from rvos_select.evaluation import protocols
from rvos_select.metrics import table

EXAMPLES = ROOT / "tests" / "examples"


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a README in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


PROGRAMS = [
    pytest.param(code, id=f"{readme.parent.name}-{i}")
    for readme in READMES
    for i, code in enumerate(blocks(readme.read_text("utf-8"), "python"))
    if "import rvos_" in code and "class " not in code
]


def prose(readme: Path) -> str:
    """A README without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", readme.read_text("utf-8"), flags=re.M | re.S)


def anchors(readme: Path) -> set[str]:
    """The anchors of a README's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(readme), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a user: the example files, and a small dataset with the name that the READMEs give it."""
    for path in EXAMPLES.glob("*.py"):
        shutil.copy(path, tmp_path)
    rc.write_shapes(tmp_path / "data/shapes", 4, 1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 130


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_printed_as_it_is(path: Path) -> None:
    code = path.read_text("utf-8")
    printing = [readme for readme in READMES if code in blocks(readme.read_text("utf-8"), "python")]
    assert len(printing) == 1, f"no README prints {path.name} as it is"
    assert f"`{path.name}`" in printing[0].read_text("utf-8")


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_links_lead_somewhere(readme: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(readme)):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = (readme.parent / name).resolve() if name else readme
        assert path.exists() and path.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(path), target


@pytest.mark.slow
@pytest.mark.parametrize("code", PROGRAMS)
def test_a_printed_program_runs(code: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = ("mevis", "data/shapes", "train")
    if "C.zarr" in code:
        rc.extract(*split, "flow", "C.zarr")
        rc.extract_text(*split, "hashed", "T.zarr")
    elif "extract" not in code:
        rc.extract_all("mevis", "data/shapes", splits=["train", "valid_u"], encoder="hashed", out="cache")
    variables: dict[str, object] = {}
    exec(compile(code, "README", "exec"), variables)
    if "scores" in variables:
        assert isinstance(scores := variables["scores"], dict) and 0 <= scores["jf"] <= 1 and scores["expressions"]
    assert ("print(" in code) == bool(capsys.readouterr().out)


def test_the_dataset_and_the_encoder_are_extracted_and_trained_on(folder: Path) -> None:
    write_own_dataset(folder / "mine")
    names = ("my_dataset:MyDataset", "mine")
    assert rc.check(*names, "train") == []
    rc.extract_all(*names, encoder="my_encoder:MyEncoder", out="caches")
    cards = [rc.open_cache(f"caches/train/{name}.zarr").card for name in ("flow", "text-MyEncoder")]
    assert [card.dataset for card in cards] == [names[0]] * 2 and cards[1].channels == 26
    values = {"epochs": 1, "batch": "video", "hold_out": 0.0, "label_rule": "my_functions:soft_iou"}
    run = rs.train("caches/train/flow.zarr", selector="mean-cosine", valid_tracks="caches/train/flow.zarr", out="run", **values)
    selections = rs.predict(run, "caches/train/flow.zarr", out="selections.zarr")
    assert 0 <= rs.evaluate(selections, "caches/train/flow.zarr")["jf"] <= 1


def write_own_dataset(out: Path) -> None:
    """Split train of the moving shapes in the layout of `my_dataset`."""
    source = rc.open_dataset("mevis", "data/shapes", "train")
    sentences = {}
    for video_id in source.video_ids()[:2]:
        video, truth = source.video(video_id), source.ground_truth(video_id)
        assert truth is not None
        shutil.copytree(f"data/shapes/train/JPEGImages/{video_id}", out / "train/frames" / video_id)
        (out / "train/masks" / video_id).mkdir(parents=True)
        numbers = {object_id: a + 1 for a, object_id in enumerate(truth.object_ids)}
        pixels = (truth.masks.dense() * np.array([*numbers.values()])[:, None, None, None]).max(axis=0).astype(np.uint8)
        for t, name in enumerate(video.frame_names):
            Image.fromarray(pixels[t]).save(out / "train/masks" / video_id / f"{name}.png")
        rows = [[e.text, [numbers[target] for target in e.targets or ()]] for e in source.expressions(video_id)]
        sentences[video_id] = rows[:3]
    (out / "train/sentences.json").write_text(json.dumps(sentences))


def test_the_label_rule_is_between_zero_and_one(folder: Path) -> None:
    from rvos_select.data.labels import label_rule

    overlap = rc.Overlap(*(np.array(x, np.int32) for x in ([[[4]], [[1]]], [[4], [4]], [[5]])), np.ones(1, bool))
    labels = label_rule("my_functions:soft_iou")(overlap, [[0], []], 0.5)
    np.testing.assert_allclose(labels, [[0.8, 0], [0, 0]])
    assert labels.dtype == np.float32


def test_the_augmentation_changes_brightness_alone(folder: Path) -> None:
    clip = Clip(torch.full((2, 4, 5, 3), 200, dtype=torch.uint8), torch.ones(1, 2, 4, 5, dtype=torch.bool), "left")
    augment = load_augmentation(("my_functions:darker",))
    assert augment is not None
    darker = augment(clip, torch.Generator().manual_seed(0))
    assert 100 <= int(darker.pixels.min()) == int(darker.pixels.max()) < 200
    assert darker.sentence == "left" and darker.truth is clip.truth


def test_the_metric_is_a_column(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    from success_rate import SuccessRate

    monkeypatch.setitem(table.METRICS, "video", (*table.METRICS["video"], SuccessRate()))
    rc.extract_all("mevis", "data/shapes", splits=["valid_u"], encoder="hashed", out="cache")
    scores = rs.evaluate(rs.select_all("cache/valid_u/flow.zarr", out="all.zarr"), "cache/valid_u/flow.zarr")
    assert 0 <= scores["success"] <= 1
    assert [field.title for field in protocols.DEFAULT_PROTOCOL.fields][-1] == "SR"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "my_selector:MySelector",
        "chunk_selector:ChunkSelector",
        "follow_selector:FollowSelector",
        "adapter_selector:AdapterSelector",
    ],
)
def test_a_selector_passes_its_checks(name: str, folder: Path) -> None:
    config = {}
    if name.startswith("adapter"):
        (folder / "roberta").mkdir()
        checkpoint = tiny_roberta(folder / "roberta", ["the red square moves to the left"])
        channels = json.loads((checkpoint / "config.json").read_text())["hidden_size"]
        config = {"checkpoint": str(checkpoint), "sentence_channels": channels}
    failed = [f"{r.title}: {r.message}" for r in run_selector_checks(SelectorCase(name, config)) if r.status == "FAILED"]
    assert not failed


def test_changed_code_is_another_cache(folder: Path) -> None:
    file = (folder / "my_tracker.py").rename("changing_tracker.py")
    arguments = ("mevis", "data/shapes", "train", "changing_tracker:MyTracker", "mine.zarr")
    assert len(rc.extract(*arguments).done) == 3
    assert rc.extract(*arguments).done == []
    file.write_text(file.read_text().replace("frames / 255", "frames / 256"))
    with pytest.raises(rc.InputError, match="mine.zarr: .*extra.code"):
        rc.extract(*arguments)


def test_a_label_rule_out_of_range_is_an_error(folder: Path) -> None:
    rc.extract_all("mevis", "data/shapes", splits=["train"], encoder="hashed", out="cache")
    code = "def twice(overlap, objects, threshold):\n    return [[2] * len(overlap.area)] * len(objects)\n"
    (folder / "my_rules.py").write_text(code)
    with pytest.raises(rc.InputError, match="the label rule returned the target 2.0, expected values from 0 to 1"):
        rs.train("cache/train/flow.zarr", selector="mean-cosine", label_rule="my_rules:twice", out="run")


@pytest.mark.parametrize("name", ["my_tracker:MyTracker", "corner_tracker:CornerTracker"])
def test_a_tracker_passes_its_checks_among_other_folders(name: str, folder: Path) -> None:
    failed = [f"{r.title}: {r.message}" for r in run_tracker_checks(name, {}) if r.status == "FAILED"]
    assert not failed


@pytest.mark.slow
def test_a_selector_reads_what_a_tracker_writes(folder: Path) -> None:
    for split in ("train", "valid_u"):
        rc.extract("mevis", "data/shapes", split, "corner_tracker:CornerTracker", f"{split}.zarr")
        rc.extract_text("mevis", "data/shapes", split, "hashed", f"text-{split}.zarr")
    case = SelectorCase("corner_selector:CornerSelector", tracks=Path("train.zarr"), texts=Path("text-train.zarr"))
    failed = [f"{r.title}: {r.message}" for r in run_selector_checks(case) if r.status == "FAILED"]
    assert not failed
    rc.extract("mevis", "data/shapes", "valid_u", "flow", "flow.zarr")
    with pytest.raises(
        rc.InputError, match="flow.zarr: tokens of tracker flow, the module is trained with corner_tracker:Corner"
    ):
        rs.train("train.zarr", valid_tracks="flow.zarr", selector="corner_selector:CornerSelector", out="run")
    for batch in ("video", "single"):
        run = rs.train(
            "train.zarr", valid_tracks="valid_u.zarr", selector="corner_selector:CornerSelector", batch=batch, epochs=1, out=batch
        )
    selections = rs.predict(run, "valid_u.zarr", out="selections.zarr")
    assert 0 <= rs.evaluate(selections, "valid_u.zarr")["jf"] <= 1
    rs.merge(selections, "valid_u.zarr", "masks")
    assert Path(rs.report(run, selections, "valid_u.zarr", "report")).is_file()
