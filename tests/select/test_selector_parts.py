"""Frozen parts, adapters inside them, and inference of a selector's own, on small random caches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rvos_cache.errors import InputError
from rvos_cache.store import SelectionCache
from rvos_select.contracts import write_caches
from rvos_select.data.batch import Batch
from rvos_select.data.cards import CacheCards
from rvos_select.data.video import InferenceVideo
from rvos_select.inference.predict import predict
from rvos_select.runs.checkpoint import load_selector
from rvos_select.selectors import FrozenPart, Scored, Selector, SelectorConfig
from rvos_select.training.train import train

WIDTH = 16


class Adapter(nn.Module):
    """A frozen linear layer with a low-rank addition that is trained."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


class Backbone(nn.Module):
    """The "foundation model": two layers and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5), nn.Linear(WIDTH, WIDTH))
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) * self.scale


class FrozenConfig(SelectorConfig):
    checkpoint: str = ""
    """Folder of the backbone."""
    adapters: bool = False
    """Low-rank adapters inside its layers are trained."""


def load_backbone(checkpoint: str) -> nn.Module:
    backbone = Backbone()
    backbone.load_state_dict(load_file(Path(checkpoint) / "backbone.safetensors"))
    return backbone


def digest(module: nn.Module) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()


class OnFrozen(Selector):
    """Its head reads what a frozen backbone, perhaps with adapters, makes of the tokens."""

    Config = FrozenConfig

    def __init__(self, config: FrozenConfig) -> None:
        super().__init__(config)
        self.head = nn.Linear(WIDTH, config.word_channels)

    def frozen_parts(self, cards: CacheCards) -> Sequence[FrozenPart]:
        return [FrozenPart("backbone", self.config.checkpoint, load_backbone, digest)]

    def bound(self, cards: CacheCards) -> None:
        if self.config.adapters:
            layers = self.frozen["backbone"].layers
            layers[0], layers[2] = Adapter(layers[0]), Adapter(layers[2])

    def forward(self, batch: Batch) -> Tensor:
        tokens = self.frozen["backbone"](batch.tokens).masked_fill(~batch.frame_mask[:, None, :, None], 0).mean(2)
        return (self.head(tokens) * batch.words.mean(1)[:, None]).sum(-1)


NAME = f"{__name__}:OnFrozen"


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_caches(tmp_path_factory.mktemp("caches"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    (tmp_path / "backbone").mkdir()
    save_file(Backbone().state_dict(), tmp_path / "backbone/backbone.safetensors")
    return tmp_path / "backbone"


def run(caches: tuple[Path, Path], checkpoint: Path, out: Path, adapters: bool, **values: object) -> Path:
    config = {"checkpoint": str(checkpoint), "adapters": adapters}
    base = {"epochs": 2, "optim": {"lr": 1e-2, "schedule": "constant"}, "batch": "video", "hold_out": 0.4}
    return train(*caches, selector=NAME, config=config, out=out, **{**base, **values})


@pytest.mark.parametrize("adapters", [False, True])
def test_frozen_weights_are_neither_trained_counted_nor_saved(
    caches: tuple[Path, Path], checkpoint: Path, tmp_path: Path, adapters: bool
) -> None:
    out = run(caches, checkpoint, tmp_path / "run", adapters)
    head = {"head.weight", "head.bias"}
    added = {f"frozen.backbone.layers.{i}.{part}.weight" for i in (0, 2) for part in ("down", "up")} if adapters else set()
    for folder in ("best", "last"):
        assert set(load_file(out / folder / "model.safetensors")) == head | added
    selector = load_selector(out)
    assert {name for name, _ in selector.named_parameters()} == head
    selector.bind(CacheCards([], []))
    assert {name for name, _ in selector.named_parameters()} == head | added
    frozen, original = selector.frozen["backbone"].state_dict(), Backbone().state_dict().keys()
    stored = load_file(checkpoint / "backbone.safetensors")
    for name in original:
        key = name.replace("layers.0.", "layers.0.layer.").replace("layers.2.", "layers.2.layer.") if adapters else name
        torch.testing.assert_close(frozen[key], stored[name], atol=0, rtol=0)
    if adapters:
        assert frozen["layers.2.up.weight"].abs().sum() > 0


def test_adapters_are_loaded_strictly(caches: tuple[Path, Path], checkpoint: Path, tmp_path: Path) -> None:
    out = run(caches, checkpoint, tmp_path / "run", True)
    first = predict(out, *caches, tmp_path / "a.zarr")
    weights = load_file(out / "best/model.safetensors")
    for change in ("missing", "moved"):
        changed = dict(weights)
        name = "frozen.backbone.layers.2.up.weight"
        if change == "missing":
            del changed[name]
        else:
            changed[name] = changed[name] + 3
        save_file(changed, out / "best/model.safetensors")
        if change == "missing":
            with pytest.raises(InputError, match=r"saved adapters do not fit .*layers\.2\.up\.weight"):
                predict(out, *caches, tmp_path / "b.zarr")
        else:
            second = predict(out, *caches, tmp_path / "c.zarr")
            scores = [SelectionCache(path).selections("a")[0].scores for path in (first, second)]
            assert not np.allclose(*scores)


def test_a_run_with_frozen_parts_resumes_to_the_same_numbers(caches: tuple[Path, Path], checkpoint: Path, tmp_path: Path) -> None:
    whole = run(caches, checkpoint, tmp_path / "whole", True)
    parts = tmp_path / "parts"
    for epochs in (1, 2):
        run(caches, checkpoint, parts, True, epochs=epochs, resume=epochs > 1)
    for name, value in load_file(whole / "last/model.safetensors").items():
        torch.testing.assert_close(load_file(parts / "last/model.safetensors")[name], value)


def test_a_checkpoint_with_other_weights_is_refused(caches: tuple[Path, Path], checkpoint: Path, tmp_path: Path) -> None:
    """A setting names the checkpoint: the run records its digest, and holds resume and predict to it."""
    out = run(caches, checkpoint, tmp_path / "run", False)
    recorded = json.loads((out / "settings.json").read_text())["frozen"]["backbone"]
    assert recorded == digest(load_backbone(str(checkpoint)))
    other = Backbone()
    save_file(other.state_dict(), checkpoint / "backbone.safetensors")
    with pytest.raises(InputError, match=f"backbone has digest {digest(other)}, the run was made with {recorded}"):
        predict(out, *caches, tmp_path / "s.zarr")
    with pytest.raises(InputError, match=r"was started with frozen\.backbone = "):
        run(caches, checkpoint, out, False, resume=True)


def test_frozen_parts_go_where_the_module_goes_and_stay_in_evaluation_mode(checkpoint: Path) -> None:
    selector = OnFrozen(FrozenConfig(checkpoint=str(checkpoint), token_channels=WIDTH, word_channels=8))
    selector.bind(CacheCards([], []))
    selector.to(torch.float64).train()
    backbone = selector.frozen["backbone"]
    assert backbone.scale.dtype == torch.float64 and all(p.dtype == torch.float64 for p in backbone.parameters())
    assert selector.training and not any(module.training for module in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())


class Whole(Selector):
    """One pass over a video: a mean over frames and tracks' tokens."""

    def __init__(self, config: SelectorConfig) -> None:
        super().__init__(config)
        self.layer = nn.Linear(config.token_channels, config.word_channels)

    def forward(self, batch: Batch) -> Tensor:
        frames = batch.frame_mask[:, None, :, None]
        tokens = batch.tokens.masked_fill(~frames, 0).sum(2) / frames.sum(2)
        words = batch.words.masked_fill(~batch.word_mask[..., None], 0).sum(1) / batch.word_mask.sum(1, keepdim=True)
        return (self.layer(tokens) * words[:, None]).sum(-1)


