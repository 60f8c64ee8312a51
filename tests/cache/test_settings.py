"""Settings as users read them: `rvos-cache settings NAME`."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from click.testing import CliRunner
from pydantic import ByteSize, Field

from rvos_cache.cli import cli
from rvos_cache.errors import InputError
from rvos_cache.settings import SettingInfo, Settings, build, describe, format_settings, merge, parse_overrides
from rvos_cache.store import Card
from rvos_cache.text import TEXT_ENCODERS, encoder_class
from rvos_cache.trackers import TRACKERS, tracker_class


class Inner(Settings):
    rate: float = Field(1e-3, gt=0)
    """Step size. Source: SOLA, section 4.2."""


class Example(Settings):
    path: str
    """A folder."""
    every: Annotated[int, Field(ge=1)] | Literal["half"] = 4
    memory: ByteSize = ByteSize(8 << 30)
    names: tuple[str, ...] = ()
    """Two lines of
    text. Source: configs/default.yaml."""
    seed: int | None = None
    on: bool = True
    inner: Inner = Inner()


def test_settings_are_described() -> None:
    assert describe(Example) == [
        SettingInfo("path", "text", "", "A folder.", ""),
        SettingInfo("every", 'int >= 1 | "half"', "4", "", ""),
        SettingInfo("memory", 'size ("8GB")', "8.0GiB", "", ""),
        SettingInfo("names", "tuple[text, ...]", "()", "Two lines of text.", "configs/default.yaml"),
        SettingInfo("seed", "int | none", "none", "", ""),
        SettingInfo("on", "bool", "true", "", ""),
        SettingInfo("inner.rate", "float > 0", "0.001", "Step size.", "SOLA, section 4.2"),
    ]


def test_settings_are_printed() -> None:
    lines = format_settings("tracker x", describe(Example)).splitlines()
    assert lines[0] == "tracker x: --set NAME=VALUE"
    assert lines[2].split() == ["path", "text", "required"] and lines[3].strip() == "A folder."
    assert lines[-3].split() == ["inner.rate", "float", ">", "0", "default", "0.001"]
    assert lines[-1].strip() == "Source: SOLA, section 4.2"
    assert format_settings("tracker x", []) == "tracker x: no settings"


def test_a_required_setting_is_named() -> None:
    with pytest.raises(InputError, match="x: setting 'path' is required; give --set path=..."):
        build(Example, {}, "x")


@pytest.mark.parametrize("name", [*TRACKERS, *TEXT_ENCODERS])
def test_every_setting_of_built_in_parts_has_a_meaning(name: str) -> None:
    model = tracker_class(name).Settings if name in TRACKERS else encoder_class(name).Settings
    assert [info.name for info in describe(model) if not info.meaning] == []
    result = CliRunner().invoke(cli, ["settings", name])
    assert result.exit_code == 0 and all(info.name in result.output for info in describe(model))


def test_a_slash_behind_a_checkpoint_is_the_same_folder() -> None:
    """As a shell completes it."""

    class Models(Settings):
        checkpoint: str
        sam2_checkpoint: str = "x"
        name: str = ""

    built = build(Models, {"checkpoint": "weights/DVIS/", "sam2_checkpoint": "/", "name": "a/"}, "test")
    assert (built.checkpoint, built.sam2_checkpoint, built.name) == ("weights/DVIS", "/", "a/")
    # A cache of an older version has it as it was typed.
    old, new = (Card(kind="tracks", dataset="d", split="s", producer="p", settings={"checkpoint": c}) for c in ("w/", "w"))
    assert old.differences(new) == [] == new.differences(old)
    assert old.differences(new.model_copy(update={"settings": {"checkpoint": "v"}})) == ["settings.checkpoint"]


def test_settings_of_nothing() -> None:
    result = CliRunner().invoke(cli, ["settings", "nothing"])
    assert isinstance(result.exception, InputError) and "text encoders: beit3, clip, hashed, minilm, roberta" in str(
        result.exception
    )
    assert CliRunner().invoke(cli, ["settings", "bad_plugins:Sound"]).output == "tracker bad_plugins:Sound: no settings\n"
    assert CliRunner().invoke(cli, ["settings", "bad_plugins:TooFewWords"]).output.startswith("text encoder")


def test_an_empty_table_replaces_a_whole_level() -> None:
    base = {"optim": {"lr": 1.0, "rates": {"adapters": 0.1}}}
    assert merge(base, parse_overrides(["optim.rates={}"])) == {"optim": {"lr": 1.0, "rates": {}}}
    assert merge(base, parse_overrides(["optim.lr=2.0"])) == {"optim": {"lr": 2.0, "rates": {"adapters": 0.1}}}


def test_a_bad_value_is_blamed_on_what_gave_it() -> None:
    def fault(given: tuple[str, ...]) -> str:
        with pytest.raises(InputError) as error:
            build(Example, merge({"path": "x"}, parse_overrides(["inner.rate=-1", *given])), "page.toml", given)
        return str(error.value)

    assert fault(()).startswith("page.toml: setting 'inner.rate': ")
    assert fault(("path=y", "inner.rate=0", "inner.rate=-2")).startswith("--set inner.rate=-2: setting 'inner.rate': ")
    assert fault(("inner={rate=-3}",)).startswith("--set inner={rate=-3}: setting 'inner.rate': ")
    assert fault(("inner.rate=1", "nothing=1")).startswith("--set nothing=1: no setting 'nothing'; there are: ")
    assert fault((f"seed={2**63}",)).startswith(f"--set seed={2**63}: setting 'seed': expected a number below 2^63")
