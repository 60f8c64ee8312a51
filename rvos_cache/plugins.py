"""Names to classes: trackers, datasets, text encoders and selectors, built in or written by the user."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rvos_cache.errors import InputError

PACKAGE = Path(__file__).parent
INSTALLED = ("site-packages", "dist-packages")
"""Folders of installed packages."""


def resolve(table: Mapping[str, str], name: str, kind: str, base: type | None = None) -> Any:
    """The class that `table` lists under `name`, or the user's own class "my_module:MyClass", imported now.

    A module of the user's own may lie in the current folder. base: the class that it must be a subclass of.
    Raises InputError if the table has no such name, the import fails, or the class is not a subclass of `base`.
    """
    target = table.get(name, name if ":" in name else None)
    if target is None:
        raise InputError(f"no {kind} {name!r}; there are: {', '.join(sorted(table))}, or your own as my_module:MyClass")
    title = f"{kind} {name}"
    plugin = _import(target, title, is_custom=name not in table)
    if base is not None and not (isinstance(plugin, type) and issubclass(plugin, base)):
        public = f"{base.__module__.split('.')[0]}.{base.__name__}"
        fix = f"write class {target.partition(':')[2]}({base.__name__})"
        raise InputError(f"{title}: is not a subclass of {public}; {fix}")
    return plugin


def resolve_function(table: Mapping[str, str], name: str, kind: str, arguments: Sequence[str]) -> Callable[..., Any]:
    """The function that `table` lists under `name`, or the user's own "my_module:my_function", as `resolve`.

    Raises InputError if it cannot be called with `arguments` by position; the function that is returned raises it for any
    exception of a function of the user's own.
    """
    function, title = resolve(table, name, kind), f"{kind} {name}"
    expected = f"expected a function of ({', '.join(arguments)})"
    if not callable(function):
        raise InputError(f"{title}: is {type_text(function)}, {expected}")
    try:
        inspect.signature(function).bind(*arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"{title}: {expected} ({error})") from error

    def call(*values: Any) -> Any:
        with reporting(title, "failed", is_custom=name not in table):
            return function(*values)

    return call


def _import(target: str, title: str, is_custom: bool) -> Any:
    module_name, _, attribute = target.partition(":")
    if not attribute or not all(part.isidentifier() for part in module_name.split(".")):
        raise InputError(f"{title}: expected my_module:MyClass, the name of a module and not of its file")
    if is_custom:
        _add_current_folder()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        own = f"{module_name}.".startswith(f"{missing}.")
        fix = f"; it must lie in the current folder ({os.getcwd()}) or be installed" if own else ""
        raise InputError(f"{title}: {target} cannot be imported (no module named {missing!r}){fix}") from error
    except InputError:
        raise
    except Exception as error:
        # An error in the user's module is not a bug of the program: one line with its file and line number.
        raise InputError(f"{title}: {target} cannot be imported ({describe_error(error)})") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        file = getattr(module, "__file__", None) or module_name
        raise InputError(f"{title}: {target} cannot be imported ({file} has no {attribute!r})") from error


def code_digest(plugin: object, is_custom: bool) -> dict[str, str]:
    """{"code": digest of the file of a class of the user's own}, for a card: other code gives another cache. Else empty."""
    file = inspect.getsourcefile(plugin) if is_custom and isinstance(plugin, type) else None
    return {} if file is None else {"code": hashlib.sha256(Path(file).read_bytes()).hexdigest()[:32]}


def _add_current_folder() -> None:
    """Let modules of the current folder be imported, after all installed ones, here and in forked processes."""
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)
        importlib.invalidate_caches()


def describe_error(error: BaseException) -> str:
    """An exception as one line: its type, message, file and line; of its frames the last one in the user's own code, if any."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if not f.filename.startswith("<") and not set(INSTALLED) & set(Path(f.filename).parts)]
    own = [f for f in outside if PACKAGE not in Path(f.filename).parents]
    position = next((f" ({part[-1].filename}:{part[-1].lineno})" for part in (own, outside, frames) if part), "")
    return f"{type(error).__name__}: {' '.join(str(error).split())}{position}"


@contextmanager
def reporting(title: str, action: str, is_custom: bool) -> Iterator[None]:
    """Turn any exception of a class of the user's own (`is_custom`) into a one-line InputError: title, action, exception."""
    try:
        yield
    except (InputError, OSError):
        raise
    except Exception as error:
        if not is_custom:
            raise
        raise InputError(f"{title}: {action}: {describe_error(error)}") from error


def check_settings_model(cls: type, base: type[BaseModel], title: str) -> None:
    """Raises InputError if `cls.Settings` is not a subclass of `base`."""
    model = getattr(cls, "Settings", None)
    if not (isinstance(model, type) and issubclass(model, base)):
        raise InputError(
            f"{title}: Settings is {type_text(model)}, expected a settings model; write class Settings(rvos_cache.Settings) with "
            "one typed field per setting"
        )


def check_overridden(cls: type, base: type, methods: Sequence[str], title: str) -> None:
    """Raises InputError if `cls` does not define one of `methods` of `base` itself."""
    for method in methods:
        if getattr(cls, method, None) is getattr(base, method, None):
            raise InputError(f"{title}: has no {method}; write def {signature_text(base, method)}")


def check_signatures(cls: type, base: type, methods: Sequence[str], title: str) -> None:
    """Raises InputError if one of `methods` of `cls` cannot be called like the one of `base`."""
    for method in methods:
        check_signature(cls, method, _arguments(base, method), title)


def check_signature(cls: type, method: str, arguments: Sequence[str], title: str) -> None:
    """Raises InputError if `method` of `cls` cannot be called with `arguments` by position."""
    function = inspect.getattr_static(cls, method)
    if isinstance(function, property):
        return
    if not callable(function) and not isinstance(function, staticmethod | classmethod):
        raise InputError(f"{title}: {method} is a {type(function).__name__}, expected a method")
    bound = () if isinstance(function, staticmethod) else (None,)
    called = function.__func__ if isinstance(function, staticmethod | classmethod) else function
    try:
        signature = inspect.signature(called)
        signature.bind(*bound, *arguments)
    except (TypeError, ValueError) as error:
        expected = ", ".join(["self"] * bool(bound) + list(arguments))
        own = str(signature).split(" ->")[0]
        raise InputError(f"{title}: {method}{own} cannot be called as {method}({expected}): {error}") from error


def check_channels(owner: Any, title: str, complete: bool, least: int = 1) -> None:
    """Raises InputError if `owner.channels` is no int of at least `least`.

    complete: `owner` is an instance, or its class sets it all.
    """
    channels = getattr(owner, "channels", None)
    if channels is None and complete:
        raise InputError(f"{title}: has no channels; set it to the length of its vectors, in the class or in __init__")
    is_property = not complete and isinstance(channels, property)
    if channels is not None and not is_property and (type(channels) is not int or channels < least):
        raise InputError(f"{title}: channels is {channels!r}, expected an int of at least {least}")


def checked_weights(owner: Any, title: str, is_custom: bool) -> dict[str, str]:
    """`owner.weight_hashes()` of a tracker or a text encoder. Raises InputError if it is not a dict of text to text."""
    with reporting(title, "weight_hashes() failed", is_custom):
        hashes = owner.weight_hashes()
    if not isinstance(hashes, dict) or not all(isinstance(text, str) for pair in hashes.items() for text in pair):
        raise InputError(f"{title}: weight_hashes() returned {hashes!r:.80}, expected a dict of name to digest, both text")
    return hashes


def signature_text(base: type, method: str) -> str:
    """`method` of `base` as a call with its arguments: "track(self, video, expressions)"."""
    static = isinstance(inspect.getattr_static(base, method), staticmethod)
    return f"{method}({', '.join(['self'] * (not static) + _arguments(base, method))})"


def _arguments(base: type, method: str) -> list[str]:
    member = inspect.getattr_static(base, method)
    function = member.__func__ if isinstance(member, staticmethod | classmethod) else member
    if isinstance(member, property):
        return []
    names = list(inspect.signature(function).parameters)
    return names if isinstance(member, staticmethod) else names[1:]


def type_text(value: object) -> str:
    """What `value` is, for messages: "None", a class by its name, or "a <type>"."""
    return value.__name__ if isinstance(value, type) else "None" if value is None else f"a {type(value).__name__}"
