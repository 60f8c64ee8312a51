"""BEiT-3's tokens: the pieces of SentencePiece in XLM-R's numbering, computed by transformers' tokenizer.

The package sentencepiece is not needed: its model file is read with the message classes that transformers has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError

START, PAD, END, UNKNOWN = 0, 1, 2, 3
"""Ids of XLM-R's numbering before those of the pieces; `<mask>` has the last one."""
# With a blank, which no piece of a sentence contains, so that a sentence with "<s>" in it is text, as for SentencePiece.
SPECIAL = ("<s> ", "<pad> ", "</s> ", "<unk> ")
MASK = "<mask> "
UNIGRAM, NORMAL, CONTROL = 1, 1, 3
"""Numbers in SentencePiece's format: the model of pieces with scores; pieces that are text, and those that no text contains."""
GIVE = "give beit3.spm of the released BEiT-3"


class Beit3Tokenizer:
    """Sentences to ids and character ranges. Ids are SentencePiece's, but for a few odd characters (marks on marks, U+0085)."""

    def __init__(self, tokenizer: Any) -> None:
        """tokenizer: the fast tokenizer of transformers that `from_spm` makes."""
        self._tokenizer: Any = tokenizer.backend_tokenizer
        # Special tokens in a sentence are text.
        self._tokenizer.encode_special_tokens = True

    @classmethod
    def from_spm(cls, path: Path | str) -> Beit3Tokenizer:
        """Read a model file of SentencePiece. Raises InputError if it is none, or not one like `beit3.spm`."""
        from transformers import XLMRobertaTokenizer

        model = _read_model(Path(path))
        # Pieces 0 to 2 are <unk>, <s> and </s>, which have other numbers here.
        pieces = [(p.piece if p.type == NORMAL else f"{p.piece} ", p.score) for p in model.pieces[3:]]
        vocabulary = [*((name, 0.0) for name in SPECIAL), *pieces, (MASK, 0.0)]
        start, pad, end, unknown = SPECIAL
        tokenizer = XLMRobertaTokenizer(
            vocab=vocabulary, _spm_precompiled_charsmap=model.normalizer_spec.precompiled_charsmap or None, bos_token=start,
            cls_token=start, pad_token=pad, eos_token=end, sep_token=end, unk_token=unknown, mask_token=MASK,
        )  # fmt: skip
        return cls(tokenizer)

    @classmethod
    def load(cls, path: Path | str) -> Beit3Tokenizer:
        """Read what `save` wrote. Raises InputError if it cannot be read or is another tokenizer."""
        from transformers import PreTrainedTokenizerFast

        how_to_fix = "convert again: rvos-cache convert-beit3 WEIGHTS.pth beit3.spm --out BEIT3"
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; {how_to_fix}")
        try:
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
        # The tokenizers library raises plain exceptions.
        except Exception as error:
            raise InputError(f"{path}: cannot be read as a tokenizer ({type(error).__name__}); {how_to_fix}") from error
        if tuple(map(tokenizer.backend_tokenizer.id_to_token, range(len(SPECIAL)))) != SPECIAL:
            raise InputError(f"{path}: not a tokenizer of BEiT-3; {how_to_fix}")
        return cls(tokenizer)

    def save(self, path: Path | str) -> None:
        """Write the tokenizer as `tokenizer.json`."""
        self._tokenizer.save(str(path))

    def __len__(self) -> int:
        """Number of ids."""
        size: int = self._tokenizer.get_vocab_size()
        return size

    def __call__(self, texts: Sequence[str], longest: int = 40) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """Return (ids, spans) of each sentence: int32 (L,) from START to END, L at most `longest`, and int32 (L, 2), the characters
        [start, end) of each token, (0, 0) for START and END.

        Of a longer sentence the first pieces are kept. Raises ValueError if `longest` has no room for a piece.
        """
        if longest < 3:
            raise ValueError(f"longest {longest}, expected 3 or more: START, a piece and END")
        out = []
        for text in texts:
            pieces = self._tokenizer.encode(text, add_special_tokens=False)
            ids = np.array([START, *pieces.ids[: longest - 2], END], np.int32)
            spans = np.zeros((len(ids), 2), np.int32)
            spans[1:-1] = np.array(pieces.offsets, np.int32).reshape(-1, 2)[: longest - 2]
            out.append((ids, spans))
        return out


def _read_model(path: Path) -> Any:
    """The message of a SentencePiece model file. Raises InputError."""
    from google.protobuf.message import DecodeError
    from transformers.utils import sentencepiece_model_pb2_new as messages

    if not path.is_file():
        raise InputError(f"{path}: no such file; {GIVE}")
    model = messages.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise InputError(f"{path}: not a model of SentencePiece; {GIVE}") from error
    first = [piece.piece for piece in model.pieces[:3]]
    if first != ["<unk>", "<s>", "</s>"] or model.trainer_spec.model_type != UNIGRAM:
        raise InputError(f"{path}: a unigram model whose first pieces are <unk>, <s>, </s> is expected, it has {first}; {GIVE}")
    other = next((piece.piece for piece in model.pieces[3:] if piece.type not in (NORMAL, CONTROL)), None)
    if other is not None:
        raise InputError(f"{path}: the piece {other!r} is neither text nor a control symbol; {GIVE}")
    normalizer = model.normalizer_spec
    if not (normalizer.add_dummy_prefix and normalizer.remove_extra_whitespaces and normalizer.escape_whitespaces):
        raise InputError(f"{path}: its blanks are not those of BEiT-3's model; {GIVE}")
    return model
