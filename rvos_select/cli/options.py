"""Options that several commands of `rvos-select` share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rvos_cache.errors import InputError

if TYPE_CHECKING:
    from rvos_select.merging.policy import PolicyOptions

PATH = click.Path(path_type=Path)
CACHES = click.option("--cache", "caches", type=PATH, multiple=True, required=True, help="Tracks cache; may repeat.")
TEXTS = click.option(
    "--text", "texts", type=PATH, multiple=True, help="Text cache; may repeat.  [default: the one next to the tracks]"
)
SELECTOR = click.option(
    "--selector", metavar="NAME", help="Instead of --run: a selector that needs no training: all-tracks, clip-zero-shot."
)
SELECTOR_SET = click.option(
    "--set", "overrides", multiple=True, metavar="K=V", help="With --selector: one of its settings, e.g. clip=FOLDER; may repeat."
)
TEXTS_OF_SLICES = click.option("--text", "texts", type=PATH, multiple=True, help="Text cache, for slices by kind; may repeat.")
ROOT = click.option("--root", type=PATH, help="The dataset's folder.  [default: the root in the cache's card]")
VIDEOS = click.option("--video", "videos", multiple=True, help="Only this video; may repeat.")
LIMIT = click.option("--limit", type=click.IntRange(1), help="Only the first N videos of the split.")
ALLOW_MISSING = click.option("--allow-missing", is_flag=True, help="Score missing predictions 0 and list them.")


def check_run_or_selector(run: Path | None, selector: str | None, overrides: tuple[str, ...]) -> None:
    """Raises UsageError unless either a run or a selector is given, and settings for a selector alone."""
    if (run is None) == (selector is None):
        if run is not None and selector is not None:
            raise click.UsageError("--run and --selector are both given; give one of them")
        raise click.UsageError(
            "give --run RUN, or --selector NAME of a selector that needs no training (all-tracks, clip-zero-shot)"
        )
    if run is not None and overrides:
        raise click.UsageError("--set is for --selector; a run has the settings that it was trained with")


def policy_options(default: str = "the selector's", prefix: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """--threshold, --top1 and --empty, which the command takes as one argument, `policy`.

    default: the threshold's default in the help; prefix: of each help text.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.option(
            "--threshold", type=click.FloatRange(0, 1), help=f"{prefix}Select tracks with scores above.  [default: {default}]"
        )
        @click.option("--top1", is_flag=True, help=f"{prefix}Select the best candidate instead.")
        @click.option(
            "--empty",
            type=click.Choice(["zeros", "top1"]),
            help=f"{prefix}Where no score is above: an empty mask, or the best candidate's.  [default: the selector's]",
        )
        @functools.wraps(command)
        def with_policy(*args: Any, threshold: float | None, top1: bool, empty: Any, **others: Any) -> None:
            from rvos_select.merging.policy import PolicyOptions

            try:
                policy = PolicyOptions(threshold, top1, empty)
            except InputError as error:
                raise click.UsageError(str(error)) from error
            command(*args, policy=policy, **others)

        return with_policy

    return decorate


def reject_policy_options(policy: PolicyOptions) -> None:
    """Raises UsageError unless `policy` is the default: the tracks of mask PNGs were selected by merge."""
    from rvos_select.merging.policy import DEFAULT_POLICY

    if policy != DEFAULT_POLICY:
        raise click.UsageError("--predictions takes no --threshold, --top1 or --empty: give them to merge")
