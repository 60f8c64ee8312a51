"""`ask`: whose frames the masks are of, what of its folder is ever replaced, two at once, kills, a full disk, and what it tells."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_videos import EXPRESSIONS, Result, call, write_split
from PIL import Image

from rvos_cache.errors import InputError
from rvos_cache.media.frames import VideoWriter, open_video
from rvos_cache.store import CacheWriter, Card, SelectionCache, SelectionRecord, write_selections
from rvos_cache.system.locks import folder_lock
from rvos_cache.trackers.flow import FlowTracker
from rvos_cache.types import Selection, TrackSet
from rvos_select.inference import progress as progress_module
from rvos_select.inference.ask import ask
from rvos_select.inference.progress import format_status, step_progress
from rvos_select.merging.hints import below_hint, empty_hint, threshold_below
from rvos_select.merging.policy import PolicyOptions, SelectionPolicy

BEST = PolicyOptions(top1=True)
RED, BLUE = "the red square", "the blue square moving left"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on two videos, t0 and t1."""
    out = tmp_path_factory.mktemp("work")
    write_split(out / "data/train", dict.fromkeys(("t0", "t1"), (5, True, EXPRESSIONS)))
    location = ("--dataset", "mevis", "--root", out / "data", "--split", "train")
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, None, "extract", *location, "--out", out / "c.zarr")[0] == 0
        assert call(patch, None, "extract-text", *location, "--out", out / "t.zarr")[0] == 0
        options = ("--cache", out / "c.zarr", "--text", out / "t.zarr", "--selector", "mean-cosine", "--set", "epochs=1")
        assert call(patch, None, "train", *options, "--set", "config.width=8", "--out", out / "run")[0] == 0
    return out


@pytest.fixture
def clip(work: Path, tmp_path: Path) -> Path:
    """A folder of five frames."""
    shutil.copytree(work / "data/train/JPEGImages/t0", tmp_path / "clip")
    return tmp_path / "clip"


@pytest.fixture
def film(clip: Path, tmp_path: Path) -> Path:
    """The same frames as a film, named as the one that `ask` writes."""
    frames = open_video(clip)
    with VideoWriter(tmp_path / "films/overlay.mp4", 12, frames.size) as writer:
        for t in range(len(frames)):
            writer.write(frames.read(t))
    return tmp_path / "films/overlay.mp4"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def answers(out: Path) -> dict[str, bytes]:
    """The files of an `ask` folder that people look at."""
    return {name: content for name, content in files(out).items() if name.startswith(("masks/", "overlay"))}


def turn_upside_down(folder: Path) -> None:
    """Overwrite the frames in place; names, sizes and times stay."""
    for path in folder.iterdir():
        stat = path.stat()
        Image.fromarray(np.asarray(Image.open(path))[::-1]).save(path, quality=95)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_frames_that_were_overwritten_are_other_frames(work: Path, clip: Path, tmp_path: Path) -> None:
    ask(clip, RED, work / "run", tmp_path / "out", BEST)
    before, times = files(tmp_path / "out"), clip.stat().st_mtime_ns
    turn_upside_down(clip)
    os.utime(clip, ns=(times, times))
    with pytest.raises(InputError, match=rf"out: holds answers about frames that have been changed since \({clip}\); choose"):
        ask(clip, RED, work / "run", tmp_path / "out", BEST)
    assert files(tmp_path / "out") == before
    fresh = ask(clip, RED, work / "run", tmp_path / "fresh", BEST)
    assert (fresh.masks / "00000.png").read_bytes() != before["masks/clip/0/00000.png"]


def test_tracks_belong_to_the_content_of_the_frames(
    work: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy, touched and elsewhere, is the same video; the same frames in another order are another."""
    calls, track = [], FlowTracker.track
    monkeypatch.setattr(FlowTracker, "track", lambda *arguments: (calls.append(0), track(*arguments))[1])
    first = ask(clip, RED, work / "run", tmp_path / "out", BEST)
    shutil.copytree(clip, tmp_path / "copy/clip", copy_function=shutil.copyfile)
    second = ask(tmp_path / "copy/clip", BLUE, work / "run", tmp_path / "out", BEST)
    assert len(calls) == 1 and (first.masks.name, second.masks.name) == ("0", "1")
    names = sorted(path.name for path in clip.iterdir())
    for name, other in zip(names, names[::-1]):
        shutil.copyfile(clip / other, tmp_path / "copy/clip" / name)
    with pytest.raises(InputError, match="holds answers about another video"):
        ask(tmp_path / "copy/clip", RED, work / "run", tmp_path / "out", BEST)
    assert len(calls) == 1


def test_frames_that_change_while_they_are_read_leave_no_tracks(
    work: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    track = FlowTracker.track

    def overwritten(*arguments: Any) -> TrackSet:
        tracks = track(*arguments)
        turn_upside_down(clip)
        return tracks

    with monkeypatch.context() as patch:
        patch.setattr(FlowTracker, "track", overwritten)
        with pytest.raises(InputError, match="clip: its frames were changed while they were read; ask again"):
            ask(clip, RED, work / "run", tmp_path / "out", BEST)
    turn_upside_down(clip)
    assert answers(tmp_path / "out") == {}
    with pytest.raises(InputError, match="changed since"):
        ask(clip, RED, work / "run", tmp_path / "out", BEST)


def test_every_question_has_an_answer_of_its_own(work: Path, clip: Path, tmp_path: Path) -> None:
    """Another sentence, policy or run; the same one again is the answer that is there. Nothing that is there changes."""
    out, seen = tmp_path / "out", dict[str, bytes]()
    shutil.copytree(work / "run", tmp_path / "run2")
    weights = tmp_path / "run2/best/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    questions = [
        (RED, work / "run", BEST),
        (BLUE, work / "run", BEST),
        (RED, work / "run", PolicyOptions(1.0)),
        (RED, tmp_path / "run2", BEST),
    ]
    for n, (sentence, run, policy) in [*enumerate(questions), *enumerate(questions)]:
        result = ask(clip, sentence, run, out, policy)
        assert result.masks == out / "masks/clip" / str(n)
        assert result.overlay == out / (f"overlay-{n}.mp4" if n else "overlay.mp4")
        assert [path.name for path in sorted(result.masks.iterdir())] == [f"{t:05d}.png" for t in range(5)]
        alone = ask(clip, sentence, run, tmp_path / f"alone-{n}", policy)
        assert files(result.masks) == files(alone.masks)
        now = answers(out)
        assert seen.items() <= now.items()
        seen = now
    record = json.loads((out / "answers.json").read_text())
    assert record["video"] == str(clip) and [answer["sentence"] for answer in record["answers"]] == [RED, BLUE, RED, RED]
    assert len(list((out / "cache").glob("tracks-*"))) == 1 and len(list((out / "cache").glob("text-*"))) == 2


def test_the_video_that_was_asked_about_is_never_written(
    work: Path, clip: Path, film: Path, rvos: Callable[..., Result], tmp_path: Path
) -> None:
    before = files(tmp_path)
    (tmp_path / "link").symlink_to(clip)
    for video, out in (
        (clip, clip),
        (clip, clip / "out"),
        (clip, tmp_path / "link/out"),
        (tmp_path / "link", clip),
        (film, film),
        (film, film / "out"),
    ):
        code, stderr = rvos("ask", video, RED, "--run", work / "run", "--out", out)
        assert code == 1 and "lies in the video that was asked about" in stderr and stderr.count("\n") == 0
        assert files(tmp_path) == before
    code, stderr = rvos("ask", film, RED, "--run", work / "run", "--out", film.parent)
    assert code == 1 and f"{film}: is there already and was not written by rvos-select ask" in stderr
    assert files(tmp_path) == before
    assert rvos("ask", film, RED, "--run", work / "run", "--out", tmp_path / "out") == (0, "")
    code, stderr = rvos("ask", tmp_path / "out/overlay.mp4", RED, "--run", work / "run", "--out", tmp_path / "out")
    assert code == 1 and "holds answers about another video" in stderr
    assert film.read_bytes() == before["films/overlay.mp4"]


@pytest.mark.parametrize("name", ["masks/clip/00000.png", "cache/notes", "overlay.mp4", "answers.json", "link"])
def test_files_that_ask_did_not_write_stay(work: Path, clip: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    if name == "link":
        (out / "overlay.mp4").symlink_to(tmp_path / "nothing")
    else:
        (out / name).write_text("mine")
    before = files(out)
    with pytest.raises(InputError, match=r"choose another --out"):
        ask(clip, RED, work / "run", out, BEST)
    assert files(out) == before and not (tmp_path / "nothing").exists()


def test_an_overlay_that_appeared_in_the_meantime_stays(work: Path, clip: Path, tmp_path: Path) -> None:
    ask(clip, RED, work / "run", tmp_path / "out", BEST)
    (tmp_path / "out/overlay-1.mp4").write_text("mine")
    with pytest.raises(InputError, match=r"overlay-1.mp4: is there already"):
        ask(clip, BLUE, work / "run", tmp_path / "out", BEST)
    assert (tmp_path / "out/overlay-1.mp4").read_text() == "mine" and not (tmp_path / "out/masks/clip/1").exists()


def test_a_folder_beside_the_film_is_an_out_like_any_other(work: Path, film: Path, tmp_path: Path) -> None:
    renamed = film.rename(film.with_name("film.mp4"))
    before = renamed.read_bytes()
    result = ask(renamed, RED, work / "run", renamed.parent, BEST)
    assert renamed.read_bytes() == before and result.overlay == film and result.masks == film.parent / "masks/film/0"


def test_two_at_once_on_one_folder(work: Path, clip: Path, tmp_path: Path) -> None:
    with folder_lock(tmp_path / "out", "ask"), pytest.raises(InputError, match="out: another process is writing there"):
        ask(clip, RED, work / "run", tmp_path / "out", BEST)
    ask(clip, RED, work / "run", tmp_path / "out", BEST)


def killed_ask(clip: Path, run: Path, out: Path, call: int) -> None:
    calls = [0]
    for name in ("fsync", "rename", "replace"):
        function = getattr(os, name)

        def counted(*arguments: Any, function: Callable[..., Any] = function) -> Any:
            calls[0] += 1
            if calls[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        setattr(os, name, counted)
    ask(clip, RED, run, out, BEST)


def test_a_kill_loses_and_blocks_nothing(work: Path, clip: Path, tmp_path: Path) -> None:
    """Killed before later and later writes, then it ends as one that was not."""
    whole = ask(clip, RED, work / "run", tmp_path / "whole", BEST)
    expected, exits = files(whole.masks), []
    for call_number in (1, 2, 3, 30, 12, 9, 4, 1, 2, 3, 1):
        process = multiprocessing.get_context("fork").Process(
            target=killed_ask, args=(clip, work / "run", tmp_path / "out", call_number)
        )
        process.start()
        process.join(100)
        exits.append(process.exitcode)
        folder = tmp_path / "out/masks/clip/0"
        assert not folder.exists() or files(folder) == expected
    assert exits.count(-signal.SIGKILL) >= 5 and {*exits} <= {0, -signal.SIGKILL}
    result = ask(clip, RED, work / "run", tmp_path / "out", BEST)
    assert files(result.masks) == expected and len(open_video(result.overlay)) == 5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["answers.json", "cache", "masks", "overlay.mp4"]


def test_a_full_disk_leaves_the_first_answer_and_goes_on(
    work: Path, clip: Path, rvos: Callable[..., Result], tmp_path: Path
) -> None:
    arguments = ("ask", clip, BLUE, "--top1", "--run", work / "run", "--out", tmp_path / "out")
    ask(clip, RED, work / "run", tmp_path / "out", BEST)
    before = answers(tmp_path / "out")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (1, 300, len(before["overlay.mp4"]) // 2):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            code, stderr = rvos(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert code == 1 and stderr.startswith("error: ") and stderr.count("\n") == 0 and str(tmp_path / "out") in stderr
        assert before.items() <= answers(tmp_path / "out").items() and not (tmp_path / "out/overlay-1.mp4").exists()
    assert rvos(*arguments) == (0, "")
    assert len(open_video(tmp_path / "out/overlay-1.mp4")) == 5


def test_it_tells_what_the_run_has_seen_and_what_to_try(
    work: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("ask", clip, RED, "--run", work / "run", "--out", tmp_path / "out", "--threshold", 1)
    assert call(monkeypatch, None, *arguments)[0] == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{work / 'run'}: trained on mevis train in {work / 'data'}"
    match = re.fullmatch(r"0 of (\d+) candidates selected; best score (0\.\d\d)", lines[1])
    assert match and int(match[1]) > 1
    hint = r"every mask is empty: no track scored above 1, the best (0\.\d+); try --top1 or --threshold (0\.\d+)"
    options = re.fullmatch(hint, lines[2])
    assert options and float(options[2]) < float(options[1])
    assert ask(clip, RED, work / "run", tmp_path / "out", PolicyOptions(float(options[2]))).selected >= 1
    assert call(monkeypatch, None, *arguments[:-2], "--top1")[0] == 0
    assert "try" not in capsys.readouterr().out


def test_a_tracker_reports_the_share_that_is_done(work: Path, clip: Path) -> None:
    tracker, shares = FlowTracker(FlowTracker.Settings()), list[float]()  # type: ignore[arg-type]
    tracker.progress = shares.append  # type: ignore[method-assign, assignment]
    for mode in ("small", "full"):
        shares.clear()
        tracker.settings = FlowTracker.Settings(mode=mode)  # type: ignore[call-arg, assignment]
        tracker.track(open_video(clip), ())
        assert shares == sorted(shares) and 0 <= shares[0] < 0.1 and 0.8 < shares[-1] <= 1 and len(shares) > 5


def test_the_time_left_by_hand() -> None:
    assert format_status(0.25, 30) == "25 %, 1:30 left"
    assert format_status(0.9, 3600) == "90 %, 6:40 left"
    assert format_status(1.0, 5) == "100 %, 0:00 left"
    assert format_status(0.001, 5) == "0 %"


def test_without_a_terminal_a_line_comes_early_and_then_one_per_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with step_progress("tracks") as report:
        for seconds in (1, 10, 20, 69, 71, 100):
            now[0] = 1000.0 + seconds
            report(seconds / 100)
    assert capsys.readouterr().err.splitlines() == ["tracks 10 %, 1:30 left", "tracks 71 %, 0:29 left"]


def selections(path: Path, scores: list[list[float]], candidates: list[list[bool]] | None = None, **extra: Any) -> SelectionCache:
    writer = CacheWriter(path, Card(kind="selections", dataset="d", split="s", producer="run", extra=extra))
    allowed = candidates or [[True] * len(row) for row in scores]
    rows = tuple(
        Selection(str(i), np.array(row, np.float32), np.array(own, bool)) for i, (row, own) in enumerate(zip(scores, allowed))
    )
    write_selections(writer, SelectionRecord("v", ("0",), (4, 4), rows))
    return SelectionCache(path)


def test_hints_by_hand(tmp_path: Path) -> None:
    """Nothing is said where one expression has a track; candidates alone count; a drawn mask has a lowest threshold."""
    policy, cases = SelectionPolicy(0.5), iter(range(100))

    def hint(*arguments: Any, policy: SelectionPolicy = policy, **extra: Any) -> str | None:
        return empty_hint(selections(tmp_path / str(next(cases)), *arguments, **extra), policy)

    assert hint([[0.1, 0.6], [0.1, 0.2]]) is None
    text = "every mask is empty: no track of any expression scored above 0.5, the best 0.27; try --top1 or --threshold 0.2"
    assert hint([[0.1, 0.27], [0.1, 0.2]]) == text
    assert hint([[0.1, 0.9], [0.27, 0.2]], [[True, False], [True, True]]) == text
    assert hint([[0.1, 0.27], [0.1, 0.2]], policy=SelectionPolicy(0.5, top1=True)) is None
    assert hint([[0.1, 0.27], [0.1, 0.2]], policy=SelectionPolicy(0.5, empty="top1")) is None
    assert hint([[0.27]], draw_threshold=0.25) == "every mask is empty: no track scored above 0.5, the best 0.27; try --top1"
    assert "the tracker found no track" in str(hint([[0.9]], [[False]]))
    best = "no candidate scored above 0.2, so the best one was selected; --empty zeros selects nothing then"
    assert below_hint(SelectionPolicy(0.2, empty="top1"), 0.2) == best
    for other, score in ((SelectionPolicy(0.2, empty="top1"), 0.21), (policy, 0.1), (SelectionPolicy(0.2, top1=True), 0.1)):
        assert below_hint(other, score) is None
    assert hint([[0.0]]) == "every mask is empty: no track scored above 0.5, the best 0; try --top1"


@pytest.mark.parametrize(
    ("score", "below"),
    [(0.27, 0.2), (0.5, 0.4), (0.2, 0.1), (0.1, 0.09), (0.05, 0.04), (0.049, 0.04), (0.01, 0.009), (1.0, 0.9), (0.0004, None)],
)
def test_a_threshold_below_a_score_selects_it(score: float, below: float | None) -> None:
    assert threshold_below(score) == below
    assert below is None or np.float32(score) > below


def test_empty_masks_are_told_by_every_command(work: Path, rvos: Callable[..., Result], tmp_path: Path) -> None:
    """predict by the selector's own threshold, merge and evaluate by the one that is given, and evaluate of PNGs."""
    caches, text = ("--cache", work / "c.zarr"), ("--text", work / "t.zarr")
    predicted = ("--selections", tmp_path / "s.zarr", *caches)
    code, stderr = rvos("predict", "--run", work / "run", *caches, *text, "--out", tmp_path / "s.zarr")
    assert code == 0 and "every mask is empty" not in stderr
    pngs = ("--predictions", tmp_path / "png", "--dataset", "mevis", "--root", work / "data", "--split", "train")
    for arguments, hint in (
        (
            ("merge", *predicted, "--out", tmp_path / "png", "--threshold", 1),
            "no track of any expression scored above 1, the best",
        ),
        (("evaluate", *predicted, "--threshold", 1), "no track of any expression scored above 1, the best"),
        (("evaluate", *pngs), "png: every mask is empty in the annotated frames; merge again with --top1 or a lower --threshold"),
    ):
        code, stderr = rvos(*arguments)
        assert code == 0 and stderr.startswith("warning: ") and hint in stderr and stderr.count("\n") == 0
    assert rvos("evaluate", *predicted, "--top1") == (0, "")
