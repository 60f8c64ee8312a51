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
TEXTS = click.option("--text", "texts", type=PATH, multiple=True, help="Text cache; may repeat.  [default: beside it]")
TEXTS_OF_SLICES = click.option("--text", "texts", type=PATH, multiple=True, help="Text cache, for slices by kind; may repeat.")
ROOT = click.option("--root", type=PATH, help="Where the dataset lies; overrides the hint in the card.")
VIDEOS = click.option("--video", "videos", multiple=True, help="Only this video; may repeat.")
LIMIT = click.option("--limit", type=click.IntRange(1), help="Only the first N videos of the split.")
ALLOW_MISSING = click.option("--allow-missing", is_flag=True, help="Score absent predictions 0 and list them.")


def policy_options(default: str = "the selector's", where: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """--threshold, --top1 and --empty, which the command takes as one argument, `policy`.

    default: what the help says of a threshold that is not given; where: what it says before each.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.option("--threshold", type=click.FloatRange(0, 1), help=f"{where}Select scores above.  [default: {default}]")
        @click.option("--top1", is_flag=True, help=f"{where}Select the best candidate instead.")
        @click.option(
            "--empty",
            type=click.Choice(["zeros", "top1"]),
            help=f"{where}Where no score is above: no mask, or the best candidate's.  [default: the selector's]",
        )
        @functools.wraps(command)
        def with_choice(*args: Any, threshold: float | None, top1: bool, empty: Any, **others: Any) -> None:
            from rvos_select.merging.policy import PolicyOptions

            try:
                policy = PolicyOptions(threshold, top1, empty)
            except InputError as error:
                raise click.UsageError(str(error)) from error
            command(*args, policy=policy, **others)

        return with_choice

    return decorate


def reject_policy_options(policy: PolicyOptions) -> None:
    """A usage error unless nothing is asked: what masks as PNGs hold was chosen in merge."""
    from rvos_select.merging.policy import DEFAULT_POLICY

    if policy != DEFAULT_POLICY:
        raise click.UsageError("--predictions takes no --threshold, --top1 or --empty: give them to merge")
