"""Where a run's weights start: those of a checkpoint that agree with the module's in name and shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rvos_cache.errors import InputError
from rvos_cache.store import digest
from rvos_cache.system.files import write_json
from rvos_cache.tensors import read_tensors
from rvos_select.selectors import Selector
from rvos_select.selectors.base import WEIGHTS

START = "start.json"
"""File of a run that lists which tensors a checkpoint filled."""
FIX = "give init a run's folder, or a checkpoint of tensors (.safetensors, .pth)"


@dataclass(frozen=True)
class Start:
    """What a checkpoint gave to a module. filled, not_filled: tensors of the module; other_shape: those of `not_filled` that the
    checkpoint has in another shape; unread: tensors of the checkpoint; parameters: numbers that were filled, and all."""

    checkpoint: str
    digest: str
    filled: tuple[str, ...]
    not_filled: tuple[str, ...]
    other_shape: tuple[str, ...]
    unread: tuple[str, ...]
    parameters: tuple[int, int]

    def lines(self) -> list[str]:
        """What a run prints of it."""
        tensors = len(self.filled) + len(self.not_filled)
        share = f"{self.parameters[0] / 1e6:.1f} of {self.parameters[1] / 1e6:.1f} million numbers"
        out = [f"start: {len(self.filled)} of {tensors} tensors ({share}) from {self.checkpoint}"]
        if self.not_filled:
            out.append(f"start: random are {by_part(self.not_filled)}")
        if self.other_shape:
            out.append(f"start: of another shape in the checkpoint are {by_part(self.other_shape)}")
        if self.unread:
            out.append(f"start: {len(self.unread)} of its tensors are not read; {START} lists them all")
        return out


def by_part(names: Iterable[str]) -> str:
    """Tensors counted by the first part of their names: "video 178, adapters 80"."""
    return ", ".join(f"{part} {count}" for part, count in Counter(name.partition(".")[0] for name in names).most_common())


def start_from(selector: Selector, init: str) -> Start:
    """Copy into the module the tensors of `init` that agree with its own in name and shape.

    init: a run's folder, a folder of `save_pretrained`, or a file of tensors, in the module's names or in released ones
    (`Selector.named_as_here`). Raises InputError when it cannot be read, or nothing in it agrees.
    """
    path = _file(Path(init))
    read = read_tensors(path, FIX, nested="model")
    given = selector.named_as_here(read)
    own = selector.state_dict()
    same = {name: tensor for name, tensor in given.items() if name in own and own[name].shape == tensor.shape}
    if not same:
        first = ", ".join(list(read)[:3])
        raise InputError(f"{path}: none of its {len(read)} tensors ({first}) agrees with {type(selector).__name__}'s; {FIX}")
    selector.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in same.items()}, strict=False)
    not_filled = tuple(sorted(own.keys() - same.keys()))
    unread = tuple(sorted(given.keys() - same.keys()))
    counts = (sum(t.numel() for t in same.values()), sum(t.numel() for t in own.values()))
    other_shape = tuple(name for name in not_filled if name in given)
    return Start(str(path), digest(path.read_bytes()), tuple(sorted(same)), not_filled, other_shape, unread, counts)


def write_start(out: Path, start: Start) -> None:
    """Write what the run `out` started from."""
    write_json(out / START, vars(start))


def _file(path: Path) -> Path:
    """The file of tensors of a run, of a folder of `save_pretrained`, or `path` itself."""
    if not path.is_dir():
        return path
    for candidate in (path / "best" / WEIGHTS, path / WEIGHTS):
        if candidate.is_file():
            return candidate
    raise InputError(f"{path}: expected a run, or a folder with {WEIGHTS}; {FIX}")
