"""The names of tensors in two libraries, as templates of names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class TensorNames:
    """Names of released tensors and of the tensors that they become.

    table: template of a released name -> templates of the names of its parts, in order: {"norm.{i}.{p}": ("layers.{i}.norm.{p}",)};
    a tensor of several parts is cut along its first axis. fields: name of a field -> regular expression of its values.
    """

    table: Mapping[str, tuple[str, ...]]
    fields: Mapping[str, str]

    def parts(self, released: str) -> tuple[str, ...]:
        """The names that the tensor `released` becomes; () for one that is not in the table."""
        for pattern, (_, targets) in self._by_source:
            match = pattern.fullmatch(released)
            if match:
                return tuple(target.format(**match.groupdict()) for target in targets)
        return ()

    def released(self, part: str) -> str | None:
        """The released name of the tensor that contains the tensor `part`; None for one that is not in the table."""
        for pattern, (source, _) in self._by_target:
            match = pattern.fullmatch(part)
            if match:
                return source.format(**match.groupdict())
        return None

    @cached_property
    def _by_source(self) -> list[tuple[re.Pattern[str], tuple[str, tuple[str, ...]]]]:
        return [(self._pattern(source), (source, targets)) for source, targets in self.table.items()]

    @cached_property
    def _by_target(self) -> list[tuple[re.Pattern[str], tuple[str, tuple[str, ...]]]]:
        return [(self._pattern(t), (source, targets)) for source, targets in self.table.items() for t in targets]

    def _pattern(self, template: str) -> re.Pattern[str]:
        """Matches the names of `template`, with a named group for each field."""
        pattern = re.escape(template)
        for field, values in self.fields.items():
            pattern = pattern.replace(re.escape(f"{{{field}}}"), f"(?P<{field}>{values})")
        return re.compile(pattern)
