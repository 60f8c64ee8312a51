"""Kinds of expressions by the tags of a text cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rvos_cache.text.cues import cue
from rvos_cache.types import Expression
from rvos_select.data.texts import TextSource
from rvos_select.metrics.slices import kind_of_words


def kinds_of(texts: Sequence[Path]) -> Callable[[Expression], str | None]:
    """Expression -> "motion", "static", "both" or "neither", by `cues.cue`; None where no cache of `texts` holds it."""
    if not texts:
        return lambda _: None
    source = TextSource(texts)
    kinds: dict[str, dict[str, str]] = {}

    def kind(expression: Expression) -> str | None:
        video_id = expression.video_id
        if video_id not in source.cache_of:
            return None
        if video_id not in kinds:
            # Only the kinds of the latest video stay in memory.
            kinds.clear()
            cue_of = partial(cue, tagger=source.tagger(video_id))
            rows = zip(source.expressions(video_id), source.words(video_id))
            kinds[video_id] = {e.expression_id: kind_of_words(words, cue_of) for e, words in rows}
        return kinds[video_id].get(expression.expression_id)

    return kind
