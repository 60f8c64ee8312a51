"""The CLIP baseline: scores of caches by hand, words and tracks of other CLIPs, and every command that runs it without a run."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from odd_videos import EXPRESSIONS, write_split
from safetensors.torch import load_file
from tiny_clip import write_hub_clip, write_tiny_clip
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_cache.clip.image import ConvNextImage
from rvos_cache.clip.pooling import CLIP, FRAME, POOL
from rvos_cache.clip.towers import HEAD_FILE, encode_texts, load_text_tower, load_tokenizer
from rvos_cache.contracts.checks import CheckSkipped
from rvos_cache.errors import InputError
from rvos_cache.exchange.pool_clip import pool_clip
from rvos_cache.extraction import extract, extract_text
from rvos_cache.store import SelectionCache, TrackCache
from rvos_select.cli import cli
from rvos_select.contracts import SELECTOR_CHECKS, SelectorCase
from rvos_select.data.batch import Batch
from rvos_select.data.same_tracker import check_same_tracker
from rvos_select.inference.ask import ask, ask_untrained
from rvos_select.inference.predict import predict
from rvos_select.merging.policy import resolve_policy
from rvos_select.selectors import Selector, SelectorConfig
from rvos_select.training.train import train

pytestmark = pytest.mark.usefixtures("on_cpu")
NAME, SPLIT = "clip-zero-shot", "valid_u"
SIZES = {"short_side": 64}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shapes; `flow` tracks of valid_u, pooled and with words by a ConvNeXt's CLIP (clip, c) and by a CLIPModel (hub, h)."""
    out = tmp_path_factory.mktemp("zero-shot")
    write_split(out / f"shapes/{SPLIT}", dict.fromkeys(("v0", "v1"), (5, True, EXPRESSIONS)))
    write_tiny_clip(out / "clip")
    write_hub_clip(out / "hub", load_tokenizer(str(out / "clip")))
    extract("mevis", out / "shapes", SPLIT, "flow", out / "flow.zarr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        for name in ("clip", "hub"):
            pool_clip(out / "flow.zarr", out / f"{name}/c.zarr", overrides={"checkpoint": str(out / name), **SIZES})
            words = out / f"{name}/t.zarr"
            extract_text("mevis", out / "shapes", SPLIT, "clip", words, overrides={"checkpoint": str(out / name)})
    return out


@pytest.fixture
def run() -> Callable[..., tuple[int, str]]:
    def call(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(cli, [*map(str, arguments)])
        error = result.exception
        if error is not None and not isinstance(error, (InputError, SystemExit)):
            raise error
        return result.exit_code, result.output + (str(error) if isinstance(error, InputError) else "")

    return call


def plain_scores(checkpoint: Path, cache: TrackCache, video_id: str, average: str, score: str) -> list[list[float]]:
    """Scores of each expression and track, from the tensors of the head and the sentences, one track after the other."""
    if (checkpoint / HEAD_FILE).exists():
        t = load_file(checkpoint / HEAD_FILE)
        factor = t["logit_scale"].exp().item()

        def head(x: Tensor) -> Tensor:
            x = F.layer_norm(x[-32:], (32,), t["norm.weight"], t["norm.bias"], 1e-6)
            return F.linear(F.gelu(F.linear(x, t["fc1.weight"], t["fc1.bias"])), t["fc2.weight"])
    else:
        t = load_file(checkpoint / "model.safetensors")
        factor = t["logit_scale"].exp().item()

        def head(x: Tensor) -> Tensor:
            norm = "vision_model.post_layernorm"
            return F.linear(F.layer_norm(x, (24,), t[f"{norm}.weight"], t[f"{norm}.bias"], 1e-5), t["visual_projection.weight"])

    features, areas = torch.from_numpy(cache.feature(video_id, POOL)).float(), cache.masks(video_id).area()
    sentences = [e.text for e in cache.info(video_id).expressions]
    words, lengths = encode_texts(load_text_tower(str(checkpoint)), load_tokenizer(str(checkpoint)), sentences)
    rows = []
    for own, length in zip(words, lengths):
        cosines = []
        for n in range(features.shape[1]):
            frames = [features[f, n] for f in range(len(features)) if areas[n, f] > 0]
            if average == "projections":
                mean = sum((v / v.norm() for v in map(head, frames)), torch.zeros(1))
            else:
                mean = head(sum(frames, torch.zeros(1)) / len(frames))
            cosines.append(factor * F.cosine_similarity(mean, own[length - 1], dim=0).item())
        if score == "softmax":
            total = sum(math.exp(c) for c in cosines)
            rows.append([math.exp(c) / total for c in cosines])
        else:
            others = [(sum(cosines) - c) / (len(cosines) - 1) for c in cosines]
            rows.append([1 / (1 + math.exp(min(500, o - c))) for c, o in zip(cosines, others)])
    return rows


@pytest.mark.parametrize("checkpoint", ["clip", "hub"])
@pytest.mark.parametrize(("average", "score"), [("projections", "softmax"), ("features", "softmax"), ("projections", "sigmoid")])
def test_scores_are_those_computed_by_hand(work: Path, tmp_path: Path, checkpoint: str, average: str, score: str) -> None:
    caches, config = (work / checkpoint / "c.zarr", work / checkpoint / "t.zarr"), {"average": average, "score": score}
    selections = SelectionCache(predict(None, *caches, tmp_path / "s.zarr", selector=NAME, config=config))
    cache = TrackCache(caches[0])
    policy = resolve_policy(selections)
    for video_id in cache.video_ids():
        expected = plain_scores(work / checkpoint, cache, video_id, average, score)
        rows = selections.selections(video_id)
        assert len(rows) == len(expected) > 1
        for row, own in zip(rows, expected):
            # Features and words are stored in float16, cosines are multiplied by 100.
            assert np.allclose(row.scores, own, atol=0.03) and row.candidates.all()
            selected = policy(row)
            assert int(row.scores.argmax()) in selected
            if score == "softmax":
                assert row.scores.sum() == pytest.approx(1, abs=1e-5) and len(selected) == 1
    assert selections.card.weights.keys() == {"clip_head"} and selections.card.run == ""


@pytest.mark.parametrize("check", SELECTOR_CHECKS.values(), ids=lambda check: check.__name__)
def test_contract(work: Path, check: Callable[[SelectorCase], None]) -> None:
    case = SelectorCase(NAME, tracks=work / "clip/c.zarr", texts=work / "clip/t.zarr")
    with contextlib.suppress(CheckSkipped):
        check(case)


def test_what_does_not_fit_is_one_line(work: Path, tmp_path: Path) -> None:
    out, clip, hub = tmp_path / "s.zarr", work / "clip", work / "hub"
    extract_text("mevis", work / "shapes", SPLIT, "hashed", tmp_path / "hashed.zarr")
    shutil.copytree(clip, tmp_path / "headless", ignore=shutil.ignore_patterns(HEAD_FILE, "*.zarr"))
    pool_clip(work / "flow.zarr", tmp_path / "headless.zarr", overrides={"checkpoint": str(tmp_path / "headless"), **SIZES})
    other = {"clip": str(hub)}
    for tracks, text, config, message in (
        (work / "flow.zarr", clip / "t.zarr", {}, "its tracks have no features of CLIP; rvos-cache pool-clip C.zarr --set"),
        (
            clip / "c.zarr",
            tmp_path / "hashed.zarr",
            {},
            "by hashed: not of the CLIP .*/clip; rvos-cache extract-text --encoder clip",
        ),
        (clip / "c.zarr", hub / "t.zarr", {}, rf"extract-text --encoder clip --set checkpoint={clip}, then give --text"),
        (clip / "c.zarr", clip / "t.zarr", other, "hub: clip_head has digest .*, the cache was made with"),
        (
            tmp_path / "headless.zarr",
            clip / "t.zarr",
            {},
            "headless, which has no image head; convert open_clip's own checkpoint",
        ),
        (clip / "c.zarr", clip / "t.zarr", {"no_such": 1}, "no_such"),
    ):
        with pytest.raises(InputError, match=message) as error:
            predict(None, tracks, text, out, selector=NAME, config=config)
        assert "\n" not in str(error.value) and not out.exists()
    with pytest.raises(InputError, match="selector sola: it must be trained"):
        predict(None, clip / "c.zarr", clip / "t.zarr", out, selector="sola")
    with pytest.raises(InputError, match=r"give --run RUN, or --selector NAME"):
        predict(None, clip / "c.zarr", clip / "t.zarr", out)
    with pytest.raises(InputError, match="clip-zero-shot: it has nothing to train; run it without a run"):
        train(clip / "c.zarr", clip / "t.zarr", selector=NAME, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_words_of_a_moved_checkpoint_are_the_same(work: Path, tmp_path: Path) -> None:
    """Weights are compared, not paths; `clip` names where they lie now."""
    shutil.copytree(work / "clip", tmp_path / "moved", ignore=shutil.ignore_patterns("*.zarr"))
    caches = work / "clip/c.zarr", work / "clip/t.zarr"
    extract_text("mevis", work / "shapes", SPLIT, "clip", tmp_path / "t.zarr", overrides={"checkpoint": str(tmp_path / "moved")})
    first = SelectionCache(predict(None, *caches, tmp_path / "a.zarr", selector=NAME))
    moved = {"clip": str(tmp_path / "moved")}
    second = SelectionCache(predict(None, caches[0], tmp_path / "t.zarr", tmp_path / "b.zarr", selector=NAME, config=moved))
    for video_id in first.video_ids():
        for a, b in zip(first.selections(video_id), second.selections(video_id)):
            assert np.array_equal(a.scores, b.scores)


def test_predict_evaluate_and_a_row_of_the_report(work: Path, tmp_path: Path, run: Callable[..., tuple[int, str]]) -> None:
    caches, text = ("--cache", work / "clip/c.zarr"), ("--text", work / "clip/t.zarr")
    code, printed = run(
        "predict", "--selector", NAME, "--set", f"clip={work / 'clip'}", *caches, *text, "--out", tmp_path / "z.zarr"
    )
    assert code == 0 and "selections: " in printed
    # The best track of each expression, without --top1 as with it.
    for options, name in (((), "z"), (("--top1",), "best")):
        code, _ = run("evaluate", "--selections", tmp_path / "z.zarr", *caches, *options, "--json", tmp_path / f"{name}.json")
        assert code == 0
    zero_shot = json.loads((tmp_path / "z.json").read_text())
    assert zero_shot["jf"] > 0 and zero_shot["jf"] == json.loads((tmp_path / "best.json").read_text())["jf"]
    options = ("--selector", "mean-cosine", "--set", "epochs=1", "--set", "batch=video", "--set", "hold_out=0.5")
    assert run("train", *caches, *text, *options, "--out", tmp_path / "run")[0] == 0
    assert run("predict", "--run", tmp_path / "run", *caches, *text, "--out", tmp_path / "s.zarr")[0] == 0
    page = ("report", "--run", tmp_path / "run", "--selections", tmp_path / "s.zarr", *caches, "--out", tmp_path / "page")
    code, _ = run(*page, "--row", f"{NAME}={tmp_path / 'z.json'}")
    html = (tmp_path / "page/index.html").read_text()
    assert code == 0 and f"<td>clip-zero-shot</td><td>{100 * zero_shot['jf']:.1f}</td>" in html
    few = {**zero_shot, "expressions": dict(list(zero_shot["expressions"].items())[1:])}
    (tmp_path / "few.json").write_text(json.dumps(few))
    (tmp_path / "none.json").write_text("[]")
    for file, message in (("few", "scores of other expressions"), ("none", "no scores of videos"), ("nowhere", "cannot be read")):
        code, printed = run(*page, "--row", f"x={tmp_path / file}.json")
        assert code == 1 and message in printed
    for arguments, message in (
        (("predict", *caches, "--out", tmp_path / "x.zarr"), "give --run RUN, or --selector NAME"),
        (
            ("predict", "--run", tmp_path / "run", "--set", "clip=x", *caches, "--out", tmp_path / "x.zarr"),
            "--set is for --selector",
        ),
        ((*page, "--row", "x"), "--row wants NAME=JSON"),
        (("train", *caches, "--selector", NAME), "it has nothing to train"),
    ):
        code, printed = run(*arguments)
        assert code in (1, 2) and message in printed


def frames_of(work: Path) -> tuple[str, Path]:
    video_id = TrackCache(work / "flow.zarr").video_ids()[0]
    return video_id, work / f"shapes/{SPLIT}/JPEGImages/{video_id}"


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["clip", "hub"])
def test_ask_answers_as_the_caches_do(work: Path, tmp_path: Path, run: Callable[..., tuple[int, str]], checkpoint: str) -> None:
    """Tracks, pooled features and masks of one video of the user's own equal those of the dataset's cache."""
    video_id, frames = frames_of(work)
    cache, text = work / checkpoint / "c.zarr", work / checkpoint / "t.zarr"
    expression = TrackCache(cache).info(video_id).expressions[0]
    settings = ("--selector", NAME, "--set", f"clip={work / checkpoint}", "--tracker", "flow", "--clip-set", "short_side=64")
    code, printed = run("ask", frames, expression.text, *settings, "--out", tmp_path / "ask")
    tracks = TrackCache(cache).info(video_id).tracks
    assert code == 0 and f"1 of {tracks} candidates selected" in printed
    (path,) = (tmp_path / "ask/cache").glob("tracks-*.zarr")
    own = TrackCache(path)
    for name in (POOL, FRAME):
        assert np.array_equal(own.feature(video_id, name), TrackCache(cache).feature(video_id, name))
    assert run("predict", "--selector", NAME, "--cache", cache, "--text", text, "--out", tmp_path / "s.zarr")[0] == 0
    assert run("merge", "--selections", tmp_path / "s.zarr", "--cache", cache, "--out", tmp_path / "masks")[0] == 0
    masks = {p.name: p.read_bytes() for p in (tmp_path / f"masks/{video_id}/{expression.expression_id}").iterdir()}
    assert masks == {p.name: p.read_bytes() for p in (tmp_path / f"ask/masks/{video_id}/0").iterdir()}
    # Another tracker setting is another question, the same one has the answer that is there.
    for more, number in (((), 0), (("--tracker-set", "max_tracks=2"), 1), (("--tracker-set", "max_tracks=2"), 1)):
        assert run("ask", frames, expression.text, *settings, *more, "--out", tmp_path / "ask")[0] == 0
        assert len(json.loads((tmp_path / "ask/answers.json").read_text())["answers"]) == number + 1


def test_what_ask_without_a_run_refuses(work: Path, tmp_path: Path, run: Callable[..., tuple[int, str]]) -> None:
    _, frames = frames_of(work)
    chosen, out = ("--selector", NAME, "--set", f"clip={work / 'clip'}"), ("--out", tmp_path / "ask")
    for options, message in (
        (("--selector", NAME), "which CLIP?"),
        (("--selector", NAME, "--set", "clip=/nowhere/clip"), "there is no such folder"),
        (("--selector", "sola"), "it must be trained"),
        ((*chosen, "--tracker", "sam2-gt"), "prompts with ground truth"),
        ((*chosen, "--tracker", "no-such"), "no-such"),
        ((*chosen, "--tracker-set", "no_such=1"), "no_such"),
        ((*chosen, "--clip-set", "square=30", "--clip-set", "short_side=4"), "square and short_side are given"),
        ((), "give --run RUN, or --selector NAME"),
        (("--run", tmp_path, *chosen), "--run and --selector are both given"),
        (("--run", tmp_path, "--tracker", "flow"), "--tracker, --tracker-set and --clip-set are for --selector"),
    ):
        code, printed = run("ask", frames, "the red square", *options, *out)
        assert code in (1, 2) and message in printed, options
    assert not (tmp_path / "ask").exists()


class PooledSelector(Selector):
    """A trained selector that reads the pooled features."""

    Config = SelectorConfig
    requires = (f"features.{POOL}", f"frames.{FRAME}")

    def __init__(self, config: SelectorConfig) -> None:
        super().__init__(config)
        self.layer = nn.Linear(80, 1)

    def forward(self, batch: Batch) -> Tensor:
        frames = torch.stack([frame[:].float() for frame in batch.frames[FRAME]])  # (V, T, P)
        values = self.layer(batch.features[POOL] - frames[:, :, None]).squeeze(-1).mean(1)
        return values.expand(len(batch), -1)


def test_ask_pools_the_tracks_of_a_run(work: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """A run that was trained on pooled tracks: the answer is that of its caches, and a checkpoint that is gone is one line."""
    shutil.copytree(work / "clip", tmp_path / "clip", ignore=shutil.ignore_patterns("*.zarr"))
    video_id, frames = frames_of(work)
    pool_clip(work / "flow.zarr", tmp_path / "c.zarr", overrides={"checkpoint": str(tmp_path / "clip"), **SIZES})
    extract_text("mevis", work / "shapes", SPLIT, "hashed", tmp_path / "t.zarr")
    settings = {"selector": f"{__name__}:PooledSelector", "epochs": 1, "batch": "video", "hold_out": 0.5}
    run = train(tmp_path / "c.zarr", tmp_path / "t.zarr", settings=settings, out=tmp_path / "run")
    sentence = TrackCache(tmp_path / "c.zarr").info(video_id).expressions[0].text
    answer = ask(frames, sentence, run, tmp_path / "ask")
    scores = SelectionCache(predict(run, tmp_path / "c.zarr", tmp_path / "t.zarr", tmp_path / "s.zarr"))
    expected = scores.selections(video_id)[0].scores
    assert answer.tracks == len(expected) and answer.best_score == pytest.approx(float(expected.max()))
    (path,) = (tmp_path / "ask/cache").glob("tracks-*.zarr")
    assert TrackCache(path).card.extra[CLIP] == TrackCache(tmp_path / "c.zarr").card.extra[CLIP]
    assert np.array_equal(TrackCache(path).feature(video_id, POOL), TrackCache(tmp_path / "c.zarr").feature(video_id, POOL))

    # Other tracks of the same CLIP fit, of another do not, and another size of frames is a warning.
    with pytest.raises(InputError, match=r"c.zarr: pooled with CLIP .*hub of digest"):
        predict(run, work / "hub/c.zarr", tmp_path / "t.zarr", tmp_path / "hub.zarr")
    assert not [w for w in recwarn if "pooled with" in str(w.message)]
    pool_clip(work / "flow.zarr", tmp_path / "small.zarr", overrides={"checkpoint": str(tmp_path / "clip"), "short_side": 32})
    with pytest.warns(UserWarning, match="small.zarr: pooled with short_side = 32, .*run was trained with 64"):
        predict(run, tmp_path / "small.zarr", tmp_path / "t.zarr", tmp_path / "small-s.zarr")
    with pytest.raises(InputError, match="clip_pool"):
        predict(run, work / "flow.zarr", tmp_path / "t.zarr", tmp_path / "none.zarr")

    # Another CLIP in its place, then none.
    shutil.rmtree(tmp_path / "clip")
    shutil.copytree(work / "hub", tmp_path / "clip", ignore=shutil.ignore_patterns("*.zarr"))
    with pytest.raises(InputError, match=r"run, CLIP .*clip: image is .*, the run was trained with .*bring that one back"):
        ask(frames, sentence, run, tmp_path / "other")
    shutil.rmtree(tmp_path / "clip")
    with pytest.raises(InputError, match=r"run: trained on tracks pooled with CLIP .*clip, which cannot be opened") as error:
        ask(frames, sentence, run, tmp_path / "gone")
    assert "\n" not in str(error.value)
    # The tracks of the first question are there.
    assert ask(frames, sentence, run, tmp_path / "ask") == answer


def test_tracks_of_another_tracker_are_others_though_one_clip_pooled_both(work: Path) -> None:
    card = TrackCache(work / "clip/c.zarr").card
    check_same_tracker([card], "the run was trained", {"c.zarr": card})
    other = card.model_copy(update={"producer": "sam2-grid"})
    with pytest.raises(InputError, match="c.zarr: tokens of tracker sam2-grid, the run was trained with flow"):
        check_same_tracker([card], "the run was trained", {"c.zarr": other})


def test_frames_that_change_while_they_are_pooled_leave_no_tracks(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, source = frames_of(work)
    shutil.copytree(source, tmp_path / "clip")
    maps = ConvNextImage.maps

    def overwritten(self: ConvNextImage, images: Tensor) -> list[Tensor]:
        (path, *_) = sorted((tmp_path / "clip").iterdir())
        path.write_bytes(path.read_bytes() + b"\0")
        return maps(self, images)

    monkeypatch.setattr(ConvNextImage, "maps", overwritten)
    settings: dict[str, Any] = {"config": {"clip": str(work / "clip")}, "clip_settings": SIZES}
    with pytest.raises(InputError, match="its frames were changed while they were read; ask again"):
        ask_untrained(tmp_path / "clip", "the red square", NAME, tmp_path / "ask", **settings)
    (path,) = (tmp_path / "ask/cache").glob("tracks-*.zarr")
    assert TrackCache(path).video_ids() == ()
