"""Commands about trackers and text encoders: settings, check-tracker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from rvos_cache.cli.options import SET
from rvos_cache.errors import InputError

if TYPE_CHECKING:
    from rvos_cache.contracts import CheckResult


@click.command()
@click.argument("name")
def settings(name: str) -> None:
    """List the settings of a tracker or encoder, or of pool-clip or tune-referdino.

    NAME is a built-in name or your own my_module:MyClass. Each setting has a type, a default, a meaning and, where known, the
    source of its default. Other commands take values as --set NAME=VALUE.
    """
    from rvos_cache.plugins import resolve
    from rvos_cache.settings import describe, format_settings
    from rvos_cache.text import TEXT_ENCODERS, TextEncoder, encoder_class
    from rvos_cache.trackers import TRACKERS, tracker_class

    if name == "pool-clip":
        from rvos_cache.clip.pooling import PoolSettings

        click.echo(format_settings(name, describe(PoolSettings)))
        return
    if name == "tune-referdino":
        from rvos_cache.trackers.referdino.tune_settings import TuneSettings

        click.echo(format_settings(name, describe(TuneSettings)))
        return
    if name not in TRACKERS and name not in TEXT_ENCODERS and ":" not in name:
        raise InputError(
            f"no tracker or text encoder {name!r}; trackers: {', '.join(sorted(TRACKERS))}; text encoders: "
            f"{', '.join(sorted(TEXT_ENCODERS))}; or your own as my_module:MyClass"
        )
    is_encoder = name in TEXT_ENCODERS
    if ":" in name:
        plugin = resolve({}, name, "plugin")
        is_encoder = isinstance(plugin, type) and issubclass(plugin, TextEncoder)
    model = encoder_class(name).Settings if is_encoder else tracker_class(name).Settings
    click.echo(format_settings(f"{'text encoder' if is_encoder else 'tracker'} {name}", describe(model)))


@click.command("check-tracker")
@click.argument("name")
@SET
def check_tracker(name: str, overrides: tuple[str, ...]) -> None:
    """Run the contract tests on a tracker.

    NAME is your own my_module:MyTracker or a built-in name; it runs on small synthetic videos. One line per test: ok, FAILED
    with the reason, or skipped; exit status 1 if any test failed.
    """
    from rvos_cache.contracts import run_tracker_checks
    from rvos_cache.settings import parse_overrides

    echo_results(f"tracker {name}", run_tracker_checks(name, parse_overrides(overrides)))


def echo_results(title: str, results: Iterable[CheckResult]) -> None:
    """Print each result as it comes, one line each. title: kind and name of the plugin. Raises InputError if any test failed."""
    failed = total = 0
    for result in results:
        failed, total = failed + (result.status == "FAILED"), total + 1
        click.echo(f"{result.status:<8}{result.title}{f': {result.message}' if result.message else ''}")
    if failed:
        raise InputError(f"{title}: {failed} of {total} tests failed")
    click.echo(f"{title} passes")


COMMANDS: tuple[click.Command, ...] = (settings, check_tracker)
