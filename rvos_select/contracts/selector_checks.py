"""What training, prediction and merging assume of every selector, as functions that raise CheckFailed."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from safetensors.torch import load_file

from rvos_cache.contracts.checks import CheckFailed, CheckResult, CheckSkipped, run_check
from rvos_cache.errors import InputError
from rvos_cache.settings import build
from rvos_cache.store import SelectionCache, verify
from rvos_cache.system.device import on_device
from rvos_select.contracts.host_reads import HostReads
from rvos_select.contracts.reordered import reordered
from rvos_select.contracts.selector_case import CLIP_FRAMES, SelectorCase
from rvos_select.data.cards import check_declared, part_array
from rvos_select.data.collate import collate
from rvos_select.data.padding import PaddedBatch
from rvos_select.inference.predict import predict
from rvos_select.selectors import Selector, selector_class
from rvos_select.selectors.untrained import UntrainedSelector
from rvos_select.training.train import train

UNKNOWN_SETTING = "no_such_setting"


def check_settings(case: SelectorCase) -> None:
    """A setting that does not exist is an error."""
    model = selector_class(case.name).Config
    try:
        build(model, {**case.config, UNKNOWN_SETTING: 1}, f"selector {case.name}")
    except InputError as error:
        if UNKNOWN_SETTING in str(error):
            return
        raise
    raise CheckFailed(f'Config accepts the unknown name {UNKNOWN_SETTING!r}; do not set extra="allow" or "ignore"')


def check_forward(case: SelectorCase) -> None:
    """Logits (B, N) or (B, Q) that are numbers, for the expressions of a video together and for one alone."""
    for sample in case.samples:
        for rows in (list(range(len(sample.expressions))), [0]):
            batch = collate([(sample, row) for row in rows], case.selector.requires)
            logits = case.selector(batch)
            expected = tuple(batch.track_mask.shape)
            if logits.ndim != 2 or len(logits) != len(rows) or (not case.selector.draws and tuple(logits.shape) != expected):
                raise CheckFailed(f"forward returns {tuple(logits.shape)}, expected (expressions, tracks) = {expected}")
            if logits.isnan().any():
                raise CheckFailed(f"forward returns NaN for video {sample.video_id}")


def check_padding(case: SelectorCase) -> None:
    """Padding of frames, tracks and words changes nothing: expressions of several videos together equal each alone."""
    rows = [(s, 0) for s in case.samples if case.selector.draws or s.candidates[0].any()][:3]
    batch = collate(rows, case.selector.requires)
    logits = case.selector(batch)
    for i, row in enumerate(rows):
        alone = case.selector(collate([row], case.selector.requires))[0]
        real = logits[i] if case.selector.draws else logits[i, batch.track_mask[i]]
        case.close(real, alone, f"the logits of {row[0].expressions[0].key} in a padded batch")


def check_together(case: SelectorCase) -> None:
    """The expressions of a video together have the scores that each has alone, and in any order."""
    for sample in case.samples:
        together = case.scores(sample)
        count = len(sample.expressions)
        alone = torch.cat([case.scores(sample, [row]) for row in range(count)])
        case.close(together, alone, f"the scores of video {sample.video_id}, expressions together")
        case.close(case.scores(sample, range(count)[::-1]).flip(0), alone, "the scores of expressions in reverse order")


def check_track_order(case: SelectorCase) -> None:
    """Scores follow their tracks: another order of the tracks is the same order of the scores."""
    if case.selector.draws:
        raise CheckSkipped("it scores queries, not tracks")
    for sample in case.samples:
        order = torch.randperm(len(sample.tokens), generator=torch.Generator().manual_seed(2))
        case.close(case.scores(reordered(sample, order)), case.scores(sample)[:, order], f"the scores of {sample.video_id}")


def check_loss(case: SelectorCase) -> None:
    """The losses are finite scalars with "loss" among them, and its gradient reaches every trained parameter."""
    selector = case.selector
    _skip_untrained(selector)
    selector.train()
    try:
        losses = case.loss(case.batch(case.rows()))
        if "loss" not in losses:
            raise CheckFailed(f'loss returns {sorted(losses)}, without "loss"')
        for name, value in losses.items():
            if value.ndim or not torch.isfinite(value):
                raise CheckFailed(f"loss {name!r} is {value.tolist()}, expected a finite scalar")
        if not losses["loss"].requires_grad:
            raise CheckFailed("the loss has no gradient; do not compute it under no_grad or from detached tensors")
        selector.zero_grad()
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        unused = [name for name, parameter in selector.named_parameters() if parameter.grad is None]
        if unused:
            raise CheckFailed(
                f"{len(unused)} parameters have no gradient, first {unused[0]}; remove them, or use them in the loss"
            )
        frozen = [name for name, p in selector.frozen.named_parameters() if p.grad is not None and not p.requires_grad]
        if frozen:
            raise CheckFailed(f"the frozen parameter {frozen[0]} has a gradient")
    finally:
        selector.zero_grad()
        selector.eval()


def check_loss_is_mean(case: SelectorCase) -> None:
    """The loss of several expressions is the mean of their losses, or with `normalisers` of the whole their sum."""
    if case.selector.draws:
        raise CheckSkipped("losses of masks are means over objects")
    rows = case.rows()
    singles = [case.batch([row]) for row in rows]
    counts = [case.selector.normalisers(batch) for batch in singles]
    totals = {name: sum(own[name] for own in counts) for name in counts[0]}
    with torch.no_grad():
        together = case.loss(case.batch(rows))["loss"]
        losses = torch.stack([case.loss(replace(batch, normalisers=totals))["loss"] for batch in singles])
    expected, what = (
        (losses.sum(), "the sum of its expressions' shares") if totals else (losses.mean(), "the mean of its expressions")
    )
    case.close(together, expected, f"the loss of a batch, against {what}")


def check_static_shapes(case: SelectorCase) -> None:
    """The loss of a batch in padded tensors that hold others later is that of the batch, as recorded steps need it."""
    if not case.selector.static_shapes:
        raise CheckSkipped("static_shapes is not declared")
    if case.selector.requires:
        raise CheckFailed(f"static_shapes with requires {case.selector.requires}: only tokens and words can be recorded")
    rows = case.rows()
    with torch.no_grad():
        for part in (rows, rows[:2], rows[:1]):
            batch = case.batch(part)
            padded = PaddedBatch(batch, torch.device("cpu"))
            padded.load(batch)
            expected = case.loss(batch)
            with HostReads() as reads:
                losses = case.loss(padded.batch())
            if reads.total:
                raise CheckFailed(
                    f"static_shapes, but the loss reads values of tensors in Python: {', '.join(sorted(reads.counts))}"
                )
            for name, value in expected.items():
                case.close(losses[name], value, f"the loss {name!r} of a padded batch, against that of the batch")


def check_hidden(case: SelectorCase) -> None:
    """Without ground truth there is no loss, but scores."""
    sample = case.load(labelled=False)[0]
    case.scores(sample)
    frames = [[0] * CLIP_FRAMES] if "truth" in case.selector.requires else None
    batch = collate([(sample, 0)], case.selector.requires, frames=frames)
    # With labels the same rows have a loss, so what fails below fails for want of labels, with whatever exception.
    case.loss(case.batch([(case.samples[0], 0)]))
    try:
        losses = case.loss(batch)
    except Exception:
        return
    values = {name: value.item() for name, value in losses.items()}
    raise CheckFailed(f"loss of a batch without labels is {values}; missing labels must not become negatives, let it raise")


def check_no_tracks(case: SelectorCase) -> None:
    """N = 0: a video without a candidate has finite losses, and no scores."""
    empty = replace(case.samples[0], candidates=torch.zeros_like(case.samples[0].candidates))
    scores = case.scores(empty)
    if not scores.isfinite().all() or (not case.selector.draws and scores.any()):
        raise CheckFailed("scores of a video without a candidate are not 0")
    for name, value in case.loss(case.batch([(empty, 0)])).items():
        if not torch.isfinite(value):
            raise CheckFailed(f"loss {name!r} of an expression without a candidate is {value.item()}")


def check_no_objects(case: SelectorCase) -> None:
    """A = 0: an expression without objects, alone and as the only one of its video, has finite losses."""
    if "truth" in case.selector.requires:
        raise CheckSkipped("clips are of expressions with a visible object")
    for sample in case.samples[:2]:
        target = None if sample.target is None else torch.zeros_like(sample.target)
        empty = replace(sample, objects=((),) * len(sample.expressions), target=target)
        for name, value in case.loss(case.batch([(empty, 0)])).items():
            if not torch.isfinite(value):
                raise CheckFailed(f"loss {name!r} of an expression without objects is {value.item()}")


def check_one_frame(case: SelectorCase) -> None:
    """T = 1: a clip of one frame has logits that are numbers."""
    for sample in case.samples:
        logits = case.selector(collate([(sample, 0)], case.selector.requires, frames=[[0]]))
        if logits.isnan().any():
            raise CheckFailed(f"forward returns NaN for one frame of video {sample.video_id}")


def check_files(case: SelectorCase) -> None:
    """save_pretrained and from_pretrained give back settings, weights and scores; frozen parts are neither counted nor saved."""
    folder, selector = case.path(), case.selector
    selector.save_pretrained(folder)
    # Other random numbers than those of the first instance: what is not saved differs.
    torch.manual_seed(54321)
    again = type(selector).from_pretrained(folder)
    if again.config != selector.config:
        raise CheckFailed(f"the settings read back are {again.config!r}, saved {selector.config!r}")
    again.bind(case.cards)
    sample = case.samples[0]
    batch = collate([(sample, row) for row in range(len(sample.expressions))], selector.requires)
    case.close(again.eval()(batch), selector(batch), "the logits of the module read back")
    saved, trained = set(load_file(folder / "model.safetensors")), {name for name, _ in selector.named_parameters()}
    frozen = {f"frozen.{name}" for name, p in selector.frozen.named_parameters() if not p.requires_grad}
    if frozen & saved or frozen & trained:
        raise CheckFailed(f"the frozen weight {min(frozen & (saved | trained))} is counted or saved; see Selector.frozen_parts")


def check_training(case: SelectorCase) -> None:
    """Training resumes to the same weights, and predict scores every video with the best of them."""
    _skip_untrained(case.selector)
    whole, parts = case.path() / "whole", case.path() / "parts"
    # Sums on a GPU differ from run to run, and AdamW makes of a gradient that is zero but for its rounding a step as of any other.
    with _quiet(), on_device("cpu"):
        train(*case.caches, settings=case.settings(), out=whole)
        for epochs in (1, 2):
            train(*case.caches, settings=case.settings(epochs=epochs), out=parts, resume=epochs > 1)
    whole_weights, resumed = (load_file(run / "last/model.safetensors") for run in (whole, parts))
    for name, value in whole_weights.items():
        case.close(resumed[name].float(), value.float(), f"{name} of a resumed run; take random numbers from PyTorch alone")
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text("utf-8").splitlines()]
    if len(case.samples) > 1 and not all("valid/jf" in row for row in rows):
        raise CheckFailed("validation has no J&F")
    out = case.path() / "selections.zarr"
    with _quiet():
        predict(whole, *case.caches, out)
    faults = list(verify(out))
    if faults:
        raise CheckFailed(faults[0])
    videos = SelectionCache(out).video_ids()
    if videos != tuple(s.video_id for s in case.samples):
        raise CheckFailed(f"predict scored the videos {videos}")


def _skip_untrained(selector: Selector) -> None:
    if isinstance(selector, UntrainedSelector):
        raise CheckSkipped("it has nothing to train")


SELECTOR_CHECKS: dict[str, Callable[[SelectorCase], None]] = {
    "unknown settings are rejected": check_settings,
    "forward returns logits": check_forward,
    "padding changes nothing": check_padding,
    "expressions together equal each alone": check_together,
    "scores follow their tracks": check_track_order,
    "the loss is finite and trains every parameter": check_loss,
    "the loss is a mean over expressions": check_loss_is_mean,
    "padded batches have the same loss (static_shapes)": check_static_shapes,
    "hidden ground truth has scores but no loss": check_hidden,
    "no candidate (N = 0)": check_no_tracks,
    "an expression without objects (A = 0)": check_no_objects,
    "one frame (T = 1)": check_one_frame,
    "saved and read back": check_files,
    "train, resume, predict": check_training,
}
"""Title -> check, in the order in which they run."""


def run_selector_checks(case: SelectorCase) -> Iterator[CheckResult]:
    """The result of every check, one after the other. Raises InputError if the selector cannot be made for the caches."""
    declared = {spec.name for spec in (*case.features, *case.measurements)}
    named = [name for name in case.selector.requires if name.startswith(("features.", "frames.", "measured."))]
    undeclared = [name for name in named if part_array(name)[1] not in declared]
    if case.tracks is None and undeclared:
        raise InputError(
            f"selector {case.name}: requires {', '.join(undeclared)}; declare them, --feature NAME:DIMS as maps:T,N,8 or "
            "--measurement NAME:DIMS as soft_overlap:N,A,T:float32, or give the cache of a tracker that writes them, --cache C.zarr"
        )
    check_declared(case.selector.requires, case.cards, case.name)
    runs = True
    for title, check in SELECTOR_CHECKS.items():
        if not runs:
            yield CheckResult(title, "skipped", "forward failed")
            continue
        result = run_check(title, check, case)
        if check is check_forward:
            runs = result.status == "ok"
        yield result


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
