"""Stage 0 of DeRVOS: what is trained, the losses, resumption, the page, and the DVIS++ folder that replace-refiner writes."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import tiny_dvis
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from test_refcoco import write_refcoco
from tiny_beit3 import write_tiny_beit3
from tiny_sam2 import without_gpu
from torch import Tensor
from torch.nn import functional as F

from pipelines.dervos_refiner import dervos_refiner
from rvos_cache.cli import cli
from rvos_cache.datasets import open_dataset
from rvos_cache.errors import InputError
from rvos_cache.settings import build
from rvos_cache.text.beit3.checkpoint import load_tokenizer
from rvos_cache.trackers.dvis import DvisSettings, DvisTracker
from rvos_cache.trackers.mask2former.geometry import square_geometry
from rvos_cache.tuning import state
from rvos_cache.tuning.replace_refiner import replace_refiner
from rvos_select.selectors.dervos_beit3 import images
from rvos_select.selectors.dmvs_masks import pair_losses
from rvos_select.tuning import refiner, tune_refiner
from rvos_select.tuning.refiner_images import ImageSource, collate
from rvos_select.tuning.refiner_model import ALONG_TIME, LiveDervos, LiveTracks, match_points
from rvos_select.tuning.refiner_settings import RefinerSettings

TAIS = {"width": 16, "hidden": 16, "sem_layers": 1, "cfma_layers": 1, "mgis_layers": 1, "motion_queries": 3, "side": 64}
SMALL: dict[str, Any] = {"side": 64, "points": 200, "steps": 2, "batch_size": 2, "config": TAIS, "lr": 1e-3}
FILES = ("last/trained.safetensors", "last/optimizer.safetensors", "metrics.jsonl")


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    """Steps are compared to the last bit."""
    with without_gpu():
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, the two checkpoints, and a run of two steps; tests do not change them."""
    folder = tmp_path_factory.mktemp("refiner")
    write_refcoco(folder / "data")
    tiny_dvis.write_checkpoint(folder / "DVIS")
    write_tiny_beit3(folder / "BEIT3")
    tune_refiner([data(folder)], settings_of(folder), folder / "run")
    return folder


@lru_cache
def data(work: Path) -> Any:
    return open_dataset("refcoco", work / "data", "train")


def settings_of(work: Path, **values: Any) -> RefinerSettings:
    own = {"dvis": str(work / "DVIS"), "beit3": {"checkpoint": str(work / "BEIT3")}, **SMALL, **values}
    return build(RefinerSettings, own, "test")


def source_of(work: Path, settings: RefinerSettings) -> ImageSource:
    return ImageSource([data(work)], settings, load_tokenizer(settings.beit3.checkpoint))


def moved(work: Path, run: Path, settings: RefinerSettings) -> tuple[set[str], set[str]]:
    """Names of the saved tensors that a run has changed, and of the others."""
    before = LiveDervos(settings).parameters
    after = load_file(run / "last/trained.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    return changed, after.keys() - changed


def test_the_refiner_and_tais_move_and_nothing_else(work: Path) -> None:
    live = LiveDervos(settings_of(work))
    before = live.digests()
    frozen = [live.head.reid, live.head.tracker, live.segmenter.model, live.beit3]
    values = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in frozen]
    run = refiner.RefinerRun(live.settings, source_of(work, live.settings), live, work)
    run.before_training()
    run.step(0, [run.clip(*each) for each in run.clips(0)])
    for part, own in zip(frozen, values):
        assert all(torch.equal(tensor, own[name]) for name, tensor in part.state_dict().items())
        assert all(parameter.grad is None for parameter in part.parameters())
    after = live.digests()
    assert {name for name in before if before[name] != after[name]} == {"dvis_head.safetensors"}
    changed, same = moved(work, work / "run", live.settings)
    assert {name.partition(".")[0] for name in changed} == {"refiner", "tais"}
    # No loss reads the classes of DVIS++; of one frame the mean over time is the frame.
    assert {name for name in same if name.startswith("refiner.")} == {
        f"refiner.{part}.{kind}" for part in ("class_embed", "activation_proj") for kind in ("weight", "bias")
    }


