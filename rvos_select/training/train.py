"""Train a selection module from caches: tokens and words in memory, one process, resumable to the same numbers."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rvos_cache.errors import InputError
from rvos_cache.extraction import Check
from rvos_cache.settings import build, merge, read_toml
from rvos_cache.store import Card, read_card
from rvos_cache.system.counts import counted
from rvos_cache.system.device import device
from rvos_cache.system.files import restore
from rvos_cache.system.locks import folder_lock
from rvos_cache.system.progress import Progress, print_line
from rvos_select.data.augment import check_augmentation, load_augmentation
from rvos_select.data.batch import Batch, check_requires
from rvos_select.data.cards import CacheCards, check_declared, token_channels
from rvos_select.data.clips import ClipSampler, with_visible_rows
from rvos_select.data.epochs import count_steps, prefetch, steps
from rvos_select.data.micro_batches import MicroBatch, by_step, micro_batches
from rvos_select.data.resident import resident
from rvos_select.data.same_tracker import check_same_tracker
from rvos_select.data.sources import LabelSettings, Sources, read_sources
from rvos_select.data.texts import texts_of
from rvos_select.paths import PathLike, Paths, as_paths
from rvos_select.runs.checkpoint import load_state, replace_folder, save_state
from rvos_select.runs.metrics import METRICS, read_metrics
from rvos_select.selectors import Selector, selector_class
from rvos_select.selectors.untrained import check_trainable
from rvos_select.training.half_weights import HalfWeights
from rvos_select.training.memory import explain_out_of_memory
from rvos_select.training.optim import learning_rate, make_optimizer, parameter_factors, set_learning_rate, update_plateau
from rvos_select.training.record import SETTINGS, Metrics, check_start, grouping_of, write_record
from rvos_select.training.recorded import RecordedSteps, can_record
from rvos_select.training.settings import TrainSettings
from rvos_select.training.start import Start, start_from, write_start
from rvos_select.training.step_losses import StepLosses
from rvos_select.training.summary import best_line, ceiling_line, check_labels, data_lines, epoch_line, reads_labels
from rvos_select.training.validate import Validator

NORM = "norm"
"""Key of the norm of a step's gradient, beside its losses."""
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Without cuDNN's, which compiles half a second for each new shape of a batch."""
CEILING = 200
"""Expressions of which the ceiling of the labels is computed where there are none to validate with."""


def train(
    tracks: Paths,
    texts: Paths = (),
    *,
    valid_tracks: Paths = (),
    valid_texts: Paths = (),
    settings: TrainSettings | Mapping[str, Any] | PathLike | None = None,
    out: PathLike | None = None,
    resume: bool = False,
    **values: Any,
) -> Path:
    """Train a selector and return the run's folder: settings.json, metrics.jsonl, tensorboard/, last/ (to resume), best/ (to use).

    tracks, valid_tracks: tracks caches, one or several; texts, valid_texts: their text caches, by default those next to them;
    settings: TrainSettings, their values as a mapping, or a TOML file; values: single settings, which replace those, as
    selector="sola" or optim={"lr": 1e-4}; out: by default out/runs/<selector>.
    Without valid_tracks a share of the videos is held out. Raises InputError for caches that do not fit together, hidden ground
    truth, an existing run without `resume`, a run that another process trains, or a loss that is not finite.
    """
    settings = train_settings(settings, values)
    check_trainable(selector_class(settings.selector), settings.selector)
    tracks, texts, valid_tracks, valid_texts = map(as_paths, (tracks, texts, valid_tracks, valid_texts))
    out = Path(out or Path("out/runs") / settings.selector.rpartition(":")[2])
    if any("\ud800" <= letter <= "\udfff" for letter in str(out)):
        raise InputError(f"{out}: the path is not UTF-8, which TensorBoard's files need; choose another --out")
    with folder_lock(out, "train"):
        return _train(tracks, texts, valid_tracks, valid_texts, settings, out, resume)


def _train(
    tracks: Sequence[Path],
    texts: Sequence[Path],
    valid_tracks: Sequence[Path],
    valid_texts: Sequence[Path],
    settings: TrainSettings,
    out: Path,
    resume: bool,
) -> Path:
    """As `train`, in a folder that no other process writes."""
    if resume and not (out / SETTINGS).exists():
        warnings.warn(f"{out}: no run is there to resume; a new one is trained", stacklevel=3)
    if (out / SETTINGS).exists() and not resume:
        raise InputError(f"{out}: a run is there; --resume goes on with it, another --out starts anew")
    _check_kinds((*tracks, *valid_tracks), "tracks")
    _check_kinds((*texts, *valid_texts), "text")
    texts, valid_texts = texts_of(tracks, texts), texts_of(valid_tracks, valid_texts)
    train_cards, valid_cards = ([read_card(p) for p in paths] for paths in (tracks, valid_tracks))
    check_same_tracker(train_cards, "the module is trained", {str(p): c for p, c in zip(valid_tracks, valid_cards)})
    cards = CacheCards([*train_cards, *valid_cards], [read_card(p) for p in (*texts, *valid_texts)])
    # Before anything is written: a run that cannot start leaves no folder.
    selector, start, requires = _checked_selector(settings, cards, out)
    sources = read_sources(
        tracks,
        texts,
        valid_tracks,
        valid_texts,
        requires=requires,
        weights=settings.weights,
        labels=LabelSettings(settings.label_iou, settings.label_rule),
        hold_out=settings.hold_out,
    )
    if settings.batch == "clip":
        sources.train = with_visible_rows(sources.train)
    check_labels(sources.train, settings.label_rule, sources.label_iou, selector)
    write_record(out, settings, sources, selector.config, selector.frozen_digests)
    if start is not None:
        write_start(out, start)
        for line in start.lines():
            print_line(line)
    # A run that is resumed has the same statistics in its checkpoint.
    selector.fit(sources.train)
    where = device()
    with torch_threads(settings.threads):
        return Run(settings, sources, selector.to(where), where, out).train(resume)


def _checked_selector(settings: TrainSettings, cards: CacheCards, out: Path) -> tuple[Selector, Start | None, tuple[str, ...]]:
    """The selector, the weights that it starts from, and the parts of a batch that it needs.

    Raises InputError where it cannot be trained.
    """
    selector = make_selector(settings, cards)
    selector.bind(cards)
    # A run that is resumed has its weights in its own checkpoint.
    start = start_from(selector, settings.init) if settings.init and not (out / "last").exists() else None
    parameter_factors(selector, settings.optim.rates)
    requires = required_parts(settings, selector)
    check_declared(requires, cards, settings.selector, selector.advice)
    return selector, start, requires


def trains_on(settings: TrainSettings, out: Path) -> Check:
    """A `check` of `extract_all` for the run `out` with `settings`: what can be known before hours of extraction.

    It raises InputError, as `train` would, where the settings are wrong or do not fit caches with the cards that it is given, and where
    the run was started with others.
    """

    def check(tracks: Sequence[Card], text: Card) -> None:
        _checked_selector(settings, CacheCards(tracks, [text]), out)
        check_start(out, settings, tracks)

    check_trainable(selector_class(settings.selector), settings.selector)
    return check


def _check_kinds(paths: Sequence[Path], kind: str) -> None:
    for path in paths:
        other = read_card(path).kind
        if other != kind:
            raise InputError(
                f"{path}: holds {other}, expected {kind}; --cache and --valid-cache want tracks, --text and --valid-text text"
            )


def train_settings(
    settings: TrainSettings | Mapping[str, Any] | PathLike | None, values: Mapping[str, Any] = {}
) -> TrainSettings:
    """Settings from themselves, a mapping, a TOML file or None (the defaults), with single `values` replaced.

    Raises InputError for unknown or wrong values.
    """
    if settings is None or isinstance(settings, (TrainSettings, Mapping)):
        base = settings.model_dump() if isinstance(settings, TrainSettings) else dict(settings or {})
        return build(TrainSettings, merge(base, values), "train settings")
    return build(TrainSettings, merge(read_toml(Path(settings)), values), str(settings))


def make_selector(settings: TrainSettings, cards: CacheCards) -> Selector:
    """The untrained selector for the caches' C and D, its first weights sampled from the seed. Raises InputError."""
    if not cards.tracks or not cards.text:
        raise InputError("no tracks cache given; add --cache C.zarr")
    kind = selector_class(settings.selector)
    if kind.draws is False and not token_channels(cards.tracks):
        raise InputError(
            f"selector {settings.selector}: selects among tracks, and none of the caches holds any; add --cache of a tracker of objects"
        )
    torch.manual_seed(settings.seed)
    read = kind.config_values(settings.config, cards)
    config = build(kind.Config, {**read, **settings.config}, f"selector {settings.selector}")
    try:
        return kind(config)
    except (RuntimeError, MemoryError) as error:
        # Of torch, for layers that are larger than the memory.
        line = " ".join(str(error).split())
        raise InputError(
            f"selector {settings.selector}: cannot be made with this config ({line:.200}); --set config.NAME=VALUE"
        ) from error


