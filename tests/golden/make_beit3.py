"""Train tests/golden/beit3.spm, a small SentencePiece model like BEiT-3's, and record the tokens that SentencePiece makes with it.

    python tests/golden/make_beit3.py

Needs the package sentencepiece (recorded: 0.2.3), which nothing else of the project does. beit3_tokens.json lists [sentence, ids], ids
in XLM-R's numbering: piece i is i + 1, <unk> 3. Left out are two kinds of characters that transformers' tokenizer normalises otherwise:
several combining marks on one letter, and U+0085.
"""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import sentencepiece

FOLDER = Path(__file__).parent
PIECES = 400


def words(text: str) -> list[str]:
    return text.split()


NOUNS = words(
    "dog cat bird man woman person boy girl child car truck bus train elephant horse sheep cow fish tiger panda monkey bear ball bike "
    "boat plane circle square triangle giraffe lizard zebra rabbit turtle leopard parrot motorcycle skateboard umbrella bottle hand"
)
LOOKS = words(
    "red blue green yellow purple orange big small large tiny white black brown grey left right first last young old nearest"
)
MOVES = words(
    "moving running walking turning jumping flying swimming standing eating playing climbing chasing following waiting rotating "
    "growing shrinking crossing holding pushing pulling looking lying sitting riding bouncing blinking stopping going coming"
)
WAYS = words("left right quickly slowly forward backward around away together up down clockwise behind above below beside")
SENTENCES = (
    "the dog moving to the left", "The White Tiger, walking.", "", " ", "x", "dog", "  the   dog\trunning\n away ",
    "cats and dogs 2 3 14", "doesn't move; it's", "這隻鳥飛走了 🐦🐦 the bird", "ﬁsh ﬂying", "ｔｈｅ ｄｏｇ", "café naïve é",
    "İstanbul Σίσυφος",
    "the\u00a0dog\u2003running", "the\u200bdog", "the\u3000dog", "<s> the </s> <mask> <pad> <unk>", "<mask>", "a<s>b",
    "▁the ▁dog", "the▁dog", "▁", "★★★ ★", "½ ² ³ ① Ⅷ",
    "…the dog…", "“quoted” ‘dog’ — – -", "dog-like, left/right", "AA BB CC", "the dog" * 30, "the dog running " * 30, "\ufeffthe dog",
    "a\u0301 e\u0301", "한국어 텍스트", "ａｂｃ１２３", "the dog\r\nruns", "🏃‍♀️ running", "\u00ad soft\u00adhyphen", "ñandú", "dog?!",
    "(the) [dog] {cat}", "100% $5 #1 @x", "l'homme", "𝕋𝕙𝕖 dog", "½dog", "dog.", "dog .", "the_dog", "\u202edog", "\x07bell \x1b", "ỆỆ",
    "กำ ไทย", "हिन्दी का", "\u0301dog", "a\u2028b\u2029c", "a\x1fb", "a\x0bb\x0cc",
)  # fmt: skip


def corpus() -> list[str]:
    """Sentences in the manner of the datasets."""
    rng, lines = random.Random(0), []
    for _ in range(4000):
        noun, other, look, move, way, more = (rng.choice(words) for words in (NOUNS, NOUNS, LOOKS, MOVES, WAYS, MOVES))
        lines.append(
            rng.choice(
                [
                    f"the {look} {noun} {move} to the {way}",
                    f"the {noun} that is {move} {way} and then {more}",
                    f"two {noun}s {move} from left to right, one of them {more} {way}",
                    f"A {noun} which doesn't {move[:-3]}; it's {more} behind the {other}.",
                    f"The {look} {noun} in front of {rng.randint(1, 99)} other {other}s!",
                ]
            )
        )
    return [*lines, *(["這隻鳥飛走了", "café naïve é", "ñandú"] * 3)]


def sentences() -> list[str]:
    """The odd ones, and random mixtures of words and characters."""
    rng = random.Random(1)
    pool = [*NOUNS, *MOVES, *LOOKS, *" ,.;'-!?()0123456789éñ鳥🐦½ﬁ★İß", "  ", "\t", "running", "zzq", "Xy"]
    mixtures = ["".join(rng.choice(pool) + rng.choice(["", " ", " "]) for _ in range(rng.randint(1, 14))) for _ in range(150)]
    return [*SENTENCES, *mixtures]


def main() -> None:
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=trained, vocab_size=PIECES, model_type="unigram", character_coverage=1.0,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (FOLDER / "beit3.spm").write_bytes(trained.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    rows = [[text, [piece + 1 if piece else 3 for piece in processor.encode(text)]] for text in sentences()]
    path = FOLDER / "beit3_tokens.json"
    path.write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=True) for row in rows) + "\n]\n", "utf-8")
    print(
        f"{processor.get_piece_size()} pieces, {len(trained.getvalue())} bytes; {len(rows)} sentences, {path.stat().st_size} bytes"
    )


if __name__ == "__main__":
    main()