def test_no_time_keeps_the_layers_along_time(work: Path, tmp_path: Path) -> None:
    settings = settings_of(work, train_refiner="no_time", steps=1)
    tune_refiner([data(work)], settings, tmp_path / "run")
    changed, same = moved(work, tmp_path / "run", settings)
    temporal = {name for name in changed | same if name.removeprefix("refiner.").startswith(ALONG_TIME)}
    assert temporal <= same and {name.split(".")[1] + "." for name in temporal} == set(ALONG_TIME)
    assert any(name.startswith("refiner.transformer_cross_attention_layers.") for name in changed)
    record = json.loads((tmp_path / "run/tune.json").read_text())
    assert record["trained"]["refiner"] == sum(
        tensor.numel()
        for name, tensor in load_file(tmp_path / "run/last/trained.safetensors").items()
        if name.startswith("refiner.") and name not in temporal
    )


def test_a_resumed_run_is_the_uninterrupted_one(work: Path, tmp_path: Path) -> None:
    tune_refiner([data(work)], settings_of(work, steps=1), tmp_path / "run")
    tune_refiner([data(work)], settings_of(work, steps=2), tmp_path / "run")
    # Threads that read change nothing.
    tune_refiner([data(work)], settings_of(work, readers=1), tmp_path / "alone")
    for name in FILES:
        assert (tmp_path / "alone" / name).read_bytes() == (work / "run" / name).read_bytes(), name
        assert (tmp_path / "run" / name).read_bytes() == (work / "run" / name).read_bytes(), name


