"""A run's folder on disk: settings, a resumable state, the best module. Tensors are safetensors, the rest is JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from rvos_cache.errors import InputError
from rvos_cache.store import Card, SelectionCache, digest
from rvos_cache.system import files
from rvos_cache.system.files import set_aside, write_json
from rvos_cache.system.text_files import read_text
from rvos_cache.tensors import read_tensors
from rvos_select.paths import PathLike
from rvos_select.selectors import Selector, selector_class
from rvos_select.selectors.base import CONFIG, WEIGHTS

SETTINGS = "settings.json"
TUNING, UPSTREAM = "tune.json", "referdino.json"
"""Files of folders that are taken for a run: that of `rvos-cache tune-referdino`, and a checkpoint of stage one."""
UPSTREAM_FOLDER = "upstream"
"""Folder of a run of `import-referdino`, which its tracker reads as `checkpoint`."""


RESUME = "make room, then run the same command with --resume: the last complete checkpoint is not changed"
RESTART = "make room or choose a writable --out, then run the same command again"
"""What to do where a file of a run cannot be written: in training, and in an import, which writes all or nothing."""


@contextmanager
def storing(path: Path, how_to_fix: str = RESUME) -> Iterator[None]:
    """What is written below `path`. Raises InputError, naming the file, when the disk refuses."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors has an error of its own, and names no file.
        file, message = (error.filename, error.strerror) if isinstance(error, OSError) else (None, str(error))
        raise InputError(f"{file or path}: cannot be written ({message or type(error).__name__}); {how_to_fix}") from error


def read_json(path: Path, what: str) -> Any:
    """A JSON file of a run. Raises InputError when it is missing or damaged."""
    try:
        return json.loads(read_text(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found; {what}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error}); {what}") from error


def replace_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Replace the folder `target` by what `fill(folder)` writes, as `rvos_cache.system.files.replace_folder`.

    Raises InputError, with `target` as it was, when the disk refuses.
    """
    with storing(target), files.replace_folder(target) as folder:
        fill(folder)


def save_state(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """`<run>/last`: weights, optimiser tensors and `state`, replaced as a whole."""

    def fill(folder: Path) -> None:
        save_file({name: value.clone().contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
        tensors = {}
        for index, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                tensors[f"{index}.{name}"] = torch.as_tensor(value).contiguous()
        save_file(tensors, folder / "optimizer.safetensors")
        write_json(folder / "state.json", dict(state))

    replace_folder(run / "last", fill)


def load_state(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put back what `save_state` wrote and return its `state`. Raises InputError when it is missing or damaged."""
    folder = run / "last"
    state: dict[str, Any] = read_json(folder / "state.json", "nothing to resume; train without --resume")
    how_to_fix = "train again into another --out"
    weights = read_tensors(folder / "model.safetensors", how_to_fix)
    stored = read_tensors(folder / "optimizer.safetensors", how_to_fix)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{folder}: the checkpoint does not load ({first}); {how_to_fix}") from error
    by_parameter: dict[int, dict[str, Tensor]] = {}
    for name, value in stored.items():
        index, _, key = name.partition(".")
        by_parameter.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": by_parameter, "param_groups": groups})
    return state


def run_settings(run: PathLike) -> dict[str, Any]:
    """`<run>/settings.json`: resolved settings, cards, versions. Raises InputError where there is no run, with what to give."""
    run = Path(run)
    if not run.is_dir():
        raise InputError(f"{run}: no run here; rvos-select train makes one")
    if not (run / SETTINGS).exists():
        # What makes a run of ReferDINO, and what is in it.
        if (run / TUNING).is_file():
            raise InputError(f"{run}: a run of rvos-cache tune-referdino; first rvos-select import-referdino {run} --out RUN")
        if (run / UPSTREAM).is_file():
            around = run.parent if run.name else run.absolute().parent
            is_run = (around / SETTINGS).is_file()
            give = around if is_run else "the run of rvos-select import-referdino, whose folder has it"
            raise InputError(f"{run}: a checkpoint of stage one; give {give}")
    settings: dict[str, Any] = read_json(run / SETTINGS, "not a training run; rvos-select train makes one")
    return settings


def run_cards(run: PathLike) -> dict[str, Card]:
    """The cards ("tracks", "text") of the first caches that a run was trained on; of an imported run, see `_with_own_upstream`."""
    settings = run_settings(run)
    cards = settings["cards"]
    tracks, text = (Card.model_validate(cards[kind][0]) for kind in ("tracks", "text"))
    return {"tracks": _with_own_upstream(Path(run), settings, tracks), "text": text}


