"""Train a selection module from caches: tokens and words in memory, one process, resumable to the very numbers."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rvos_cache.errors import InputError
from rvos_cache.files import append_line, write_json, write_text
from rvos_cache.plugins import resolve
from rvos_cache.settings import Settings, build
from rvos_cache.store import Card, provenance, read_card
from rvos_select.data.batch import Batch
from rvos_select.data.caches import texts_of
from rvos_select.data.clips import Clips, ClipSettings, ahead, seen
from rvos_select.data.samples import batches, count_batches, padded_batch, set_draws, set_sizes
from rvos_select.data.sources import Sources, read_sources
from rvos_select.runs.checkpoint import (
    load_state,
    read_json,
    replace_folder,
    restore_folder,
    save_state,
    storing,
)
from rvos_select.selectors import SELECTORS
from rvos_select.training.progress import TrainingProgress
from rvos_select.training.validate import Validator


class OptimSettings(Settings):
    """AdamW and its schedule; the defaults are SOLA's."""

    lr: float = Field(default=5e-6, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    beta2: float = Field(default=0.999, gt=0, lt=1)
    """Memory of the squared gradients."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    decay_all: bool = True
    """False: no weight decay on norms and embeddings (Mask2Former and what follows it)."""
    schedule: Literal["plateau", "cosine", "step", "constant"] = "plateau"
    patience: int = Field(default=5, ge=0)
    """plateau: epochs without a lower validation loss before the rate is multiplied by `factor`."""
    factor: float = Field(default=0.5, gt=0, lt=1)
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.7,)
    """step: shares of all steps after which the rate is multiplied by `factor`."""
    warmup: int = Field(default=0, ge=0)
    """Steps in which the rate rises from zero."""


class TrainSettings(Settings):
    """One training run; the defaults are SOLA's on MeViS."""

    selector: str = "sola"
    config: dict[str, Any] = {}
    """The selector's own settings; C and D are read from the caches."""
    label_iou: float | None = Field(default=None, gt=0, lt=1)
    """Mean IoU above which a track is a positive; None: what the card of its own cache says (SAM 2: 0.7, flow: 0.5)."""
    weights: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    """How often an epoch takes each video (batch = "video") or expression ("single", "clip") of a training set, by "dataset" or
    "dataset/split"; 1, each once, for what is not named. 2 takes each twice; 0.5 half of them, drawn anew each epoch; so an
    epoch is the sum over the sets of weight · items, each rounded."""
    optim: OptimSettings = OptimSettings()
    epochs: int = Field(default=13, ge=1)
    batch: Literal["single", "video", "clip"] = "single"
    """single: expressions, each with its own tokens; video: all expressions of a video share everything but the text; clip:
    expressions, each with some frames of its video."""
    batch_size: int = Field(default=1, ge=1)
    """Expressions per step with batch = "single" or "clip"."""
    clip: ClipSettings = ClipSettings()
    """clip: which frames."""
    seed: int = 0
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """auto: bf16 autocast on CUDA, float32 on a CPU."""
    hold_out: float = Field(default=0.05, ge=0, lt=1)
    """Share of videos, by hash of their id, held out when no validation cache is given."""
    valid_expressions: int = Field(default=200, ge=0)
    """Validation after each epoch is taken over the first so many expressions by hash of their name; 0: all."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of PyTorch; 0: as many as it takes by itself (OMP_NUM_THREADS)."""


def train(
    settings: TrainSettings,
    tracks: Sequence[Path],
    texts: Sequence[Path],
    valid_tracks: Sequence[Path] = (),
    valid_texts: Sequence[Path] = (),
    out: Path = Path("out/runs/sola"),
    resume: bool = False,
) -> Path:
    """Train and return the run's folder: settings.json, metrics.jsonl, tensorboard/, last/ (to resume), best/ (to use).

    Raises InputError for caches that do not fit, hidden answers, an existing run, or a loss that is not a number.
    """
    out = Path(out)
    if (out / "settings.json").exists() and not resume:
        raise InputError(f"{out}: a run is there; --resume goes on with it, another --out starts anew")
    cards = [read_card(path) for path in (*tracks, *valid_tracks)]
    model = make_selector(settings, channels(tracks, texts))
    model.bind(cards)
    clips = settings.batch == "clip"
    if "truth" in model.requires and not clips:
        raise InputError(f"selector {settings.selector} has losses of masks, which only clips hold; --set batch=clip")
    sources = read_sources(
        tracks,
        texts,
        valid_tracks,
        valid_texts,
        # Where an expression can be seen decides which frames make its clip.
        requires=(*model.requires, *(("overlap",) if clips and "overlap" not in model.requires else ())),
        weights=settings.weights,
        label_iou=settings.label_iou,
        hold_out=settings.hold_out,
    )
    if clips:
        sources.train = seen(sources.train)
    begin_run(settings, sources, model.config, out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(settings, sources, model.to(device), device, out)
    with threads(settings.threads):
        return run.train(resume)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch with `count` CPU threads (0: unchanged), and as it was afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def channels(tracks: Sequence[Path], texts: Sequence[Path]) -> tuple[int, int]:
    """C of the first tracks cache and D of its words. Raises InputError when there is none."""
    if not tracks:
        raise InputError("no tracks cache given; add --cache C.zarr")
    return read_card(tracks[0]).channels, read_card(texts_of(tracks, texts)[0]).channels


def make_selector(settings: TrainSettings, widths: tuple[int, int]) -> Any:
    """The untrained selector for tokens and words of `widths` C and D, its first weights drawn from the seed."""
    kind = resolve(SELECTORS, settings.selector, "selector")
    values = {"token_channels": widths[0], "word_channels": widths[1], **settings.config}
    torch.manual_seed(settings.seed)
    return kind(build(kind.Config, values, f"selector {settings.selector}"))


def begin_run(settings: TrainSettings, sources: Sources, config: Settings, out: Path) -> None:
    """Write settings.json, or check that the run to resume is this one. Raises InputError otherwise.

    "resolved" holds what the settings leave to the caches and to defaults: the selector's whole configuration and the
    label threshold. "sets" counts the items of each training set and those that an epoch takes, "missing" lists the videos
    that are left out.
    """
    counted = set_sizes(sources.train, "video" if settings.batch == "video" else "single")
    sets = {
        name: {"weight": weight, "items": counted.get(name, 0), "drawn": set_draws(counted.get(name, 0), weight)}
        for name, weight in sources.weights.items()
    }
    record = {
        "settings": settings.model_dump(mode="json"),
        "resolved": {"config": config.model_dump(mode="json"), "label_iou": sources.label_iou},
        "sets": sets,
        "missing": sources.missing,
        "cards": sources.cards,
        **provenance(),
    }
    path = out / "settings.json"
    if not path.exists():
        if out.exists() and any(out.iterdir()):
            raise InputError(f"{out}: exists and is not a run; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
        return
    held = read_json(path, "choose another --out")
    now, then = ({**_flat(r["settings"]), **_flat(r.get("resolved", {}), "resolved.")} for r in (record, held))
    for name in sorted(now.keys() | then.keys()):
        # More epochs go on; with a schedule over all steps they would change the ones already trained.
        if now.get(name) != then.get(name) and (name != "epochs" or settings.optim.schedule in ("cosine", "step")):
            raise InputError(f"{out}: was started with {name} = {then.get(name)!r}, now it is {now.get(name)!r}")
    for kind, cards in sources.cards.items():
        _same_caches(out, kind, cards, held["cards"][kind])
    write_json(path, {**held, "settings": record["settings"]})


def _same_caches(out: Path, kind: str, now: Sequence[dict[str, Any]], then: Sequence[dict[str, Any]]) -> None:
    """Raises InputError, naming the field, when the cards of a run to resume are not those it was started with."""
    if len(now) != len(then):
        raise InputError(
            f"{out}: was started with {len(then)} {kind} caches, now there are {len(now)}; give the same, or another --out"
        )
    for mine, theirs in zip(map(Card.model_validate, now), map(Card.model_validate, then)):
        for name in mine.differences(theirs):
            was, came = theirs.value(name), mine.value(name)
            raise InputError(
                f"{out}: was started with {kind} caches of {name} = {was!r}, now it is {came!r}; give the same, or another --out"
            )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in settings.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return out


class Run:
    """The loop. Every random number of an epoch follows from (seed, epoch), so a resumed epoch is the same epoch."""

    def __init__(self, settings: TrainSettings, sources: Sources, model: nn.Module, device: torch.device, out: Path) -> None:
        self.settings, self.sources, self.model, self.device, self.out = settings, sources, model, device, out
        optim = settings.optim
        groups = model.parameters() if optim.decay_all else decay_groups(model, optim.weight_decay)
        self.optimizer = torch.optim.AdamW(
            groups, lr=optim.lr, betas=(0.9, optim.beta2), weight_decay=optim.weight_decay, fused=True
        )
        self.how: Literal["single", "video"] = "video" if settings.batch == "video" else "single"
        self.steps_per_epoch = count_batches(sources.train, self.how, settings.batch_size, sources.weights)
        self.bf16 = settings.precision == "bf16" or (settings.precision == "auto" and device.type == "cuda")
        self.requires = tuple(model.requires)  # type: ignore[arg-type]
        clip = settings.clip if settings.batch == "clip" else None
        self.validator = Validator(sources.valid, sources.valid_sets, settings.valid_expressions, clip, settings.batch_size)
        self.state: dict[str, Any] = {"epoch": 0, "best_jf": -1.0, "rate": 1.0, "lowest": None, "waited": 0}

    def train(self, resume: bool) -> Path:
        """All epochs that are left. Raises InputError when the disk refuses; the last whole checkpoint is kept then."""
        for name in ("last", "best"):
            restore_folder(self.out / name)
        if resume and (self.out / "last").exists():
            self.state = load_state(self.out, self.model, self.optimizer)
        with storing(self.out):
            self._forget_after(self.state["epoch"])
        done, steps = self.state["epoch"], self.steps_per_epoch
        with (
            TrainingProgress(self.settings.epochs * steps, done * steps) as bar,
            tensorboard(self.out / "tensorboard", done) as board,
        ):
            for epoch in range(done, self.settings.epochs):
                row = self._epoch(epoch, bar)
                with storing(self.out / "tensorboard"):
                    for name, value in row.items():
                        if isinstance(value, float):
                            board.add_scalar(name, value, epoch + 1)
                with storing(self.out / "metrics.jsonl"):
                    append_line(self.out / "metrics.jsonl", json.dumps(row).encode())
                save_state(self.out, self.model, self.optimizer, self.state)
        return self.out

    def _forget_after(self, epoch: int) -> None:
        # A kill between the line and the checkpoint leaves a line of an epoch that is trained again.
        path = self.out / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_text("utf-8").splitlines() if line.endswith("}")]
            kept = [line for line in lines if json.loads(line)["epoch"] <= epoch]
            write_text(path, "".join(line + "\n" for line in kept))

    def _epoch(self, epoch: int, bar: TrainingProgress) -> dict[str, Any]:
        settings, began = self.settings, time.perf_counter()
        seed = int.from_bytes(hashlib.sha256(f"{settings.seed}/{epoch}".encode()).digest()[:6], "big")
        torch.manual_seed(seed)
        order = torch.Generator().manual_seed(seed)
        sums: dict[str, float] = {}
        self.model.train()
        sources = self.sources
        join = Clips(settings.clip, order) if settings.batch == "clip" else padded_batch
        made = batches(sources.train, self.how, settings.batch_size, order, self.requires, sources.weights, join)
        if settings.batch == "clip" and self.device.type == "cuda":
            made = ahead(made)
        for step, (batch, name) in enumerate(made):
            losses = self._step(batch, name, epoch * self.steps_per_epoch + step)
            for key, value in losses.items():
                sums[key] = sums.get(key, 0.0) + value
            bar.advance(f"epoch {epoch + 1}/{settings.epochs} loss {sums['loss'] / (step + 1):.4f}")
        row: dict[str, Any] = {"epoch": epoch + 1}
        row |= {f"train/{key}": value / self.steps_per_epoch for key, value in sums.items()}
        row["lr"] = self.optimizer.param_groups[0]["lr"]
        if self.sources.valid:
            row |= self.validator.scores(self.model, self.device, self.requires)
            self._plateau(row.get("valid/loss", row["train/loss"]))
        self.state["epoch"] = epoch + 1
        jf = row.get("valid/jf", 0.0)
        if jf >= self.state["best_jf"]:
            self.state["best_jf"] = jf
            replace_folder(self.out / "best", lambda folder: self.model.save_pretrained(folder))  # type: ignore[operator]
        row["seconds"] = round(time.perf_counter() - began, 3)
        return row

    def _step(self, batch: Batch, name: str, step: int) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            losses: dict[str, Tensor] = self.model.loss(batch.to(self.device))  # type: ignore[operator]
        if not torch.isfinite(losses["loss"]):
            raise InputError(f"{name}: the loss is {losses['loss'].item()}; lower --set optim.lr or verify the cache")
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.optim.clip)
        if not torch.isfinite(norm):
            raise InputError(f"{name}: the gradient is {norm.item()}; lower --set optim.lr or verify the cache")
        self.optimizer.step()
        return {key: value.item() for key, value in losses.items()}

    def _rate(self, step: int) -> float:
        optim = self.settings.optim
        rate = optim.lr * min(1.0, (step + 1) / optim.warmup if optim.warmup else 1.0)
        if optim.schedule == "cosine":
            return rate * 0.5 * (1 + math.cos(math.pi * step / (self.settings.epochs * self.steps_per_epoch)))
        if optim.schedule == "step":
            share = step / (self.settings.epochs * self.steps_per_epoch)
            return rate * optim.factor ** sum(share >= milestone for milestone in optim.milestones)
        return rate * float(self.state["rate"])

    def _plateau(self, loss: float) -> None:
        """Halve the rate when the validation loss has not fallen for `patience` epochs (SOLA's released schedule)."""
        optim, state = self.settings.optim, self.state
        if state["lowest"] is None or loss < state["lowest"]:
            state["lowest"], state["waited"] = loss, 0
            return
        state["waited"] += 1
        if optim.schedule == "plateau" and state["waited"] > optim.patience:
            state["rate"], state["waited"] = state["rate"] * optim.factor, 0


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters in two groups: with `weight_decay`, and without: those of norms and embeddings."""
    free = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding) or "Norm" in type(module).__name__
        for parameter in module.parameters(recurse=False)
    }
    parts = {True: list[nn.Parameter](), False: list[nn.Parameter]()}
    for parameter in model.parameters():
        parts[id(parameter) not in free].append(parameter)
    return [{"params": parts[True], "weight_decay": weight_decay}, {"params": parts[False], "weight_decay": 0.0}]


@contextmanager
def tensorboard(folder: Path, epoch: int) -> Iterator[Any]:
    """A writer of TensorBoard's curves that go on after `epoch`. Raises InputError when the disk refuses."""
    from torch.utils.tensorboard import SummaryWriter

    def hushed(fault: threading.ExceptHookArgs) -> None:
        # The writer's own thread prints the fault of the disk that it also raises here.
        if not isinstance(fault.exc_value, OSError):
            hook(fault)

    hook, threading.excepthook = threading.excepthook, hushed
    try:
        with storing(folder):
            board = SummaryWriter(str(folder), purge_step=epoch + 1)
        yield board
        with storing(folder):
            board.close()
    finally:
        threading.excepthook = hook
