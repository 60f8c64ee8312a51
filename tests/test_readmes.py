"""What the READMEs print can be typed: every command, option and setting exists, and a test or a bench runs each command."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
from bad_inputs import KINDS
from readme_commands import READMES, ROOT, RUN_BY, Printed, printed_commands

from pipelines.__main__ import pipelines as rows_cli
from rvos_cache.cli import cli as cache_cli
from rvos_cache.clip.pooling import PoolSettings
from rvos_cache.errors import InputError
from rvos_cache.settings import build, merge, parse_overrides, read_toml
from rvos_cache.text import TEXT_ENCODERS, encoder_class
from rvos_cache.trackers import TRACKERS, tracker_class
from rvos_select.cli import cli as select_cli
from rvos_select.selectors import selector_class
from rvos_select.training.train import TrainSettings

COMMANDS = [command for readme in READMES for command in printed_commands(readme)]
GROUPS = {"rvos-cache": cache_cli, "rvos-select": select_cli}


def parse(command: click.Command, name: str, arguments: list[str], partial: bool) -> tuple[str, click.Context | None]:
    """The full name of the command and what click makes of its arguments; nothing runs. Raises click's usage errors."""
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        name, first, arguments = f"{name} {arguments[0]}", arguments[0], arguments[1:]
        if first not in command.commands:
            raise click.UsageError(f"no command {name!r}; there are: {', '.join(sorted(command.commands))}")
        command = command.commands[first]
    try:
        return name, command.make_context(name, list(arguments))
    except click.exceptions.Exit:  # --help, --version
        return name, None
    except click.MissingParameter:
        if partial:
            return name, None
        raise


def module_command(module: str) -> click.Command | None:
    """The command that `python -m module` runs, or None where it takes no options."""
    commands = [value for value in vars(importlib.import_module(module)).values() if isinstance(value, click.Command)]
    own = [command for command in commands if command.callback and command.callback.__module__ == module]
    return own[0] if own else None


def check_settings(name: str, parameters: dict[str, Any]) -> None:
    """Settings that a command gives with --set exist and have legal values. Raises InputError."""
    overrides = parse_overrides(parameters.get("overrides") or ())
    if name == "rvos-select train":
        config = parameters["config"]
        base = read_toml(ROOT / config) if config is not None and (ROOT / config).is_file() else {}
        build(TrainSettings, merge(base, overrides), "train settings")
    elif name == "rvos-cache pool-clip":
        build(PoolSettings, overrides, "pool-clip")
    elif name in ("rvos-select predict", "rvos-select ask") and parameters["selector"]:
        build(selector_class(parameters["selector"]).Config, overrides, f"selector {parameters['selector']}")
    elif parameters.get("tracker") in TRACKERS:
        build(tracker_class(parameters["tracker"]).Settings, overrides, f"tracker {parameters['tracker']}")
    elif name == "rvos-cache extract-text" and (encoder := parameters["encoder"]) in TEXT_ENCODERS:
        build(encoder_class(encoder).Settings, overrides, f"text encoder {encoder}")
    if parameters.get("text_overrides"):
        encoder = parameters["encoder"]
        build(encoder_class(encoder).Settings, parse_overrides(parameters["text_overrides"]), f"text encoder {encoder}")


def check_make(arguments: list[str]) -> list[str]:
    """The targets of a make command, with their commands' options checked. Raises AssertionError, and click's errors."""
    variables = [word for word in arguments if "=" in word]
    targets = [word for word in arguments if "=" not in word]
    makefile = (ROOT / "Makefile").read_text()
    for variable in variables:
        name = variable.partition("=")[0]
        assert re.search(rf"^(export )?{name}\s*\??=|\$[({{]{name}[:)}}]", makefile, re.M), f"the Makefile reads no {name}"
    # As if the environment were built, so that what is printed is what the targets themselves run; without the MAKEFLAGS and
    # variables of the make that runs these tests.
    dry, clean = ["make", "-n", "-o", ".venv/installed", *arguments], {"PATH": os.environ["PATH"]}
    process = subprocess.run(dry, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=30, check=False)
    assert process.returncode == 0, process.stderr
    for line in process.stdout.replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        if words and words[0].endswith(("/rvos-cache", "/rvos-select", "/python")):
            check(Printed(ROOT / "Makefile", 0, tuple(words), False))
    return targets


