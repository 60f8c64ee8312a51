"""Settings: a pydantic model holds the schema and defaults, a TOML file the values, `--set name=value` the exceptions."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rvos_cache.errors import InputError


class Settings(BaseModel):
    """Base of every settings model: frozen, and an unknown name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=BaseModel)


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """`["optim.lr=1e-4", "name=x"]` as a nested dict; values are read as TOML, and as text where they are not TOML.

    Raises InputError for a pair without '='.
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        name, equals, raw = pair.partition("=")
        if not equals or not name.strip():
            raise InputError(f"--set wants name=value, got {pair!r}")
        try:
            value = tomllib.loads(f"value = {raw}")["value"]
        except tomllib.TOMLDecodeError:
            value = raw
        at = out
        *parents, last = name.strip().split(".")
        for parent in parents:
            at = at.setdefault(parent, {})
            if not isinstance(at, dict):
                raise InputError(f"--set {pair!r}: {parent!r} was given a value before; it cannot also hold names")
        at[last] = value
    return out


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dict. Raises InputError when it cannot be read."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not a readable TOML file ({error})") from error


def merge(base: Mapping[str, Any], exceptions: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the names of `exceptions` replaced, level by level."""
    out = dict(base)
    for name, value in exceptions.items():
        held = out.get(name)
        out[name] = merge(held, value) if isinstance(held, Mapping) and isinstance(value, Mapping) else value
    return out


def build(model: type[S], values: Mapping[str, Any], where: str) -> S:
    """The settings `model` from plain values. Raises InputError with one line that lists what exists."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "(all)"
        if first["type"] == "extra_forbidden":
            raise InputError(f"{where}: no setting {name!r}; there are: {', '.join(names(model))}") from error
        raise InputError(f"{where}: setting {name!r}: {first['msg']}; got {first.get('input')!r}") from error


def names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every setting of `model`, nested ones with dots."""
    found: list[str] = []
    for name, info in model.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += names(inner, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found
