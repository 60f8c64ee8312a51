"""Settings: a pydantic model has the schema and the defaults, a TOML file the values, `--set name=value` overrides them."""

from __future__ import annotations

import re
import textwrap
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ByteSize, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from rvos_cache.errors import InputError
from rvos_cache.system.text_files import read_text


class Settings(BaseModel):
    """Base class of all settings models: frozen, and an unknown name is an error.

    The docstring below a field is its meaning. It may end with a sentence "Source: <paper and section, or file>."
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _plain_folders(cls, values: Any) -> Any:
        """A folder that a shell completed with a slash is recorded without it: it is the same checkpoint."""
        if not isinstance(values, Mapping):
            return values
        return {name: plain_folder(name, value) for name, value in values.items()}


def plain_folder(name: str, value: Any) -> Any:
    """`value` of the setting `name`: where it names a checkpoint, without slashes at its end."""
    is_folder = isinstance(value, str) and name.endswith("checkpoint")
    return value.rstrip("/") or value if is_folder else value


S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True)
class SettingInfo:
    """One setting as text. name: with dots if nested; default: "" if the setting is required; source: of its default."""

    name: str
    type: str
    default: str
    meaning: str
    source: str


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """`["optim.lr=1e-4", "name=x"]` as a nested dict; a value is parsed as TOML, and is text if it is not TOML.

    Raises InputError for a pair without '='.
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        name, equals, raw = pair.partition("=")
        if not equals or not name.strip():
            raise InputError(f"--set wants name=value, got {pair!r}")
        try:
            value = tomllib.loads(f"value = {raw}")["value"]
        except (ValueError, RecursionError):
            # Not TOML, or a number of more digits than Python reads.
            value = raw
        level = out
        *parents, last = name.strip().split(".")
        for parent in parents:
            level = level.setdefault(parent, {})
            if not isinstance(level, dict):
                raise InputError(f"--set {pair!r}: {parent!r} was given a value before; it cannot also have settings below it")
        level[last] = value
    return out


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dict. Raises InputError if it cannot be read."""
    try:
        return tomllib.loads(read_text(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a TOML file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable TOML file ({error})") from error


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `overrides`, level by level; an empty mapping replaces the whole level, as `optim.rates={}`."""
    out = dict(base)
    for name, value in overrides.items():
        current = out.get(name)
        if isinstance(current, Mapping) and isinstance(value, Mapping) and value:
            value = merge(current, value)
        out[name] = value
    return out


def build(model: type[S], values: Mapping[str, Any], location: str, given: Sequence[str] = ()) -> S:
    """The settings `model` from plain values.

    given: those of `values` that come from `--set`, as "name=value". Raises InputError for the first bad value, a line that starts with
    `location`, or with the `--set` that gave the value.
    """
    for name, value in _large_integers(values):
        raise InputError(f"{_origin(name, location, given)}: setting {name!r}: expected a number below 2^63; got {value!r:.80}")
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        location = _origin(name, location, given)
        if first["type"] == "extra_forbidden":
            raise InputError(f"{location}: no setting {name!r}; there are: {', '.join(names(model)) or 'none'}") from error
        if first["type"] == "missing":
            raise InputError(f"{location}: setting {name!r} is required; give --set {name}=...") from error
        if not name:
            # Of several settings together: the model's own validator says which.
            raise InputError(f"{location}: {first['msg'].removeprefix('Value error, ')}") from error
        raise InputError(f"{location}: setting {name!r}: {first['msg']}; got {first.get('input')!r:.80}") from error


def _origin(name: str, location: str, given: Sequence[str]) -> str:
    """What gave the setting `name`: the last `--set` of it in `given`, or `location`."""
    pairs = [pair for pair in given if name and f"{name}.".startswith(f"{pair.partition('=')[0].strip()}.")]
    return f"--set {pairs[-1]}" if pairs else location


def _large_integers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Names and values of integers that have no 64 bits, as those of TOML have: what they are passed to overflows."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _large_integers(entry, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _large_integers(entry, name)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield name, value


def names(model: type[BaseModel]) -> list[str]:
    """Every setting of `model`, nested ones with dots."""
    return [info.name for info in describe(model)]


def describe(model: type[BaseModel]) -> list[SettingInfo]:
    """Every setting of `model` in the order of its fields, nested ones with dots."""
    out: list[SettingInfo] = []
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            out += [SettingInfo(f"{name}.{i.name}", i.type, i.default, i.meaning, i.source) for i in describe(nested)]
        else:
            meaning, source = _split_source(field.description or "")
            out.append(SettingInfo(name, _type_text(field.annotation, field.metadata), _default_text(field), meaning, source))
    return out


def format_settings(title: str, settings: Iterable[SettingInfo], width: int = 110) -> str:
    """Settings as text under `title`: a line of name, type and default for each, with meaning and source below it."""
    rows = list(settings)
    if not rows:
        return f"{title}: no settings"
    longest_name = max(len(row.name) for row in rows)
    longest_type = max((len(row.type) for row in rows if len(row.type) <= 40), default=0)
    lines = [f"{title}: --set NAME=VALUE"]
    for row in rows:
        default = f"default {row.default}" if row.default else "required"
        lines += ["", f"  {row.name:<{longest_name}}  {row.type:<{longest_type}}  {default}"]
        for text in (row.meaning, row.source and f"Source: {row.source}"):
            lines += textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def _split_source(docstring: str) -> tuple[str, str]:
    """Meaning and source of a setting, each on one line."""
    text = " ".join(docstring.split())
    match = re.fullmatch(r"(.*?)\s*\bSource: (.*?)\.?", text)
    return (match[1], match[2]) if match else (text, "")


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    default = field.get_default(call_default_factory=True)
    if isinstance(default, ByteSize):
        return default.human_readable()
    return _value_text(default)


def _value_text(value: object) -> str:
    """A value as TOML writes it, so that it can be given to --set."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _type_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = arguments[1:]
        constraints = [m for part in inner for m in (part.metadata if isinstance(part, FieldInfo) else [part])]
        return _type_text(arguments[0], constraints)
    if origin is Literal:
        text = " | ".join(map(_value_text, arguments))
    elif origin in (Union, types.UnionType):
        text = " | ".join(map(_type_text, arguments))
    elif annotation is type(None):
        text = "none"
    elif origin is not None:
        parts = ", ".join("..." if part is Ellipsis else _type_text(part) for part in arguments)
        text = f"{getattr(origin, '__name__', origin)}[{parts}]"
    elif annotation is ByteSize:
        text = 'size ("8GB")'
    else:
        text = getattr(annotation, "__name__", str(annotation)).replace("str", "text")
    limits = [_limit_text(limit) for limit in metadata]
    return " ".join([text, ", ".join(filter(None, limits))]).strip()


def _limit_text(limit: object) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "multiple of", "min_length": "length >="}
    return ", ".join(f"{sign} {getattr(limit, name)}" for name, sign in signs.items() if getattr(limit, name, None) is not None)


def square_or_short_side(values: Any) -> Any:
    """Settings as given, of frames that have one size: with `square` the default of `short_side` is 0 (off).

    For a validator that runs before the fields are read. Raises ValueError where both are given.
    """
    if not isinstance(values, Mapping) or not values.get("square"):
        return values
    if values.get("short_side"):
        raise ValueError("square and short_side are given, and a frame has one size; give one of them")
    return {**values, "short_side": 0}
