"""A small CLIP for moving shapes, trained on a CPU from nothing, so that its frozen features mean something.

`python -m pipelines.clip_shapes --out out/clip_shapes`. The folder is as of `rvos-cache convert-clip`: a ConvNeXt, a text
transformer, an image head. Pictures are trained with static sentences only, which say what objects look like and never what they
do: whole frames with their captions by the contrastive loss of CLIP (Radford et al., ICML 2021, section 2.3), and objects pooled
under their true masks with the sentences that are true of that object alone, whose colour, shape and size are also classified
from the pooled features of every stage. The losses of objects replace what CLIP's two billion pictures give: with these the cells
of an object mean its name though only whole pictures had captions, with some hundred videos of three to six objects they do not.
A last loss is of text alone: the words of a sentence are told from its vector, as CLIP's vectors, of captions about everything,
keep all words; so the motion that a sentence describes is not lost, though no picture says what its words mean.

Letters: B frames, A objects of all B frames, S sentences, L tokens, D channels of the joint space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.shapes_words import Description, caption, describe, make_tokenizer, phrases
from rvos_cache.cli import Resumable, run_command
from rvos_cache.clip.convert import write_clip_folder
from rvos_cache.clip.pooling import pool
from rvos_cache.clip.towers import DEVIATION, MEAN, encode_texts, tokenize
from rvos_cache.errors import InputError
from rvos_cache.media.geometry import FrameGeometry
from rvos_cache.shapes import make_video
from rvos_cache.shapes.motion import HEIGHT, WIDTH
from rvos_cache.shapes.scene import COLOURS, SHAPES, Scene
from rvos_cache.system.progress import Progress
from rvos_select.runs.checkpoint import load_state, save_state

WIDTHS, DEPTHS = (24, 48, 96, 128), (1, 1, 2, 1)
JOINT = 96
"""D."""
SHORT = 192
"""Short side of the frames, twice their own: the last stage, at stride 32, then has 6 x 10 cells, about one per object."""
STRIDES = (4, 8, 16, 32)
"""Input pixels along the side of a cell of each stage's map."""
GEOMETRY = FrameGeometry.of((HEIGHT, WIDTH), SHORT, 2 * WIDTH, mean=MEAN, deviation=DEVIATION)
FRAMES, TEXTS = 16, 48
"""Frames, and sentences of the text loss, per step."""
STRIDE = 8
"""Every so many frames of a video are used."""
SMALLEST = 30
"""Pixels of the smallest object that is learned, and counted."""
SIZES = ("small", "big")
COUNTS = (len(COLOURS), len(SHAPES), len(SIZES))
"""Classes of colour, shape and size."""
CAPTION_WEIGHT, CLASS_WEIGHT, TEXT_WEIGHT = 0.2, 5.0, 0.2
LARGEST_SCALE = 100.0
"""Of the logits. Source: Radford et al., section 2.5."""
SAVED = 100
"""Steps between two states that an interrupted training continues from."""
PHRASES_OF_MOTION = tuple(phrases())


@dataclass(frozen=True)
class Frame:
    """image uint8 (H, W, 3) RGB; masks bool (a, H, W) of the objects that are large enough, and what they look like."""

    image: Any
    masks: Any
    objects: tuple[Description, ...]


