"""The command of a page: its errors name the page's own options."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from rvos_cache.cli import Resumable
from rvos_cache.errors import InputError
from rvos_cache.pretrained import CHECKPOINT_FOLDERS, resolve_checkpoint
from rvos_cache.settings import build
from rvos_select.selectors import selector_class
from rvos_select.training.settings import TrainSettings

ADVICE = ("give another --root or --split", "give another --root")
"""What errors about a dataset's folder end in; a page may have an option of another name for it, and has none for splits."""

OTHER_CACHE = ("use another path or the old settings", "give the old settings, or another --out")
"""What errors about a cache that was made with other settings end in; a page gives caches their paths itself."""
SETTINGS = re.compile(r"\b(made with|started with|caches of) settings\.")
"""Where a card's name of a setting stands in such errors."""


class Page(Resumable):
    """A page is run with its own names for folders of datasets: `--youtube` instead of `--root`."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the page. Raises InputError with the page's options in the place of those of the commands that it calls."""
        try:
            return super().invoke(ctx)
        except InputError as error:
            message = with_own_root(with_own_settings(str(error)), ctx)
            if message == str(error):
                raise
            raise InputError(message) from error


def with_own_settings(message: str) -> str:
    """`message` with a setting's own name in the place of that in a card, and without a path that a page's user cannot give."""
    return SETTINGS.sub(r"\1 ", message.replace(*OTHER_CACHE))


def with_own_root(message: str, ctx: click.Context) -> str:
    """`message` with the option of `ctx` that gave the folder that it is about."""
    advice = next((advice for advice in ADVICE if advice in message), None)
    if advice is None:
        return message
    roots = [(str(ctx.params[p.name]), p) for p in ctx.command.params if p.name and isinstance(ctx.params.get(p.name), Path)]
    # Of folders that lie in each other, the innermost.
    own = [p for root, p in sorted(roots, key=lambda pair: -len(pair[0])) if root in message]
    if not own:
        return message
    return message.replace(advice, f"give another {own[0].opts[0]} (pipelines/README.md: what each page needs)")


def checked_settings(page: Path, values: Mapping[str, Any], given: Sequence[str] = ()) -> TrainSettings:
    """Settings of training, with those of the selector checked too: a page is to refuse a wrong one before it extracts anything.

    page: the file that errors name; given: of `values`, those of the command line. Raises InputError.
    """
    settings = build(TrainSettings, values, str(page), given)
    build(selector_class(settings.selector).Config, settings.config, f"selector {settings.selector}")
    return settings


def check_folder(option: str, folder: Path | None) -> None:
    """Raises InputError where `option` gives a checkpoint that is not there."""
    if folder is not None and not Path(resolve_checkpoint(str(folder))).is_dir():
        raise InputError(
            f"{option} {folder}: there is no such folder, nor one in {CHECKPOINT_FOLDERS}; give another, or leave it out to train one"
        )
