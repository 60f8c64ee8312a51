"""What a run prints: before it starts what it uses, after each epoch its scores, at the end the best epoch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rvos_cache.errors import InputError
from rvos_cache.system.counts import counted
from rvos_select.data.samples import VideoSample
from rvos_select.data.sources import Sources
from rvos_select.selectors import Selector


def reads_labels(selector: Selector) -> bool:
    """Whether the module learns from the labels of tracks: not where it draws masks, or makes targets of overlaps or measurements."""
    own = [name for name in selector.requires if name.partition(".")[0] in ("overlap", "measured")]
    return not selector.draws and not own


def check_labels(samples: Sequence[VideoSample], rule: str, label_iou: float | Sequence[float], selector: Selector) -> None:
    """Warn in one line of expressions that name objects but whose labels are all negative; they teach to select nothing.

    samples: to train on; rule, label_iou: of their labels. Raises InputError where no expression is left, or no video has a track
    and the module draws no masks of its own.
    """
    videos = [s for s in samples if len(s.expressions)]
    if not videos:
        raise InputError(
            "no expression to train on is left: none has an object that is visible in a frame of a clip; extract more videos, or "
            "--set batch=video"
        )
    if selector.draws:
        return
    if not any(len(s.tokens) for s in videos):
        raise InputError(
            f"none of the {len(videos)} videos to train on has a track ({videos[0].set_name}, {videos[0].video_id} …): there is "
            "nothing to learn; look at the frames, then extract with another tracker or other settings"
        )
    if not reads_labels(selector):
        return
    named, without = 0, list[str]()
    for s in videos:
        assert s.target is not None and s.objects is not None
        positive = ((s.target > 0) & s.candidates).any(1).tolist()
        own = [e.key for e, objects in zip(s.expressions, s.objects) if objects]
        named += len(own)
        without += [e.key for e, objects, has in zip(s.expressions, s.objects, positive) if objects and not has]
    if not named:
        warnings.warn(
            "no expression to train on names an object: a module learns to select nothing; add expressions with objects",
            stacklevel=3,
        )
    if without:
        values = [label_iou] if isinstance(label_iou, float) else label_iou
        threshold = " or ".join(f"{value:g}" for value in dict.fromkeys(values))
        warnings.warn(
            f"no positive label for {len(without)} of {named} expressions that name objects (first {without[0]}): no track of "
            f"theirs is one by {rule} at label_iou={threshold}; another tracker, or a lower --set label_iou, gives them one",
            stacklevel=3,
        )


def data_lines(sources: Sources, hold_out: float) -> Iterator[str]:
    """The videos and expressions to train on and to validate with, a line each. hold_out: the setting."""
    yield f"train: {_counts(sources.train)}"
    if sources.held_out is None:
        yield f"validate: {_counts(sources.valid)}, of the validation caches"
    elif sources.valid:
        names = ", ".join(sources.held_out[:5]) + (" …" if len(sources.held_out) > 5 else "")
        by = f"held out by a hash of their names (hold_out={hold_out:g})"
        yield f"validate: {_counts(sources.valid)}, {by}: {names}"
    else:
        reason = "the only video is trained on" if hold_out else "hold_out=0"
        yield f"validate: nothing ({reason}); the last epoch counts as the best; --valid-cache gives scores"


def _counts(samples: Sequence[VideoSample]) -> str:
    """Videos and expressions, of each set where there are several."""
    sets: dict[str, list[int]] = {}
    for sample in samples:
        counts = sets.setdefault(sample.set_name, [0, 0])
        counts[0], counts[1] = counts[0] + 1, counts[1] + len(sample.expressions)
    return " + ".join(f"{counted(v, 'video')}, {counted(e, 'expression')} of {name}" for name, (v, e) in sets.items())


def ceiling_line(ceiling: Mapping[str, float], validated: bool) -> str:
    """The scores of the labels themselves. validated: they are of the expressions that validation scores."""
    where = "the expressions that validation scores" if validated else "expressions that are trained on"
    return f"ceiling: {_scores(ceiling)} on {where}, if the labels are selected exactly"


def epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    """An epoch that is done. row: of metrics.jsonl."""
    scores = [f"loss {row['train/loss']:.4f}"]
    if "valid/jf" in row:
        scores.append(f"J&F {100 * row['valid/jf']:.1f} in validation")
    return f"epoch {row['epoch']}/{epochs}: {', '.join(scores)}, {row['seconds']:.1f} s"


def best_line(rows: Sequence[Mapping[str, Any]]) -> str:
    """The epoch whose weights are in best/. rows: of metrics.jsonl, one or more."""
    best = max(enumerate(rows), key=lambda pair: (pair[1].get("valid/jf", 0.0), pair[0]))[1]
    if "valid/jf" not in best:
        return f"best: epoch {best['epoch']} of {len(rows)}, the last one, without validation; loss {best['train/loss']:.4f}"
    sets = [name.removeprefix("valid/").removesuffix("/jf") for name in best if name.endswith("/jf") and name != "valid/jf"]
    of_sets = "".join(f"; {name} {_scores(best, f'valid/{name}/')}" for name in sets)
    return f"best: epoch {best['epoch']} of {len(rows)}, {_scores(best, 'valid/')} in validation{of_sets}"


def _scores(row: Mapping[str, float], prefix: str = "valid/") -> str:
    jf, j, f = (100 * row[f"{prefix}{key}"] for key in ("jf", "j", "f"))
    return f"J&F {jf:.1f} (J {j:.1f}, F {f:.1f})"