class ShapesClip(nn.Module):
    """The towers and the head of the folder, and what only training needs."""

    def __init__(self, tokenizer: Any) -> None:
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection, ConvNextConfig, ConvNextModel

        super().__init__()
        end = tokenizer.eos_token_id
        self.image = ConvNextModel(ConvNextConfig(hidden_sizes=list(WIDTHS), depths=list(DEPTHS), layer_scale_init_value=1.0))
        self.image.layernorm.requires_grad_(False)
        for module in self.image.modules():
            # transformers' own values, and layer scales of 1e-6, are for long training: with them shapes are not learned in minutes.
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        self.text = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=JOINT, intermediate_size=2 * JOINT, projection_dim=JOINT, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=77, hidden_act="gelu", pad_token_id=0,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=end,
            )
        )  # fmt: skip
        width = WIDTHS[-1]
        self.head = nn.ModuleDict(
            {
                "norm": nn.LayerNorm(width, 1e-6),
                "fc1": nn.Linear(width, 2 * JOINT),
                "fc2": nn.Linear(2 * JOINT, JOINT, bias=False),
            }
        )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.classes = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(COUNTS))) for width in WIDTHS)
        self.positions = nn.Embedding(77, JOINT)
        self.words = nn.Sequential(nn.Linear(2 * JOINT, 2 * JOINT), nn.GELU(), nn.Linear(2 * JOINT, len(tokenizer)))

    def maps(self, images: Tensor) -> list[Tensor]:
        """The map (B, C, h, w) of each stage, of images (B, 3, H, W)."""
        maps = [self.image.embeddings(images)]
        for stage in self.image.encoder.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def project(self, pooled: Tensor) -> Tensor:
        """Unit vectors (…, D) of pooled features (…, C)."""
        hidden = F.gelu(self.head["fc1"](self.head["norm"](pooled)))
        return F.normalize(self.head["fc2"](hidden), dim=-1)

    def sentences(self, tokens: Tensor) -> Tensor:
        """The vectors (S, D) of sentences, tokens (S, L), as those of the whole 77 places: the tower is causal."""
        vectors: Tensor = self.text(input_ids=tokens).text_embeds
        return vectors

    def logits(self, images: Tensor, sentences: Tensor) -> Tensor:
        """Scaled cosines (A, S) of unit vectors and sentences."""
        scale = self.logit_scale.clamp(max=math.log(LARGEST_SCALE)).exp()
        return scale * images @ F.normalize(sentences, dim=-1).T

    def class_loss(self, pooled: Sequence[Tensor], things: Sequence[Description]) -> Tensor:
        """Cross-entropy of colour, shape and size, told from the features (A, C) of each stage, summed over these, mean over stages."""
        labels = torch.tensor(
            [[list(COLOURS).index(k.colour), SHAPES.index(k.shape), SIZES.index(k.size) if k.size else -1] for k in things]
        )
        total = self.logit_scale.new_zeros(())
        for classify, features in zip(self.classes, pooled):
            parts = classify(features).split(COUNTS, 1)
            total = total + sum(F.cross_entropy(logits, own, ignore_index=-1) for logits, own in zip(parts, labels.T))
        return total / len(pooled)

    def text_loss(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Cross-entropy of each token (S, L), told from its sentence's vector and its place."""
        vectors = self.sentences(tokens)
        places = self.positions.weight[: tokens.shape[1]]
        pairs = torch.cat([x.expand(*tokens.shape, JOINT) for x in (vectors[:, None], places)], -1)
        real = torch.arange(tokens.shape[1]) < lengths[:, None]
        return F.cross_entropy(self.words(pairs[real]), tokens[real])


@click.command(cls=Resumable)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/clip_shapes"), show_default=True)
@click.option("--videos", default=800, show_default=True)
@click.option("--steps", default=800, show_default=True)
@click.option("--rate", default=2e-3, show_default=True)
@click.option("--seed", default=11, show_default=True, help="Of videos and weights; other videos than the demo's.")
def clip_shapes(out: Path, videos: int, steps: int, rate: float, seed: int) -> None:
    """Train and write the folder that `--encoder clip`, `pool-clip` and `clip-zero-shot` take, and print its accuracy."""
    train_clip(out, videos, steps, rate, seed)
    correct, count = accuracy(out, seed, max(1, videos // 10))
    click.echo(
        f"the object of a static sentence, among those of a frame by their true masks: {100 * correct / count:.1f} % of {count}"
    )
    click.echo(f"checkpoint: {out}")


def train_clip(out: Path, videos: int, steps: int, rate: float, seed: int) -> Path:
    """The folder of the trained checkpoint; one that is there is left as it is, an interrupted training continues."""
    if (out / "conversion.json").exists():
        return out
    run = out.with_name(f"{out.name}.training")
    settings = {"videos": videos, "steps": steps, "rate": rate, "seed": seed}
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    model = ShapesClip(tokenizer)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.05, betas=(0.9, 0.98))
    first = 0
    if (run / "last").exists():
        state = load_state(run, model, optimizer)
        if state["settings"] != settings:
            raise InputError(f"{run}: a training with other settings was interrupted there; remove it, or give another --out")
        first = state["step"]
    frames, mean = frames_of(seed, 0, videos), 0.0
    with Progress("train", steps, done=first, unit="steps") as bar:
        for step in range(first, steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * min((step + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * step / steps))
            loss = _loss(model, tokenizer, frames, np.random.default_rng((seed, step)))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            mean += (loss.item() - mean) / min(step - first + 1, 50)
            bar.advance(title=f"CLIP, loss {mean:.2f}")
            if (step + 1) % SAVED == 0:
                save_state(run, model, optimizer, {"step": step + 1, "settings": settings})
    _write(out, model, tokenizer)
    return out


def accuracy(checkpoint: Path, seed: int, videos: int) -> tuple[int, int]:
    """(correct, count): how often the object with the largest cosine is the one that a static sentence names, in held-out frames.

    The objects of a frame are pooled under their true masks, and a sentence is asked if it is true of exactly one of two or more;
    the sentences have the wording of the data set: "the red circle", "the circle", "the red one".
    """
    from rvos_cache.clip.towers import load_image_head, load_image_tower, load_text_tower, load_tokenizer

    tokenizer = load_tokenizer(str(checkpoint))
    model = ShapesClip(tokenizer).eval()
    model.image.load_state_dict(load_image_tower(str(checkpoint)).cpu().state_dict())
    head = load_image_head(str(checkpoint))
    model.head.load_state_dict({name: value for name, value in head.items() if name != "logit_scale"})
    text_tower = load_text_tower(str(checkpoint)).cpu()
    correct = count = 0
    for frame in frames_of(seed, 1, videos):
        asked = {text: truth.index(True) for text, truth in claims_of(frame).items() if sum(truth) == 1 and len(truth) > 1}
        if asked:
            words, lengths = encode_texts(text_tower, tokenizer, list(asked))
            sentences = words[torch.arange(len(asked)), lengths - 1]
            with torch.no_grad():
                chosen = model.logits(model.project(objects_of(model, [frame])[0][-1]), sentences).argmax(0)
            correct += int((chosen == torch.tensor(list(asked.values()))).sum())
            count += len(asked)
    return correct, count


def claims_of(frame: Frame) -> dict[str, list[bool]]:
    """Static sentences in the wording of the data set about the objects of a frame -> of which of them each is true."""
    return {
        text: [(not colour or colour == k.colour) and (not shape or shape == k.shape) for k in frame.objects]
        for thing in frame.objects
        for text, colour, shape in (
            (f"the {thing.colour} {thing.shape}", thing.colour, thing.shape),
            (f"the {thing.shape}", "", thing.shape),
            (f"the {thing.colour} one", thing.colour, ""),
        )
    }


def frames_of(seed: int, split: int, videos: int) -> list[Frame]:
    """Every STRIDE-th frame of the videos that shows an object."""
    frames = []
    for index in range(videos):
        scene, images, masks, _ = make_video(seed, split, index)
        for t in range(0, len(images), STRIDE):
            large = np.flatnonzero(masks[:, t].sum((1, 2)) >= SMALLEST)
            if len(large):
                objects = tuple(_description(scene, int(a), t) for a in large)
                frames.append(Frame(images[t], masks[large, t], objects))
    return frames


def _description(scene: Scene, a: int, t: int) -> Description:
    return Description.of(scene.things[a], float(scene.things[a].path.scale[t]))


def objects_of(model: ShapesClip, frames: Sequence[Frame]) -> tuple[list[Tensor], Tensor]:
    """Features (A, C) of each stage, pooled as `rvos-cache pool-clip` does, of all objects of the frames, in their order; and the
    last stage's (B, C) of the frames."""
    maps = model.maps(torch.stack([GEOMETRY.image(frame.image) for frame in frames]))
    masks = [torch.from_numpy(frame.masks) for frame in frames]
    pooled = torch.cat([pool(own_maps, STRIDES, GEOMETRY, own) for own_maps, own in zip(zip(*maps), masks)])
    return list(pooled.split(WIDTHS, 1)), maps[-1].mean((2, 3))


def _loss(model: ShapesClip, tokenizer: Any, frames: Sequence[Frame], rng: np.random.Generator) -> Tensor:
    """The loss of one step on random frames, half of them mirrored."""
    batch = [mirrored(frames[i]) if rng.random() < 0.5 else frames[i] for i in rng.integers(len(frames), size=FRAMES)]
    things = [thing for frame in batch for thing in frame.objects]
    claims = list({claim.text: claim for claim in (describe(rng, thing) for thing in things)}.values())
    captions = [caption(rng, frame.objects) for frame in batch]
    vectors = model.sentences(_tokens(tokenizer, [*(claim.text for claim in claims), *captions])[0])
    objects, whole = objects_of(model, batch)
    truth = torch.tensor([[claim.truth(thing) for claim in claims] for thing in things])
    loss = contrastive(model.logits(model.project(objects[-1]), vectors[: len(claims)]), truth)
    loss = loss + CLASS_WEIGHT * model.class_loss(objects, things)
    same = torch.tensor([[int(sorted(map(str, a.objects)) == sorted(map(str, b.objects))) for b in batch] for a in batch])
    loss = loss + CAPTION_WEIGHT * contrastive(model.logits(model.project(whole), vectors[len(claims) :]), same)
    return loss + TEXT_WEIGHT * model.text_loss(*_tokens(tokenizer, [_sentence(rng) for _ in range(TEXTS)]))


def contrastive(logits: Tensor, truth: Tensor) -> Tensor:
    """The symmetric contrastive loss of logits (A, S), where several sentences may be true of an object and reverse.

    truth: int64 (A, S), 1 true, 0 false, -1 undecided, which does not count. The target of a row, and of a column, is uniform over
    what is true. Source: Yang et al., "Unified Contrastive Learning", CVPR 2022, equations 2 to 4.
    """
    logits = logits.masked_fill(truth < 0, -1e4)
    total = logits.new_zeros(())
    for scores, true in ((logits, truth > 0), (logits.T, truth.T > 0)):
        has = true.any(1)
        log_shares = scores.log_softmax(1)[has]
        total = total - (log_shares * true[has]).sum(1).div(true[has].sum(1)).mean() / 2
    return total


def mirrored(frame: Frame) -> Frame:
    """The frame with left and right exchanged."""
    return Frame(np.ascontiguousarray(frame.image[:, ::-1]), np.ascontiguousarray(frame.masks[..., ::-1]), frame.objects)


def _sentence(rng: np.random.Generator) -> str:
    """Some sentence of the language, true of nothing in particular."""
    thing = Description(str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)), "")
    return f"{describe(rng, thing).text} {rng.choice(PHRASES_OF_MOTION)}"


def _tokens(tokenizer: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Tokens int64 (S, L), padded with 0, and lengths (S,)."""
    tokens = tokenize(tokenizer, texts)
    return torch.from_numpy(tokens.ids[:, : tokens.lengths.max()]), torch.from_numpy(tokens.lengths)


def _write(out: Path, model: ShapesClip, tokenizer: Any) -> None:
    """The folder of `rvos-cache convert-clip`."""
    head = {**model.head.state_dict(), "logit_scale": model.logit_scale.detach()}
    tensors = len(model.image.state_dict()) + len(model.text.state_dict()) + len(head)
    record = {"source": "pipelines.clip_shapes", "tensors": tensors, "unread": []}
    head = {name: value.contiguous() for name, value in head.items()}
    write_clip_folder(out, model.image, model.text, tokenizer, head, record)


if __name__ == "__main__":
    run_command(clip_shapes)
