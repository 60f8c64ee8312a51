"""What to try where nothing is selected, in one line."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

from rvos_cache.store import SelectionCache, format_uri
from rvos_select.merging.policy import DRAW_THRESHOLD, SelectionPolicy


def empty_hint(selections: SelectionCache, policy: SelectionPolicy, videos: Iterable[str] | None = None) -> str | None:
    """A line that names the best score and the options to try, if `policy` selects nothing for any expression; else None.

    videos: of these alone; default: all.
    """
    known = selections.video_ids()
    best, expressions, candidates = 0.0, 0, 0
    for video_id in known if videos is None else sorted(set(videos) & set(known)):
        scores, allowed = selections.scores(video_id)
        if policy.among(scores, allowed).any():
            return None
        best = max(best, float(scores[allowed].max(initial=0.0)))
        expressions, candidates = expressions + len(scores), candidates + int(allowed.sum())
    if not expressions:
        return None
    if not candidates:
        return "every mask is empty: the tracker found no track; look at the frames, or try another tracker or other settings"
    options = ["--top1"]
    lower = threshold_below(best)
    if lower is not None and lower >= selections.card.extra.get(DRAW_THRESHOLD, 0.0):
        options.append(f"--threshold {lower:g}")
    tracks = "no track" if expressions == 1 else "no track of any expression"
    return f"every mask is empty: {tracks} scored above {policy.threshold:g}, the best {best:.3g}; try {' or '.join(options)}"


def below_hint(policy: SelectionPolicy, best: float) -> str | None:
    """A line that says that the best candidate was selected though its score `best` is not above the threshold; else None."""
    if policy.top1 or policy.empty != "top1" or best > policy.threshold:
        return None
    return f"no candidate scored above {policy.threshold:g}, so the best one was selected; --empty zeros selects nothing then"


def warn_if_empty(selections: SelectionCache, policy: SelectionPolicy, videos: Iterable[str] | None = None) -> None:
    """Warn with the line of `empty_hint`, if there is one. Raises InputError for damaged selections."""
    hint = empty_hint(selections, policy, videos)
    if hint:
        warnings.warn(f"{format_uri(selections.path)}: {hint}", stacklevel=3)


def threshold_below(score: float) -> float | None:
    """The largest threshold with one digit after its zeros that `score` is above; None below 0.001."""
    for digits in (1, 2, 3):
        steps = math.ceil((score - 1e-6) * 10**digits) - 1
        if steps > 0:
            return steps / 10**digits
    return None
