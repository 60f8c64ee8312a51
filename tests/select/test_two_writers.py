"""Two processes on one folder, kills and full disks: who is refused, and that nothing that was there is lost."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch
from chain import NAMES, WEIGHTS, write_cache, write_perfect, write_run, write_split
from small_disks import largest_file
from tiny_caches import settings

from rvos_cache.errors import InputError
from rvos_cache.shapes import write_shapes
from rvos_cache.store import SelectionCache, digest
from rvos_cache.system.files import replace_folder, set_aside
from rvos_cache.system.locks import folder_lock
from rvos_select.cli.tables import write_json
from rvos_select.inference.predict import predict
from rvos_select.merging import merge as merging
from rvos_select.merging.merge import merge
from rvos_select.reporting import report
from rvos_select.runs.checkpoint import load_selector
from rvos_select.runs.metrics import read_metrics
from rvos_select.selectors.sola import Sola
from rvos_select.training import train as loop
from rvos_select.training.train import train

pytestmark = pytest.mark.slow

FORK = multiprocessing.get_context("fork")


def run(caches: tuple[Path, ...], out: Path, resume: bool = False, **values: object) -> Path:
    tracks, texts, valid_tracks, valid_texts = caches
    return train(
        tracks, texts, valid_tracks=valid_tracks, valid_texts=valid_texts, settings=settings(**values), out=out, resume=resume
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def train_until(caches: tuple[Path, ...], out: Path, stopped: Event, go_on: Event) -> None:
    """Train, and wait in the second epoch."""
    step = loop.Run._train_epoch

    def waiting(self: loop.Run, epoch: int, bar: object) -> dict[str, float]:
        if epoch == 1:
            stopped.set()
            go_on.wait(60)
        return step(self, epoch, bar)  # type: ignore[arg-type]

    loop.Run._train_epoch = waiting  # type: ignore[method-assign, assignment]
    run(caches, out)


@pytest.mark.usefixtures("forks")
def test_a_run_that_still_trains_is_not_resumed(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    """Nor started anew, and it ends as one that nobody disturbed; meanwhile it can be used."""
    whole, out = run(caches, tmp_path / "whole"), tmp_path / "run"
    stopped, go_on = FORK.Event(), FORK.Event()
    process = FORK.Process(target=train_until, args=(caches, out, stopped, go_on))
    process.start()
    assert stopped.wait(60)
    for resume in (True, False):
        with pytest.raises(InputError, match=rf"{out}: another process is writing there \(train, process {process.pid} on "):
            run(caches, out, resume=resume)
    predict(out, caches[2], caches[3], tmp_path / "s.zarr")
    assert len(read_metrics(out)) == 1
    go_on.set()
    process.join(60)
    assert process.exitcode == 0
    for name in ("last/model.safetensors", "best/model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert [row["epoch"] for row in read_metrics(out)] == [1, 2, 3]


def killed_training(caches: tuple[Path, ...], out: Path, call: int) -> None:
    fsync, calls = os.fsync, [0]

    def count(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = count
    run(caches, out, resume=out.exists())


@pytest.mark.usefixtures("forks")
def test_a_training_that_is_killed_again_and_again_ends_as_one_that_is_not(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    """Killed before a later write each time; its lock, and half a line at the end of its record, hold up nobody."""
    whole, out, kills = run(caches, tmp_path / "whole"), tmp_path / "run", 0
    for call in (1, 4, 9, 13, 10**9):
        process = FORK.Process(target=killed_training, args=(caches, out, call))
        process.start()
        process.join(100)
        kills += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            break
        if (out / "metrics.jsonl").exists():
            with open(out / "metrics.jsonl", "ab") as file:
                file.write(b'{"epoch": 3, "train/lo')
    assert kills >= 3 and process.exitcode == 0
    rows, expected = (
        [{name: value for name, value in row.items() if name != "seconds"} for row in read_metrics(path)] for path in (out, whole)
    )
    assert rows == expected
    for name in ("last/model.safetensors", "last/optimizer.safetensors", "best/model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_reading_a_run_changes_nothing_in_it(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    """Neither the folder that a training is writing, nor the one that a killed training has set aside."""
    out = run(caches, tmp_path / "run", epochs=1)
    half = out / f".best.{'0123' * 8}"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (out / "best").rename(set_aside(out / "best"))
    before = files(out)
    weights = load_selector(out).weights_digest
    predict(out, caches[2], caches[3], tmp_path / "s.zarr")
    assert files(out) == before
    assert weights == digest((set_aside(out / "best") / "model.safetensors").read_bytes())


def test_weights_and_their_digest_are_of_one_file_while_a_training_replaces_it(
    tmp_path: Path, caches: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = run(caches, tmp_path / "run", epochs=1), run(caches, tmp_path / "other", epochs=1, seed=1)
    load, calls = Sola.from_pretrained, []

    def replaced(folder: str) -> Sola:
        calls.append(folder)
        if len(calls) == 1:
            with replace_folder(out / "best") as new:
                for path in (other / "best").iterdir():
                    shutil.copy(path, new)
            raise InputError("half a file")
        return load(folder)

    monkeypatch.setattr(Sola, "from_pretrained", replaced)
    selector = load_selector(out)
    assert len(calls) == 2 and selector.weights_digest == digest((other / "best/model.safetensors").read_bytes())
    own = selector.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in load(str(other / "best")).state_dict().items())
    with monkeypatch.context() as patch:
        patch.setattr(Sola, "from_pretrained", lambda folder: (_ for _ in ()).throw(InputError("damaged")))
        with pytest.raises(InputError, match="damaged"):
            load_selector(out)


@pytest.mark.parametrize("damage", ["text\n", '{"loss": 1}\n', "[]\n"])
def test_a_damaged_line_of_the_record_is_named(tmp_path: Path, caches: tuple[Path, ...], damage: str) -> None:
    out = run(caches, tmp_path / "run", epochs=1)
    with open(out / "metrics.jsonl", "a") as file:
        file.write(damage)
    for command in (lambda: run(caches, out, resume=True, epochs=2), lambda: report(out, out=tmp_path / "page")):
        with pytest.raises(InputError, match=r"metrics.jsonl, line 2: expected JSON with an epoch; remove the line"):
            command()


def hold(folder: Path, locked: Event, release: Event) -> None:
    with folder_lock(folder, "merge"):
        (folder / "a").mkdir()
        (folder / "a/.part-0.1").mkdir()
        locked.set()
        release.wait(60)


def test_a_merge_does_not_touch_what_another_one_writes(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c.zarr")
    selections, out = write_perfect(tmp_path / "s.zarr", cache), tmp_path / "png"
    locked, release = FORK.Event(), FORK.Event()
    process = FORK.Process(target=hold, args=(out, locked, release))
    process.start()
    assert locked.wait(60)
    with pytest.raises(InputError, match=rf"{out}: another process is writing there \(merge, process {process.pid} "):
        merge(selections, [cache], out)
    assert (out / "a/.part-0.1").is_dir() and sorted(path.name for path in out.iterdir()) == [".lock", "a"]
    release.set()
    process.join(60)


def killed_merge(selections: Path, cache: Path, out: Path, call: int) -> None:
    write, calls = Path.write_bytes, [0]

    def count(path: Path, content: bytes) -> int:
        calls[0] += 1
        if calls[0] == call:
            write(path, content[:10])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, content)

    Path.write_bytes = count  # type: ignore[method-assign, assignment]
    merging.merge(selections, [cache], out)


def test_a_merge_that_is_killed_goes_on(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c.zarr")
    selections, out = write_perfect(tmp_path / "s.zarr", cache), tmp_path / "png"
    whole = files(merge(selections, [cache], tmp_path / "whole"))
    for call in (1, 2, 5):
        process = FORK.Process(target=killed_merge, args=(selections, cache, out, call))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        published = [path for path in out.glob("*/*") if not path.name.startswith(".")]
        assert all(sorted(p.name for p in folder.iterdir()) == [f"{name}.png" for name in NAMES] for folder in published)
    assert files(merge(selections, [cache], out)) == whole


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A run's record, data, tracks and selections, and a page of them."""
    write_split(tmp_path / "data")
    cache = write_cache(tmp_path / "c.zarr", root=tmp_path / "data")
    write_perfect(tmp_path / "s.zarr", cache, weights=WEIGHTS)
    report(write_run(tmp_path / "run"), tmp_path / "s.zarr", [cache], tmp_path / "page")
    return tmp_path