def check(command: Printed) -> list[str]:
    """The names of what a printed command runs, as RUN_BY has them. Raises when a part of it does not exist."""
    arguments = command.arguments
    if command.program in GROUPS:
        name, context = parse(GROUPS[command.program], command.program, arguments, command.partial)
        if context is not None:
            check_settings(name, context.params)
        return [name]
    if command.program == "make":
        return [f"make {target}" for target in check_make(arguments)]
    if arguments[0] == "-m":
        module, arguments = arguments[1], arguments[2:]
        file = ROOT / module.replace(".", "/")
        assert file.is_dir() or file.with_suffix(".py").is_file(), f"no module {module}"
        if not module.startswith("pipelines"):
            return [f"python -m {module}"] if module.startswith(("rvos", "tests")) else []
        if module == "pipelines":
            return [parse(rows_cli, "python -m pipelines", arguments, command.partial)[0]]
        page = module_command(module)
        assert page is not None, f"{module} has no command"
        parse(page, module, arguments, command.partial)
        return [f"python -m {module}"]
    if arguments[0].endswith(".py"):
        script = ROOT / arguments[0]
        assert script.is_file(), f"no file {arguments[0]}"
        for option in arguments[1:]:
            assert not option.startswith("--") or f'"{option.partition("=")[0]}"' in script.read_text(), f"no option {option}"
        return [f"python {arguments[0]}"]
    return []


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_printed_command_can_be_typed(command: Printed) -> None:
    try:
        names = check(command)
    except (click.ClickException, InputError) as error:
        pytest.fail(f"{command}\n{error.format_message() if isinstance(error, click.ClickException) else error}")
    assert set(names) <= RUN_BY.keys(), f"{command}\nadd to RUN_BY of tests/readme_commands.py the test that runs it"


def command_names(group: click.Group, prefix: str) -> set[str]:
    """The full names of all commands of a group."""
    names: set[str] = set()
    for verb, command in group.commands.items():
        name = f"{prefix} {verb}"
        names |= command_names(command, name) if isinstance(command, click.Group) else {name}
    return names


PROGRAMS = command_names(cache_cli, "rvos-cache") | command_names(select_cli, "rvos-select")


def test_every_command_of_the_programs_is_run_by_a_test() -> None:
    assert RUN_BY.keys() >= PROGRAMS, "add to RUN_BY of tests/readme_commands.py the test that runs it"


@pytest.mark.parametrize("command", sorted(name for name in RUN_BY if name in PROGRAMS or not name.startswith("rvos-")))
def test_what_runs_a_command_names_it(command: str) -> None:
    file, _, function = RUN_BY[command].partition("::")
    path = (ROOT / "tests" / file).resolve()
    source = path.read_text("utf-8")
    if path.suffix != ".py":
        # test-all is test and more.
        assert {"make test": "test-all"}.get(command, command.split()[1]) in re.findall(r"[\w-]+", source)
        return
    tree = ast.parse(source)
    if function:
        assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    words |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    words |= {f"{n.module}.{a.name}" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module for a in n.names}
    last = {"make demo": "pipelines.sola_shapes", "make bench": "__main__"}.get(command, command.split()[-1])
    assert {last, Path(last).name} & words, f"{path.name} does not run {command!r}"


def test_the_commands_of_a_readme_are_read(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "Type `rvos-cache info\nC.zarr`, or `make`:\n\n```bash\n$ A=1 rvos-cache extract --split x \\\n    --out 'a b'  # why\n"
        "source .venv/bin/activate\n.venv/bin/rvos-select train ... --resume | tee log\n```\n\n```python\nmake this\n```\n"
    )
    commands = printed_commands(tmp_path / "README.md")
    assert [(c.line, c.program, c.arguments, c.partial) for c in commands] == [
        (1, "rvos-cache", ["info", "C.zarr"], True),
        (5, "rvos-cache", ["extract", "--split", "x", "--out", "a b"], False),
        (8, "rvos-select", ["train", "--resume"], True),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("rvos-cache infos C.zarr", "no command"),
        ("rvos-cache info C.zarr --jsn", "No such option"),
        ("rvos-cache info", "Missing"),
        ("rvos-cache extract --dataset mevis --root d --split s --out C.zarr --set nothing=1", "no setting 'nothing'"),
        ("rvos-cache extract --dataset mevis --root d --split s --out C.zarr --jobs 0", "Invalid value"),
        ("rvos-select train --cache C.zarr --set optim.rate=1", "no setting 'optim.rate'"),
        ("rvos-cache extract-text --dataset mevis --root d --split s --out T --set width=1", "no setting 'width'"),
        ("python -m pipelines.sola_shapes --video 3", "No such option"),
        ("python -m pipelines.nothing", "no module"),
        ("python tests/bench/sam2_bench.py --shape large", "no option"),
        ("make extrat", "extrat"),
        ("make extract TRACKR=flow", "reads no TRACKR"),
        ("make extract SPLIT=train SET=nothing=1", "no setting 'nothing'"),
    ],
)
def test_what_does_not_exist_is_found(words: str, message: str) -> None:
    with pytest.raises((click.ClickException, InputError, AssertionError)) as caught:
        check(Printed(ROOT / "README.md", 1, tuple(words.split()), False))
    error = caught.value
    assert message in (error.format_message() if isinstance(error, click.ClickException) else str(error))


def test_the_table_of_bad_inputs_names_tests_that_are_there() -> None:
    """`python -m tests.bad_inputs` counts them."""
    for files in KINDS.values():
        for file, names in files.items():
            source = (ROOT / "tests" / file).read_text("utf-8")
            assert not [name for name in names.split() if f"def test_{name}(" not in source], file
