"""CLIP's tokenizer from open_clip's file of merges, a folder or the hub. No checkpoint of open_clip contains a vocabulary."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

from rvos_cache.errors import InputError
from rvos_cache.pretrained import load_processor

DEFAULT = "openai/clip-vit-large-patch14"
"""Hub name of a CLIP whose tokenizer is that of open_clip's models."""
FILE = "bpe_simple_vocab_16e6.txt.gz"
WHERE = (
    f"give --tokenizer {FILE}, which the wheel of open_clip_torch contains (pip download --no-deps open_clip_torch, then unzip it), "
    "or the folder or hub name of a CLIP of transformers"
)
BYTES, SPECIAL = 256, 2
"""Numbers of tokens of single bytes, of which there is one inside a word and one at its end, and of special tokens."""
START, END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(source: str, tokens: int, positions: int) -> Any:
    """Return the CLIPTokenizer of `source`: a file of merges (see FILE), or a folder or hub name of a CLIP.

    tokens: number of rows of the checkpoint's token embedding; positions: the maximum number of tokens of a sentence.
    Raises InputError if it cannot be read or has another number of tokens.
    """
    path = Path(source)
    try:
        tokenizer = _from_merges(path, tokens) if path.is_file() else _from_folder_or_hub(source)
    except InputError as error:
        raise InputError(f"tokenizer {source!r}: {error}; {WHERE}") from error
    if len(tokenizer) <= SPECIAL:
        raise InputError(
            f"tokenizer {source!r}: it has no words: it could not be fetched from the hub, or its folder has no vocabulary; {WHERE}"
        )
    expected = (tokens, tokens - 2, tokens - 1)
    if (len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id) != expected:
        raise InputError(
            f"tokenizer {source!r}: it has {len(tokenizer)} tokens, the first of a sentence is {tokenizer.bos_token_id} and the last "
            f"{tokenizer.eos_token_id}; expected {tokens}, {tokens - 2} and {tokens - 1} from the checkpoint; {WHERE}"
        )
    tokenizer.model_max_length = positions
    return tokenizer


def byte_characters() -> list[str]:
    """The characters that stand for the 256 bytes, in the order of their tokens. Source: OpenAI's `bytes_to_unicode` (GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = BYTES - len(printable)
    return [chr(byte) for byte in printable] + [chr(BYTES + i) for i in range(others)]


def _from_merges(path: Path, tokens: int) -> Any:
    from transformers import CLIPTokenizer

    count = tokens - 2 * BYTES - SPECIAL
    try:
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"not a gzip file of text ({error})") from error
    # The first line is a comment. The file has more merges than the models use.
    merges = [tuple(line.split()) for line in lines[1 : 1 + max(count, 0)]]
    if count < 0 or len(merges) < count or any(len(merge) != 2 for merge in merges):
        right = sum(len(merge) == 2 for merge in merges)
        raise InputError(f"expected {count} lines of two parts of words after the first, for {tokens} tokens; it has {right}")
    characters = byte_characters()
    names = [*characters, *(c + "</w>" for c in characters), *("".join(merge) for merge in merges), START, END]
    vocabulary = {name: i for i, name in enumerate(names)}
    missing = next((part for merge in merges for part in merge if part not in vocabulary), None)
    if missing is not None or len(vocabulary) < tokens:
        problem = f"a merge has {missing!r}, which no line before makes" if missing else "two merges make the same token"
        raise InputError(f"not a list of merges: {problem}")
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def _from_folder_or_hub(source: str) -> Any:
    from transformers import CLIPTokenizer

    if not Path(source).exists() and (source.startswith((".", "/", "~")) or Path(source).suffix in (".gz", ".txt", ".json")):
        raise InputError("there is no such file or folder")
    try:
        return load_processor(CLIPTokenizer, source, "tokenizer")
    except InputError as error:
        # Its own advice is about the setting of a text encoder.
        raise InputError(str(error.__cause__ or error).strip().splitlines()[0]) from error