def required_parts(settings: TrainSettings, selector: Selector) -> tuple[str, ...]:
    """The parts of a batch that training needs. Raises InputError for a name that is no part, or one that the batches lack."""
    clips = settings.batch == "clip"
    if settings.micro_batch and settings.batch == "video":
        raise InputError(
            f"micro_batch={settings.micro_batch} divides a step of expressions, but with batch=video a step is one video; leave it "
            "out, or --set batch=single"
        )
    check_requires(selector.requires, settings.selector)
    check_augmentation(settings.augment, selector, clips)
    if "truth" in selector.requires and not clips:
        raise InputError(f"selector {settings.selector} has losses of masks, which only clips hold; --set batch=clip")
    # Where an object of an expression is visible decides which frames its clip may have.
    extra = ("overlap",) if clips and "overlap" not in selector.requires else ()
    return (*selector.requires, *extra)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch with `count` CPU threads (0: unchanged), and as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Run:
    """The training loop. Every random number of an epoch follows from (seed, epoch), so a resumed epoch is the same epoch."""

    def __init__(self, settings: TrainSettings, sources: Sources, model: Selector, device: torch.device, out: Path) -> None:
        self.settings, self.sources, self.model, self.device, self.out = settings, sources, model, device, out
        self.parameters = list(model.parameters())
        self.rate = settings.optim.lr
        self.grouping = grouping_of(settings)
        self.steps_per_epoch = count_steps(sources.train, self.grouping, settings.batch_size, sources.weights)
        self.bf16 = settings.precision == "bf16" or (settings.precision == "auto" and device.type == "cuda")
        records = settings.cuda_graphs and can_record(model, device)
        self.recorded = RecordedSteps(self._whole_step, device) if records else None
        self.half_weights = HalfWeights(model) if records and self.bf16 else None
        self.optimizer = make_optimizer(model, settings.optim, rate_on=device if records else None)
        self.requires = tuple(model.requires)
        self.samples = resident(sources.train, device, settings.resident)
        self.augment = load_augmentation(settings.augment)
        clip = settings.clip if settings.batch == "clip" else None
        # A selector without normalisers of its own needs no count of a whole step.
        self.normalisers = None if type(model).normalisers is Selector.normalisers else model.normalisers
        self.validator = Validator(
            sources.valid, sources.valid_sets, settings.valid_expressions, clip, settings.batch_size, settings.micro_batch
        )
        self.losses = StepLosses()
        self.state: dict[str, Any] = {"epoch": 0, "best_jf": -1.0, "rate": 1.0, "lowest_loss": None, "waited": 0}

    def train(self, resume: bool) -> Path:
        """The remaining epochs. Raises InputError when a write fails; the last complete checkpoint is kept then."""
        for name in ("last", "best", SETTINGS, METRICS):
            restore(self.out / name)
        if resume and (self.out / "last").exists():
            self.state = load_state(self.out, self.model, self.optimizer)
        epoch, steps = self.state["epoch"], self.steps_per_epoch
        if epoch < self.settings.epochs:
            self._print_data()
        else:
            print_line(f"{self.out}: was finished already, after {counted(epoch, 'epoch')}; nothing is trained")
        with (
            Progress("train", self.settings.epochs * steps, epoch * steps, unit="steps", announce=True) as bar,
            Metrics(self.out, epoch) as metrics,
        ):
            for epoch in range(epoch, self.settings.epochs):  # noqa: B020
                began = time.perf_counter()
                row = {"epoch": epoch + 1, **self._train_epoch(epoch, bar), **self._validate()}
                if self.sources.valid:
                    update_plateau(self.settings.optim, self.state, row.get("valid/loss", row["train/loss"]))
                row["seconds"] = round(time.perf_counter() - began, 3)
                self._keep_best(row)
                metrics.add(row)
                self.state["epoch"] = epoch + 1
                save_state(self.out, self.model, self.optimizer, self.state)
                bar.print(epoch_line(row, self.settings.epochs))
        print_line(best_line(read_metrics(self.out)))
        return self.out

    def _print_data(self) -> None:
        for line in data_lines(self.sources, self.settings.hold_out):
            print_line(line)
        if reads_labels(self.model):
            validated, validator = bool(self.sources.valid), self.validator
            if not validated:
                validator = Validator(self.sources.train, self.sources.train_sets, self.settings.valid_expressions or CEILING)
            ceiling = validator.ceiling(self.model)
            if ceiling:
                print_line(ceiling_line(ceiling, validated))

    def _train_epoch(self, epoch: int, bar: Progress) -> dict[str, float]:
        """train/<loss name> as means over the steps, and the learning rate of the last one."""
        seed = int.from_bytes(hashlib.sha256(f"{self.settings.seed}/{epoch}".encode()).digest()[:6], "big")
        torch.manual_seed(seed)
        self.losses = losses = StepLosses()
        self.model.train()
        with losses.explaining():
            for step, (name, parts) in enumerate(by_step(self._parts(torch.Generator().manual_seed(seed)))):
                self._step(parts, name, epoch * self.steps_per_epoch + step)
                mean = f", loss {losses.sums['loss'] / losses.steps:.4f}" if losses.steps else ""
                bar.advance(title=f"epoch {epoch + 1}/{self.settings.epochs}{mean}")
        means = {f"train/{key}": value / self.steps_per_epoch for key, value in losses.sums.items()}
        return {**means, "lr": self.rate}

    def _parts(self, generator: torch.Generator) -> Iterator[MicroBatch]:
        """The micro-batches of an epoch."""
        settings = self.settings
        order = steps(self.samples, self.grouping, settings.batch_size, generator, self.sources.weights)
        clips = settings.batch == "clip"
        sampler = ClipSampler(settings.clip, generator, self.requires, self.augment) if clips else None
        parts = micro_batches(order, settings.micro_batch, self.requires, sampler, self.normalisers)
        return prefetch(parts) if clips and self.device.type == "cuda" else parts

    def _step(self, parts: Iterator[MicroBatch], name: str, step: int) -> None:
        """One step of the optimiser. It reads nothing of the device: `self.losses` tells later whether all numbers were finite."""
        settings = self.settings
        self.rate = learning_rate(settings.optim, step, settings.epochs * self.steps_per_epoch, float(self.state["rate"]))
        set_learning_rate(self.optimizer, self.rate)
        with explain_out_of_memory(name, settings, self.model.config):
            first = next(parts)
            if self.recorded is not None and first.last and self.recorded.fits(first.batch):
                losses = self.recorded.step(first.batch)
                norm = losses.pop(NORM)
                self.losses.add(first.name, losses)
            else:
                self.optimizer.zero_grad(set_to_none=True)
                for part in chain([first], parts):
                    self.losses.add(part.name, self._add_gradients(part.batch.to(self.device), part.share))
                norm = self._apply_gradients()
        self.losses.end_step(name, norm)

    def _whole_step(self, batch: Batch) -> dict[str, Tensor]:
        """A step of one batch of the device -> its losses, and under NORM the norm of its gradient."""
        self.optimizer.zero_grad(set_to_none=True)
        with nullcontext() if self.half_weights is None else self.half_weights.used():
            losses = self._add_gradients(batch, 1.0)
        return {**losses, NORM: self._apply_gradients()}

    def _add_gradients(self, batch: Batch, share: float) -> dict[str, Tensor]:
        """Add the gradients of a part of a step -> its share of the step's losses."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16), sdpa_kernel(ATTENTION):
            losses = {key: value * share for key, value in self.model.loss(batch).items()}
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        return {key: value.detach() for key, value in losses.items()}

    def _apply_gradients(self) -> Tensor:
        """Clip the gradient and change the weights -> its norm before."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.optim.clip)
        self.optimizer.step()
        return norm

    def _validate(self) -> dict[str, float]:
        return self.validator.scores(self.model, self.device, self.requires) if self.sources.valid else {}

    def _keep_best(self, row: Mapping[str, Any]) -> None:
        """Save the module as best/ when its J&F is at least that of every epoch before."""
        jf = row.get("valid/jf", 0.0)
        if jf >= self.state["best_jf"]:
            self.state["best_jf"] = jf
            replace_folder(self.out / "best", self._save)

    def _save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
