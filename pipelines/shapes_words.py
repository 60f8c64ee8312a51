"""The language of moving shapes for a small CLIP and a small BEiT-3: words, and static sentences that are true of an object."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rvos_cache.clip.vocabulary import END, START, byte_characters
from rvos_cache.shapes.language import NUMBERS, PHRASES
from rvos_cache.shapes.scene import COLOURS, RADII, SHAPES, Thing

END_OF_WORD = "</w>"
NOUNS = (*SHAPES, "object", "one", "shape", "thing")
SMALL, BIG = (RADII["small"] + 1.5, RADII["big"] - 1.5)
"""Pixels of the largest radius that is called small, and of the smallest that is called big; between them neither is said."""


@dataclass(frozen=True)
class Description:
    """What one frame shows of an object: colour, shape, and size (small, big or "")."""

    colour: str
    shape: str
    size: str

    @staticmethod
    def of(thing: Thing, scale: float) -> Description:
        """Of an object whose size in the frame is `scale` times its own."""
        radius = thing.radius * scale
        size = "small" if radius <= SMALL else "big" if radius >= BIG else ""
        return Description(thing.appearance.colour, thing.appearance.shape, size)


@dataclass(frozen=True)
class Claim:
    """A static sentence. colour, shape, size: what it says of the object, "" if nothing."""

    text: str
    colour: str
    shape: str
    size: str

    def truth(self, thing: Description) -> int:
        """1: it is true of the object; 0: it is not; -1: it says a size, and the object is neither small nor big."""
        if (self.colour and self.colour != thing.colour) or (self.shape and self.shape != thing.shape):
            return 0
        if self.size and not thing.size:
            return -1
        return int(not self.size or self.size == thing.size)


def describe(rng: np.random.Generator, thing: Description, size: float = 0.3) -> Claim:
    """Return a sentence that is true of the object, of its colour, its shape or both; with its size in a share `size` of them.

    Colours are learned long before shapes, so a shape is said twice as often.
    """
    says_colour, says_shape = ((True, False), (False, True), (False, True), (True, True), (True, True))[rng.integers(5)]
    size_word = thing.size if rng.random() < size else ""
    noun = thing.shape if says_shape else str(rng.choice(["object", "one"] if says_colour else NOUNS[-4:]))
    words = [size_word, thing.colour if says_colour else "", noun]
    if rng.random() < 0.3:
        words[-1] = plural(noun)
        words.insert(0, str(rng.choice(["the", "all", "all the", f"the {NUMBERS[rng.integers(2, 5)]}"])))
    else:
        words.insert(0, str(rng.choice(["the", "the", "a", ""])))
    text = " ".join(word for word in words if word)
    return Claim(text, thing.colour if says_colour else "", thing.shape if says_shape else "", size_word)


def caption(rng: np.random.Generator, things: Sequence[Description]) -> str:
    """Return a sentence that names all objects of a frame."""
    names = [f"a {thing.colour} {thing.shape}" for thing in (things[i] for i in rng.permutation(len(things)))]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def plural(noun: str) -> str:
    """Return the plural, as `rvos_cache.shapes.language` has it."""
    return noun + ("es" if noun.endswith("ss") else "s")


def phrases() -> Iterator[str]:
    """Yield every phrase of motion: what an object does, and objects do."""
    for wordings in PHRASES.values():
        for wording in wordings:
            yield from wording


def all_words() -> set[str]:
    """Return every word of the language, and its marks."""
    words = {word for text in (*phrases(), *NUMBERS, *COLOURS) for word in re.findall(r"[a-z]+|[^a-z\s]", text)}
    words |= {form for noun in NOUNS for form in (noun, plural(noun))}
    return words | {"the", "a", "all", "and", "everything", "small", "big"}


def make_tokenizer() -> Any:
    """Return a CLIPTokenizer whose merges are learned from the words of the language, so that each of them is one token.

    As in CLIP the 256 bytes come first, alone and at the end of a word, so that any text can be written; SOT and EOT are last.
    """
    from transformers import CLIPTokenizer

    words = all_words()
    letters, merges = byte_characters(), _merges(words)
    tokens = [
        *letters,
        *(letter + END_OF_WORD for letter in letters),
        *dict.fromkeys("".join(pair) for pair in merges),
        START,
        END,
    ]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)


def _merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Return the merges of byte-pair encoding until each word is one token; of equally frequent pairs the first in the alphabet.

    The trainer of `tokenizers` takes one of these pairs at random. Source: Sennrich et al., ACL 2016, section 3.2.
    """
    pieces = [[*word[:-1], word[-1] + END_OF_WORD] for word in sorted(words)]
    merges = []
    while counts := Counter(pair for word in pieces for pair in zip(word, word[1:])):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for word in pieces:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def make_wordpiece() -> Any:
    """Return a BertTokenizer in which each word of the language is one token, and any other word is written in letters.

    The tokens that GroundingDINO compares have BERT's numbers.
    """
    from transformers import BertTokenizer

    vocabulary = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = dict.fromkeys([*sorted(all_words()), *letters, *(f"##{letter}" for letter in letters)])
    taken = set(vocabulary.values())
    free = (number for number in range(max(taken)) if number not in taken)
    vocabulary.update(zip(pieces, free))
    taken = set(vocabulary.values())
    vocabulary.update({f"[unused{number}]": number for number in range(max(taken)) if number not in taken})
    return BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=512)
