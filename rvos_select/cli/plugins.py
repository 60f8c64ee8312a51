"""Commands about selectors: settings, check-selector."""

from __future__ import annotations

from pathlib import Path

import click

from rvos_cache.cli.plugins import echo_results
from rvos_select.cli.options import PATH


@click.command()
@click.argument("name")
def settings(name: str) -> None:
    """List the settings of the selector NAME, or of `train`: type, default, meaning and source of each.

    NAME is a built-in name or your own my_module:MyClass. Values of a selector are given to train as --set config.NAME=VALUE; of one
    that needs no training to predict and ask as --set NAME=VALUE.
    """
    from rvos_cache.settings import describe, format_settings
    from rvos_select.selectors import selector_class
    from rvos_select.selectors.untrained import UntrainedSelector
    from rvos_select.training.settings import TrainSettings

    if name == "train":
        click.echo(format_settings("train", describe(TrainSettings)))
        return
    kind = selector_class(name)
    text = format_settings(f"selector {name}", describe(kind.Config))
    click.echo(text if issubclass(kind, UntrainedSelector) else text.replace("--set NAME", "--set config.NAME", 1))


@click.command("check-selector")
@click.argument("name")
@click.option("--set", "overrides", multiple=True, metavar="K=V", help="One setting of the selector; may repeat.")
@click.option("--feature", "features", multiple=True, metavar="NAME:DIMS[:DTYPE]", help="Feature of the caches, as maps:T,N,8.")
@click.option("--measurement", "measurements", multiple=True, metavar="NAME:DIMS[:DTYPE]", help="The same for a measurement.")
@click.option("--cache", type=PATH, help="Use the shortest videos of this tracks cache instead of random ones.")
@click.option("--text", type=PATH, help="Its text cache.  [default: next to it]")
def check_selector(
    name: str,
    overrides: tuple[str, ...],
    features: tuple[str, ...],
    measurements: tuple[str, ...],
    cache: Path | None,
    text: Path | None,
) -> None:
    """Run the contract tests on the selector NAME, your own my_module:MySelector or a built-in one.

    It runs on small random caches. One line per test: ok, FAILED with the reason, or skipped; exit status 1 if any test failed.
    """
    from rvos_cache.settings import parse_overrides
    from rvos_select.contracts import SelectorCase, parse_spec, run_selector_checks
    from rvos_select.data.texts import find_text

    texts = text or (find_text(cache) if cache else None)
    feature_specs, measurement_specs = ([parse_spec(spec) for spec in given] for given in (features, measurements))
    case = SelectorCase(name, parse_overrides(overrides), feature_specs, measurement_specs, cache, texts)
    echo_results(f"selector {name}", run_selector_checks(case))


COMMANDS: tuple[click.Command, ...] = (settings, check_selector)