def trained_cards(run: PathLike) -> list[Card]:
    """The cards of all tracks caches that a run was trained on and validated with."""
    settings = run_settings(run)
    cards = map(Card.model_validate, (*settings["cards"]["tracks"], *settings["cards"].get("valid_tracks", ())))
    return [_with_own_upstream(Path(run), settings, card) for card in cards]


def _with_own_upstream(run: Path, settings: Mapping[str, Any], card: Card) -> Card:
    """The card of an imported run's tracks with the upstream that is in the run, wherever that has been moved or copied to; without
    one, as recorded."""
    own = run.absolute() / UPSTREAM_FOLDER
    if "imported" not in settings or "checkpoint" not in card.settings or not own.is_dir():
        return card
    return card.model_copy(update={"settings": {**card.settings, "checkpoint": str(own)}})


def run_weights(run: PathLike) -> dict[str, str]:
    """{"best": digest of the best module}: what tells a run from every other, whatever its folder is called.

    Raises InputError when there is no best module.
    """
    path = best_folder(Path(run)) / WEIGHTS
    try:
        return {"best": digest(path.read_bytes())}
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); the run has not finished an epoch: train --resume"
        ) from error


def check_made_by(run: PathLike, selections: SelectionCache) -> None:
    """Raises InputError unless the selections were made by the best module of `run`."""
    card, weights = selections.card, run_weights(run)
    if card.weights != weights:
        origin = f"the run that was in {card.run}" if card.run else card.producer
        at = " before it was trained further" if card.run == str(Path(run).absolute()) else ""
        raise InputError(
            f"{selections.path}: made by {origin}{at} ({card.weights.get('best', 'no weights')}), not by the best module of {run} "
            f"({weights['best']}); give its --run, or predict again"
        )


def origin_of(run: PathLike) -> str:
    """The data that a run was trained on, for people: "trained on mevis train, train-mirror in data/mevis; …"."""
    settings = run_settings(run)
    splits: dict[tuple[str, str], list[str]] = {}
    for card in map(Card.model_validate, settings["cards"]["tracks"]):
        names = splits.setdefault((card.dataset, card.root), [])
        if card.split not in names:
            names.append(card.split)
    data = "; ".join(f"{dataset} {', '.join(names)}{f' in {root}' if root else ''}" for (dataset, root), names in splits.items())
    return f"{training_word(settings)} on {data}"


def training_word(settings: Mapping[str, Any]) -> str:
    """How the run with these `run_settings` came about: "tuned" with its upstream by `rvos-cache tune-referdino`, else "trained"."""
    return "tuned" if settings.get("imported", {}).get("tuned") else "trained"


def best_folder(run: Path) -> Path:
    """The folder of the best module. A training that is killed while it replaces `<run>/best` leaves the earlier one next to it.

    Raises InputError when there is none.
    """
    best = run / "best"
    for folder in (best, set_aside(best), best):
        if folder.is_dir():
            return folder
    raise InputError(f"{best}: not found; the run has not finished an epoch: train --resume")


def load_selector(run: PathLike) -> Selector:
    """The best module of a run, in eval mode; its frozen parts are loaded by `bind`, and must be those of the run.

    `weights_digest` is the digest of the file that was loaded, also while a training replaces it. Nothing in the run is changed.
    Raises InputError when the module is missing or damaged.
    """
    run = Path(run)
    settings = run_settings(run)
    while True:
        folder = best_folder(run)
        stamp = _stamp(folder)
        try:
            read_json(folder / CONFIG, "the checkpoint is not whole: train again into another --out")
            selector = selector_class(settings["settings"]["selector"]).from_pretrained(str(folder))
            selector.weights_digest = digest((folder / WEIGHTS).read_bytes())
        except Exception:
            if _stamp(best_folder(run)) == stamp:
                raise
            continue
        # Otherwise a training has replaced the folder in the meantime.
        if _stamp(best_folder(run)) == stamp:
            break
    selector.recorded_digests = settings.get("frozen", {})
    return selector.eval()


def _stamp(folder: Path) -> tuple[int, int] | None:
    """What tells the file of the weights in `folder` from one that replaces it; None where it is missing."""
    try:
        stat = (folder / WEIGHTS).stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns
