"""A small BEiT-3 for moving shapes, trained on a CPU from nothing, so that its frozen patches and words mean something.

`python -m pipelines.beit3_shapes --out out/beit3_shapes`. The folder is as of `rvos-cache convert-beit3`. Pairs of a frame and a
sentence are trained: the sentence says what an object of the frame looks like, or an object that is not there, and in half of the
pairs also some motion, of which no picture says what it means. As in BEiT-3 (Wang et al., CVPR 2023, section 2.2) words are hidden
and told from the frame and the other words; of sentences alone too, so that words without a frame keep what they are. In the place of
its hidden patches, and of its twenty million pairs, three things are told of each patch, which the exact masks of moving shapes give:
the share of it that objects cover of which the sentence is true, and the colour and the shape of the object in it.

Letters: B pairs, A objects, L words, P patches, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.clip_shapes import PHRASES_OF_MOTION, Frame, frames_of, mirrored
from pipelines.shapes_words import Claim, Description, all_words, describe
from rvos_cache.cli import run_command
from rvos_cache.media.geometry import FrameGeometry
from rvos_cache.shapes.scene import COLOURS, SHAPES, SIZE
from rvos_cache.system.files import new_folder
from rvos_cache.system.progress import Progress
from rvos_cache.text.beit3 import Beit3, Beit3Output, Beit3Sizes, Beit3Tokenizer, load, load_tokenizer
from rvos_cache.text.beit3.convert import convert_beit3
from rvos_cache.text.beit3.network import PATCH
from rvos_cache.text.beit3.tokenizer import END, PAD

SIDE, WIDTH, LAYERS, LONGEST = 128, 128, 3, 40
"""Pixels along a side of the frames; D; layers; words of the longest sentence."""
GRID = SIDE // PATCH
GEOMETRY = FrameGeometry.stretched(SIZE, (SIDE, SIDE), mean=(127.5,) * 3, deviation=(127.5,) * 3)
PAIRS = 32
"""Pairs of a step, and sentences without a frame."""
ABSENT, MOVING, HIDDEN = 0.2, 0.5, 0.2
"""Shares of the sentences about a random object, of those with a phrase of motion, and of the words that are hidden."""
COVERED = 0.25
"""Share of a patch from which on an object in it has a colour and a shape to tell."""
CLASS_WEIGHT, WORD_WEIGHT = 0.5, 0.5
COUNTS = (len(COLOURS), len(SHAPES))


class Reader(nn.Module):
    """BEiT-3 and what only training needs: heads that tell words, shares, colours and shapes."""

    def __init__(self, tokenizer: Beit3Tokenizer, beit3: Beit3 | None = None) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.beit3 = beit3 or Beit3(Beit3Sizes(WIDTH, LAYERS, len(tokenizer), GRID, LONGEST))
        self.words = nn.Linear(WIDTH, len(tokenizer))
        self.shares = nn.Linear(WIDTH, 1)
        self.classes = nn.Linear(WIDTH, sum(COUNTS))

    def read(self, images: Tensor | None, texts: Sequence[str], rng: np.random.Generator) -> tuple[Beit3Output, Tensor]:
        """The output for images (B, 3, S, S) and texts with hidden words, and the loss of all words."""
        ids, real = self.tokens(texts)
        chosen = torch.from_numpy(rng.random(ids.shape) < HIDDEN) & real & (ids > END)
        output = self.beit3(images, ids.masked_fill(chosen, len(self.tokenizer) - 1), real)
        # Words that are not hidden count too: what a word is must stay in its vector.
        return output, F.cross_entropy(self.words(output.words[real]), ids[real])

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids int64 (B, L) and which of them are real, bool (B, L)."""
        rows = [torch.from_numpy(ids).long() for ids, _ in self.tokenizer(texts, LONGEST)]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
        return ids, torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/beit3_shapes"), show_default=True)
@click.option("--videos", default=600, show_default=True)
@click.option("--steps", default=1500, show_default=True)
@click.option("--rate", default=1e-3, show_default=True)
@click.option("--seed", default=11, show_default=True, help="Of videos and weights; other videos than the demo's.")
def beit3_shapes(out: Path, videos: int, steps: int, rate: float, seed: int) -> None:
    """Train and write the folder that `--encoder beit3` and DeRVOS take, and print how well it tells objects."""
    train_beit3(out, videos, steps, rate, seed)
    click.echo(f"checkpoint: {out}")


def train_beit3(out: Path, videos: int, steps: int, rate: float, seed: int) -> Path:
    """The folder of the trained checkpoint; one that is there is left as it is. Its accuracy in held-out frames is printed."""
    if out.exists():
        return out
    torch.manual_seed(seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(out.with_name(f"{out.name}.spm")) as folder:
        write_spm(folder / "words.spm")
    spm = out.with_name(f"{out.name}.spm") / "words.spm"
    model = Reader(Beit3Tokenizer.from_spm(spm))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05, betas=(0.9, 0.98))
    frames, mean = frames_of(seed, 0, videos), 0.0
    with Progress("BEiT-3", steps, unit="steps") as bar:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * step / steps))
            loss = _loss(model, frames, np.random.default_rng((seed, step)))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            mean += (loss.item() - mean) / min(step + 1, 50)
            bar.advance(title=f"BEiT-3, loss {mean:.2f}")
    correct, count = accuracy(model, seed, max(1, videos // 10))
    click.echo(f"the object of a static sentence, among those of a frame: {100 * correct / max(count, 1):.1f} % of {count}")
    checkpoint = out.with_name(f"{out.name}.pth")
    torch.save({"model": model.beit3.official()}, checkpoint)
    convert_beit3(checkpoint, spm, out)
    checkpoint.unlink()
    return out


def accuracy(model: Reader, seed: int, videos: int) -> tuple[int, int]:
    """(correct, count): how often the object with the largest mean share is the one that a static sentence names.

    A sentence is asked of a held-out frame if it is true of exactly one of two objects or more.
    """
    correct = count = 0
    for frame in frames_of(seed, 1, videos):
        asked = {}
        for thing in frame.objects:
            for claim in (
                Claim(f"the {thing.colour} {thing.shape}", thing.colour, thing.shape, ""),
                Claim(f"the {thing.shape}", "", thing.shape, ""),
                Claim(f"the {thing.colour} one", thing.colour, "", ""),
            ):
                truth = [claim.truth(other) for other in frame.objects]
                if truth.count(1) == 1 and len(truth) > 1:
                    asked[claim.text] = truth.index(1)
        if asked:
            images = GEOMETRY.image(frame.image)[None].expand(len(asked), -1, -1, -1)
            covers = _shares(frame).flatten(1)
            with torch.no_grad():
                logits = model.shares(model.beit3(images, *model.tokens(list(asked))).vision)[..., 0]
            chosen = (logits @ (covers / covers.sum(1, keepdim=True)).T).argmax(1)
            correct += int((chosen == torch.tensor(list(asked.values()))).sum())
            count += len(asked)
    return correct, count


def load_beit3(checkpoint: Path) -> tuple[Beit3, Beit3Tokenizer]:
    """What `train_beit3` wrote."""
    return load(str(checkpoint)), load_tokenizer(str(checkpoint))


def _loss(model: Reader, frames: Sequence[Frame], rng: np.random.Generator) -> Tensor:
    """The loss of one step on random pairs, half of their frames mirrored, and on as many sentences alone."""
    batch = [mirrored(frames[i]) if rng.random() < 0.5 else frames[i] for i in rng.integers(len(frames), size=PAIRS)]
    claims = [_claim(rng, frame) for frame in batch]
    images = torch.stack([GEOMETRY.image(frame.image) for frame in batch])
    output, loss = model.read(images, [_text(rng, claim) for claim in claims], rng)
    alone = model.read(None, [_text(rng, _claim(rng, frame)) for frame in batch], rng)[1]
    truth, counted, classes = (torch.stack(parts) for parts in zip(*map(_targets, batch, claims)))
    shares = model.shares(output.vision)[..., 0]
    shares_loss = F.binary_cross_entropy_with_logits(shares, truth, reduction="none")[counted].mean()
    parts = model.classes(output.vision).split(COUNTS, -1)
    named = sum(F.cross_entropy(x.flatten(0, 1), own.flatten(), ignore_index=-1) for x, own in zip(parts, classes.unbind(1)))
    return 4 * shares_loss + CLASS_WEIGHT * named + WORD_WEIGHT * (loss + alone)


def _claim(rng: np.random.Generator, frame: Frame) -> Claim:
    """A sentence about an object of the frame, or about a random one."""
    if rng.random() < ABSENT:
        return describe(rng, Description(str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)), ""))
    return describe(rng, frame.objects[rng.integers(len(frame.objects))])


def _text(rng: np.random.Generator, claim: Claim) -> str:
    return f"{claim.text} {rng.choice(PHRASES_OF_MOTION)}" if rng.random() < MOVING else claim.text


def _shares(frame: Frame) -> Tensor:
    """The share of each patch that each object covers, float32 (A, GRID, GRID)."""
    return GEOMETRY.shares(torch.from_numpy(frame.masks), PATCH)


def _targets(frame: Frame, claim: Claim) -> tuple[Tensor, Tensor, Tensor]:
    """The share of each patch (P,) that the sentence is true of; where it counts, bool (P,): not where it is undecided; colour and
    shape of the object in each patch, int64 (2, P), -1 where there is none."""
    covers = _shares(frame).flatten(1)
    truth = torch.tensor([claim.truth(thing) for thing in frame.objects])
    most, which = covers.max(0)
    codes = torch.tensor([[list(COLOURS).index(k.colour), SHAPES.index(k.shape)] for k in frame.objects])
    classes = codes.T[:, which].masked_fill(most < COVERED, -1)
    return covers[truth > 0].sum(0).clamp(max=1), covers[truth < 0].sum(0) < 1e-3, classes


def write_spm(path: Path) -> None:
    """Write a SentencePiece model whose pieces are the words of the language, and the letters for other words."""
    from transformers.utils import sentencepiece_model_pb2_new as messages

    model = messages.ModelProto()
    model.trainer_spec.model_type = 1
    for name, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3)):
        model.pieces.add(piece=name, score=0.0, type=kind)
    words = sorted(all_words())
    # A word at the start of a text or after a blank, then after another mark, as "angled" in "right-angled".
    scores = {**{f"▁{word}": -4.0 for word in words}, **dict.fromkeys(words, -6.0)}
    scores |= dict.fromkeys(["▁", *map(chr, range(ord("a"), ord("z") + 1))], -20.0)
    for piece, score in scores.items():
        model.pieces.add(piece=piece, score=score, type=1)
    normalizer = model.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = normalizer.escape_whitespaces = True
    path.write_bytes(model.SerializeToString())


if __name__ == "__main__":
    run_command(beit3_shapes)