def test_a_report_on_a_full_disk_leaves_the_earlier_page(page: Path) -> None:
    """Its pictures too: no room for the first one, or for the largest."""
    before = files(page / "page")
    largest = max(len(content) for name, content in before.items() if name.endswith(".jpg"))
    write_perfect(page / "t.zarr", page / "c.zarr", threshold=0.95, empty="top1", weights=WEIGHTS)
    for limit in (1, largest - 1):
        with largest_file(limit), pytest.raises(OSError, match="File too large"):
            report(page / "run", page / "t.zarr", [page / "c.zarr"], page / "page")
        assert files(page / "page") == before and not (page / "page/.pictures.old").exists()


@pytest.mark.parametrize("own", ["index.html", "pictures/mine.jpg"])
def test_a_report_replaces_only_what_a_report_wrote(page: Path, own: str) -> None:
    out = page / "site"
    (out / own).parent.mkdir(parents=True)
    (out / own).write_text("mine")
    with pytest.raises(InputError, match="was not written by report; choose another --out"):
        report(page / "run", page / "s.zarr", [page / "c.zarr"], out)
    assert files(out) == {own: b"mine"}
    before = files(page / "page")
    report(page / "run", page / "s.zarr", [page / "c.zarr"], page / "page")
    assert files(page / "page") == before


def test_a_report_goes_into_no_folder_of_something_else(page: Path) -> None:
    before = files(page / "data")
    with pytest.raises(InputError, match="data: is not empty and holds no report; choose another --out"):
        report(page / "run", page / "s.zarr", [page / "c.zarr"], page / "data")
    assert files(page / "data") == before


def test_scores_that_do_not_fit_leave_the_earlier_ones(tmp_path: Path) -> None:
    path = tmp_path / "a/scores.json"
    write_json(path, {"jf": 0.5})
    before = path.read_bytes()
    with largest_file(100), pytest.raises(OSError) as caught:
        write_json(path, {"expressions": ["a long list"] * 100})
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["scores.json"]


def test_two_sets_of_moving_shapes_do_not_mix(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "data", "shapes"), pytest.raises(InputError, match="another process is writing there"):
        write_shapes(tmp_path / "data", 2)
    assert not (tmp_path / "data").exists()


def test_the_hint_says_what_would_select_something(tmp_path: Path) -> None:
    """Scores of 0.9 and 0.1 below a threshold of 0.95; with the option that the hint names, there are masks."""
    cache = write_cache(tmp_path / "c.zarr")
    with pytest.warns(
        UserWarning, match="no track of any expression scored above 0.95, the best 0.9; try --top1 or --threshold 0.8"
    ):
        out = merge(write_perfect(tmp_path / "s.zarr", cache, threshold=0.95), [cache], tmp_path / "png")
    assert len(list(out.rglob("*.png"))) == 4 * len(NAMES)
    assert SelectionCache(tmp_path / "s.zarr").scores("b")[0].max() == pytest.approx(0.9)