class OneByOne(Whole):
    def infer(self, video: InferenceVideo) -> Iterator[Scored]:
        for i in reversed(range(video.expressions)):
            batch = video.batch([i])
            yield Scored(batch, self(batch))


class DilatedClips(Whole):
    """Frames i, i + s, ... of each clip, added up: memory grows with neither frames nor expressions."""

    def infer(self, video: InferenceVideo) -> Iterator[Scored]:
        stride = -(-video.frames // 4)
        total: Tensor | float = 0.0
        for start in range(stride):
            frames = list(range(start, video.frames, stride))
            batch = video.batch(frames=frames)
            assert batch.tokens.shape[2] == len(frames) <= 4
            total = total + self(batch) * len(frames)
        yield Scored(batch, total / video.frames)


class Forgets(Whole):
    def infer(self, video: InferenceVideo) -> Iterator[Scored]:
        batch = video.batch([0])
        yield Scored(batch, self(batch))


class Repeats(Whole):
    def infer(self, video: InferenceVideo) -> Iterator[Scored]:
        for _ in range(2):
            batch = video.batch()
            yield Scored(batch, self(batch))


@pytest.mark.parametrize("kind", [OneByOne, DilatedClips])
def test_inference_in_pieces_gives_the_scores_of_one_pass(
    caches: tuple[Path, Path], tmp_path: Path, kind: type[Selector]
) -> None:
    """In validation too: J&F of the epochs are the same."""
    runs = [
        train(
            *caches, selector=f"{__name__}:{name}", epochs=2, batch="video", hold_out=0.4, optim={"lr": 1e-2}, out=tmp_path / name
        )
        for name in ("Whole", kind.__name__)
    ]
    rows = [[json.loads(line)["valid/jf"] for line in (out / "metrics.jsonl").read_text().splitlines()] for out in runs]
    assert rows[0] == rows[1] and len(rows[0]) == 2
    whole, pieces = (SelectionCache(predict(out, *caches, out / "s.zarr")) for out in runs)
    for video_id in whole.video_ids():
        for ours, theirs in zip(pieces.selections(video_id), whole.selections(video_id), strict=True):
            assert ours.expression_id == theirs.expression_id and np.array_equal(ours.candidates, theirs.candidates)
            np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "message"), [(Forgets, "no scores of expression 1 of a"), (Repeats, "scored expression '0' of a twice")]
)
def test_inference_that_loses_or_repeats_an_expression_fails_the_video(
    caches: tuple[Path, Path], tmp_path: Path, kind: type[Selector], message: str
) -> None:
    out = train(*caches, selector=f"{__name__}:Whole", epochs=1, batch="video", out=tmp_path / "run")
    settings = json.loads((out / "settings.json").read_text())
    settings["settings"]["selector"] = f"{__name__}:{kind.__name__}"
    (out / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=message):
        predict(out, *caches, tmp_path / "s.zarr")