def test_the_record_has_what_a_run_needs(work: Path) -> None:
    record = json.loads((work / "run/tune.json").read_text())
    assert record["trains"] == state.REFINER and record["items"] == len(source_of(work, settings_of(work))) == 5
    assert record["datasets"] == [{"dataset": "refcoco", "split": "train"}]
    assert record["config"]["map_channels"] == tiny_dvis.CHANNELS and record["config"]["token_channels"] == tiny_dvis.WIDTH
    assert set(record["checkpoint"]) == {"DVIS", "dvis_head.safetensors", "beit3"}
    rows = [json.loads(line) for line in (work / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert {"loss", "class", "bce", "dice", "matched_iou", "norm", "lr"} <= rows[0].keys()
    assert rows[0]["loss"] == pytest.approx(2 * rows[0]["class"] + 5 * rows[0]["bce"] + 5 * rows[0]["dice"], rel=1e-4)


def test_the_live_tracks_are_those_of_the_tracker(work: Path) -> None:
    """An untrained refiner on an image gives the tokens and mask logits that stage one stores (in float16 there)."""
    settings = settings_of(work)
    live, source = LiveDervos(settings), source_of(work, settings)
    image = source.image(0, torch.Generator().manual_seed(0))
    tracks = live(collate([image], settings, live.device))
    tracker = DvisTracker(DvisSettings(checkpoint=settings.dvis, side=64, pool=4))
    video = data(work).video(data(work).video_ids()[0])
    q, spool, pooled = tracker.frame_features(video, square_geometry(video.size, 64), lambda share: None)
    tokens = tracker.generator.tracks(q, lambda share: None).tokens
    expected = next(iter(tracker.mask_logits(tokens, spool)))
    logits = torch.einsum("nc,hwc->nhw", tracks.mask_embed[0], tracks.mask_features[0])
    assert expected.abs().max() > 0.1
    assert torch.allclose(logits, expected, atol=2e-3 * float(expected.abs().max()))
    maps = square_geometry((64, 64), 64).pool(tracks.mask_features, 4)
    assert pooled is not None and torch.allclose(maps, torch.from_numpy(pooled).float(), atol=2e-3)
    assert torch.equal(image.frame, images(torch.tensor(video.read(0))[None], 64, "bicubic")[0])  # type: ignore[arg-type]


def centres(monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    """Points are the centres of all cells of a square map."""
    at = (torch.arange(side) + 0.5) / side
    grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1).flatten(0, 1)
    monkeypatch.setattr(
        "rvos_select.selectors.dmvs_masks.uncertain_points", lambda logits, count: grid.expand(len(logits), -1, -1)
    )
    monkeypatch.setattr("rvos_select.selectors.dmvs_masks.torch.rand", lambda *sizes, device=None: grid[None])


def test_losses_at_all_points_are_torch_s_dense_ones(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side, settings = 16, settings_of(work, points=256)
    live = LiveDervos(settings)
    g = torch.Generator().manual_seed(5)
    scores = torch.randn(2, 4, 1, 2, generator=g, requires_grad=True)
    embed = torch.randn(2, 4, 6, generator=g, requires_grad=True)
    features = torch.randn(2, side, side, 6, generator=g)
    truth = tuple((torch.rand(count, 1, side, side, generator=g) > 0.6).float() for count in (2, 1))
    tracks = LiveTracks(scores, embed, features)
    centres(monkeypatch, side)
    losses = live.losses(tracks, truth)

    dense = torch.einsum("bnc,bhwc->bnhw", embed, features)
    classes, bces, dices = [], [], []
    for b, masks in enumerate(truth):
        p = dense[b].sigmoid().flatten(1)
        costs = torch.stack(
            [
                torch.stack([
                    5 * F.binary_cross_entropy_with_logits(dense[b, n], mask[0])
                    + 5 * dice(p[n], mask.flatten())
                    - 2 * scores[b, n, 0].softmax(-1)[0]
                    for mask in masks
                ])
                for n in range(4)
            ]
        )  # fmt: skip
        pairs = min(
            (sum(float(costs[n, a].detach()) for a, n in enumerate(chosen)), chosen)
            for chosen in itertools.permutations(range(4), len(masks))
        )[1]
        labels = torch.tensor([0 if n in pairs else 1 for n in range(4)])
        classes.append(F.cross_entropy(scores[b, :, 0], labels, torch.tensor([1, 0.1])))
        for a, n in enumerate(pairs):
            bces.append(F.binary_cross_entropy_with_logits(dense[b, n], masks[a, 0]))
            dices.append(dice(p[n], masks[a].flatten()))
    for name, expected in (("class", classes), ("bce", bces), ("dice", dices)):
        assert losses[name].item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5), name
    total = 2 * torch.stack(classes).mean() + 5 * torch.stack(bces).mean() + 5 * torch.stack(dices).mean()
    own = torch.autograd.grad(losses["loss"], [scores, embed])
    for value, expected_gradient in zip(own, torch.autograd.grad(total, [scores, embed])):
        assert torch.allclose(value, expected_gradient, atol=1e-6)


def dice(p: Tensor, y: Tensor) -> Tensor:
    return 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)


def test_few_points_are_near_all_points() -> None:
    """12,544 points of a map of 160 x 160 cells: the losses are theirs within 2 %, without the choice of the uncertain ones."""
    g = torch.Generator().manual_seed(6)
    small = torch.randn(1, 1, 10, 10, generator=g) * 4
    logits = F.interpolate(small, (160, 160), mode="bilinear")
    truth = (F.interpolate(torch.randn(1, 1, 8, 8, generator=g), (160, 160), mode="bilinear") > 0).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rvos_select.losses.points.UNCERTAIN", 0.0)
        torch.manual_seed(0)
        bce, own = pair_losses(logits, truth, torch.tensor([0]), 12544)
    assert bce.item() == pytest.approx(F.binary_cross_entropy_with_logits(logits, truth).item(), rel=0.02)
    assert own.item() == pytest.approx(dice(logits.sigmoid().flatten(), truth.flatten()).item(), rel=0.02)


def test_matching_takes_the_track_of_the_object(work: Path) -> None:
    """Logits drawn as the objects: object a is track 2 - a."""
    truth = torch.zeros(2, 1, 16, 16)
    truth[0, :, :, :8] = truth[1, :, 3:12, 2:14] = 1
    features = torch.zeros(1, 16, 16, 3)
    features[0, ..., 2], features[0, ..., 1] = 20 * truth[0, 0] - 10, 20 * truth[1, 0] - 10
    tracks = LiveTracks(torch.zeros(1, 3, 1, 2), torch.eye(3)[None], features)
    (match,) = match_points(tracks, (truth,), 4000, settings_of(work).config)
    assert match.labels.tolist() == [1, 0, 0] and match.tracks.tolist() == [1, 2] and match.objects.tolist() == [1, 0]
    assert match.iou.min() > 0.8


def test_the_loss_falls_on_one_batch(work: Path, tmp_path: Path) -> None:
    settings = settings_of(work, max_norm=1e9, config={**TAIS, "dropout": 0.0})
    run = refiner.RefinerRun(settings, source_of(work, settings), LiveDervos(settings), tmp_path)
    images = [run.clip(*each) for each in run.clips(0)]
    values = [run.step(0, images)["loss"] for _ in range(12)]
    assert values[-1] < 0.85 * values[0]


@pytest.fixture(scope="module")
def dagger(work: Path) -> Path:
    """The folder with the trained refiner, and the output of the command in a file beside it."""
    out = work / "DVIS-dagger"
    result = CliRunner().invoke(cli, ["replace-refiner", str(work / "DVIS"), str(work / "run"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    (work / "output.txt").write_text(result.output)
    return out


def test_replace_refiner_changes_the_refiner_alone(work: Path, dagger: Path) -> None:
    before, after = load_file(work / "DVIS/dvis_head.safetensors"), load_file(dagger / "dvis_head.safetensors")
    trained = load_file(work / "run/last/trained.safetensors")
    assert before.keys() == after.keys()
    changed = sorted(name for name in before if not torch.equal(before[name], after[name]))
    assert changed and all(name.startswith("refiner.") for name in changed)
    assert all(torch.equal(after[name], trained[name]) for name in changed)
    output = (work / "output.txt").read_text()
    assert [line.removeprefix("replaced: ") for line in output.splitlines() if line.startswith("replaced")] == changed
    record = json.loads((dagger / "conversion.json").read_text())["refiner"]
    assert record["tensors"] == changed and record["step"] == 2 and record["settings"]["points"] == 200
    assert (dagger / "model.safetensors").read_bytes() == (work / "DVIS/model.safetensors").read_bytes()
    own = DvisTracker(DvisSettings(checkpoint=str(dagger), side=64, pool=4)).weight_hashes()
    assert own["dvis_head.safetensors"] == record["after"] != record["before"]


def test_its_tracks_are_other_tracks(work: Path, dagger: Path) -> None:
    masks = []
    for folder in (work / "DVIS", dagger):
        tracker = DvisTracker(DvisSettings(checkpoint=str(folder), side=64, pool=4))
        tracks = tracker.track(data(work).video(data(work).video_ids()[0]), [])
        masks.append(tracks.masks.area().tolist())
    assert masks[0] != masks[1]


def refused(work: Path, folder: Path, datasets: Sequence[Any] = (), **values: Any) -> str:
    with pytest.raises(InputError) as error:
        tune_refiner(datasets or [data(work)], settings_of(work, **values), folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_another_run_is_refused(work: Path, tmp_path: Path) -> None:
    own = shutil.copytree(work / "run", tmp_path / "run")
    assert "settings.train_refiner = 'all', now it is 'no_time'" in refused(work, own, train_refiner="no_time")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("x")
    assert "is not a tuning run" in refused(work, tmp_path / "other")


def test_what_cannot_be_trained_on_is_one_line(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such folder" in refused(work, tmp_path / "a", dvis=str(tmp_path / "none"))
    assert "takes at most 62 tokens" in refused(work, tmp_path / "a", beit3={"checkpoint": str(work / "BEIT3"), "longest": 90})
    monkeypatch.setattr(type(data(work)), "has_ground_truth", property(lambda self: False), raising=False)
    assert "no ground truth" in refused(work, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"config": {"understanding": "words"}}, "leave understanding and queries"),
        ({"config": {"side": 72}}, "expected a multiple of 16"),
        ({"config": {"side": 48}}, "whose number of patches divides"),
        ({"side": 100}, "multiple of 32"),
        ({"train_refiner": "time"}, "train_refiner"),
        ({"points": 0}, "points"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(work: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings_of(work, **values)


def test_a_loss_that_is_not_finite_names_its_images(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = lambda *a: {"loss": torch.tensor(float("nan"), requires_grad=True)}  # noqa: E731
    monkeypatch.setattr(LiveDervos, "losses", nan)
    message = refused(work, tmp_path / "run")
    assert message.startswith("video ") and ", expression " in message and "the loss is nan" in message


def test_too_little_memory_names_what_to_lower(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LiveDervos, "losses", fail)
    assert "--set batch_size=1" in refused(work, tmp_path / "run")


def test_replace_refiner_refuses(work: Path, tmp_path: Path) -> None:
    def message(dvis: Path, run: Path, out: Path = tmp_path / "out") -> str:
        with pytest.raises(InputError) as error:
            replace_refiner(str(dvis), run, out)
        assert not (tmp_path / "out").exists() and "\n" not in str(error.value)
        return str(error.value)

    assert "already exists" in message(work / "DVIS", work / "run", work / "DVIS")
    assert "tune.json: not found" in message(work / "DVIS", work / "DVIS")
    other = tiny_dvis.write_checkpoint(tmp_path / "other")
    tensors = load_file(other / "dvis_head.safetensors")
    save_file({n: t * 1.1 if n.startswith("refiner.") else t for n, t in tensors.items()}, other / "dvis_head.safetensors")
    assert "is not the checkpoint that the refiner of" in message(other, work / "run")
    run = shutil.copytree(work / "run", tmp_path / "run")
    saved = load_file(run / "last/trained.safetensors")
    save_file({name: t for name, t in saved.items() if "decoder_norm" not in name}, run / "last/trained.safetensors")
    assert "'refiner.decoder_norm.weight' is missing" in message(work / "DVIS", run)
    shutil.rmtree(run / "last")
    assert "no step has been saved yet" in message(work / "DVIS", run)
    record = json.loads((run / "tune.json").read_text())
    (run / "tune.json").write_text(json.dumps({**record, "trains": "something"}))
    assert "is a tuning run of another model" in message(work / "DVIS", run)


def test_the_page(work: Path, tmp_path: Path) -> None:
    for name in ("refcoco+", "refcocog"):
        if not (work / "data" / name).exists():
            write_refcoco(tmp_path / "more", name, ("train",))
            shutil.copytree(tmp_path / "more" / name, work / "data" / name)
            shutil.rmtree(tmp_path / "more")
    flat = {**{name: value for name, value in SMALL.items() if name != "config"}, "steps": 1}
    sets = [f"--set={name}={value}" for name, value in flat.items()]
    sets += [f"--set=config.{name}={value}" for name, value in TAIS.items()]
    own = ["--images", str(work / "data"), "--dvis", str(work / "DVIS"), "--beit3", str(work / "BEIT3")]
    result = CliRunner().invoke(dervos_refiner, [*own, "--out", str(tmp_path / "run"), *sets], catch_exceptions=False)
    assert f"rvos-cache replace-refiner {work / 'DVIS'} {tmp_path / 'run'} --out" in result.output
    record = json.loads((tmp_path / "run/tune.json").read_text())
    assert [d["dataset"] for d in record["datasets"]] == ["refcoco", "refcoco+", "refcocog"] and record["items"] == 15
    listed = CliRunner().invoke(dervos_refiner, ["--list"], catch_exceptions=False).output
    assert "train_refiner" in listed and "config.width" in listed
    with pytest.raises(InputError, match="needs the option --beit3 FOLDER"):
        CliRunner().invoke(dervos_refiner, ["--dvis", "x"], catch_exceptions=False)
