"""A small GroundingDINO for moving shapes, with ReferDINO's mask decoder, trained on a CPU from nothing.

`python -m pipelines.gdino_shapes --out out/gdino_shapes`; with `--tiny` the weights stay random, to try commands with. The folder is as
of `rvos-cache tune-referdino`: `gdino-queries` takes it as `checkpoint`, with masks=head. Single frames are trained with sentences that
say what objects look like; what some of them add about motion, or say of motion alone, no frame shows, so they are true of every object
that looks so, as for a GroundingDINO of pictures.
Every layer of the decoder, and the encoder's proposals, have GroundingDINO's losses of tokens and boxes after one-to-one matching, the
last layer those of masks too. Two more losses replace long training: what objects are, told from maps of stride 8, and each object of a
frame with all sentences of the step.

Letters: B frames, each with one sentence, Q queries, A objects that the sentence names, L tokens, h w cells of the map of stride 4.
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

from pipelines.clip_shapes import Frame, claims_of, contrastive, frames_of, mirrored
from pipelines.gdino_losses import MASK_TERMS, Targets, TokenLogits, detection_losses, weighted
from pipelines.shapes_words import Claim, Description, describe, make_wordpiece, phrases
from rvos_cache.cli import Resumable, run_command
from rvos_cache.errors import InputError
from rvos_cache.media.boxes import centre_and_size, last_pixel_boxes
from rvos_cache.shapes.motion import HEIGHT, WIDTH
from rvos_cache.shapes.scene import COLOURS, SHAPES
from rvos_cache.system.files import new_folder
from rvos_cache.system.progress import Progress
from rvos_cache.trackers.grounding_dino import make_caption
from rvos_cache.trackers.referdino.convert import write_upstream
from rvos_cache.trackers.referdino.head import HeadSizes, ReferDinoHead
from rvos_cache.trackers.referdino.live import LiveOptions, LiveReferDino
from rvos_cache.trackers.referdino.stages import FourStageGroundingDino
from rvos_cache.trackers.referdino.upstream import RECORD_FILE, Upstream, kept_queries
from rvos_cache.trackers.referdino_losses import STRIDE, Predicted, giou, l1
from rvos_cache.trackers.sam2.preprocess import normalise
from rvos_select.losses.matching import assign
from rvos_select.runs.checkpoint import load_state, save_state

CHANNELS, HEADS = 64, 8
"""Of queries and words, and heads of their attention."""
WIDTHS = 24
"""Channels of Swin's first stage; each other has twice those of the one before."""
DEPTHS, ENCODER_LAYERS, DECODER_LAYERS, POINTS = (1, 1, 1, 1), 1, 2, 2
"""Of Swin's stages, of encoder and decoder, and sampling points of the encoder on each level."""
QUERIES, KEEP = 16, 0.65
"""Queries, and the share of them that each layer of the decoder keeps: 11 and 8, for at most 6 objects."""
SHORT = HEIGHT
"""The frames' own size, so that nothing is resized."""
MAX_LENGTH = 40
"""Tokens of a sentence."""
SENTENCES = 10
"""B: frames with a sentence each, of a step."""
CLASS_WEIGHT = 5.0
"""Of what objects are. A shape is learned long after a colour: without this loss it is not learned in minutes."""
SENTENCE_WEIGHT = 2.0
"""Of each object with all sentences of the step, see `ShapesGdino.sentence_loss`."""
COUNTS = (len(COLOURS), len(SHAPES))
"""Classes of colour and shape."""
CELLS = (HEIGHT // 8, WIDTH // 8)
"""Of the finest level of GroundingDINO."""
SAVED = 100
"""Steps between two states that an interrupted training continues from."""
PHRASES_OF_MOTION = tuple(phrases())
EVERYTHING = ("the object", "the one", "the shape", "the thing", "the objects", "all objects", "everything")
"""What only motion tells apart is called."""


@dataclass(frozen=True)
class Example:
    """A frame, a sentence, and what this says of looks."""

    frame: Frame
    text: str
    claim: Claim

    @property
    def truth(self) -> Any:
        """Which of the frame's objects look as it says, bool (a,)."""
        return np.array([self.claim.truth(thing) == 1 for thing in self.frame.objects])


@click.command(cls=Resumable)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/gdino_shapes"), show_default=True)
@click.option("--videos", default=300, show_default=True)
@click.option("--steps", default=2000, show_default=True)
@click.option("--rate", default=1e-3, show_default=True)
@click.option("--seed", default=11, show_default=True, help="Of videos and weights; other videos than the demo's.")
@click.option("--tiny", is_flag=True, help="Random weights, in seconds: every command can be tried, scores mean nothing.")
def gdino_shapes(out: Path, videos: int, steps: int, rate: float, seed: int, tiny: bool) -> None:
    """Train and write the folder that `--tracker gdino-queries --set checkpoint=OUT --set masks=head` takes, and print its accuracy."""
    if tiny:
        click.echo(f"checkpoint: {train_gdino(out, 1, 0, rate, seed)}, of random weights")
        return
    train_gdino(out, videos, steps, rate, seed)
    correct, count = accuracy(out, seed, max(1, videos // 10))
    click.echo(
        f"an object that a static sentence names, by the best query in held-out frames: {100 * correct / count:.1f} % of {count}"
    )
    click.echo(f"checkpoint: {out}")


def train_gdino(out: Path, videos: int, steps: int, rate: float, seed: int) -> Path:
    """The folder of the trained checkpoint; one that is there is left as it is, an interrupted training continues."""
    if (out / RECORD_FILE).exists():
        return out
    run = out.with_name(f"{out.name}.training")
    settings = {"videos": videos, "steps": steps, "rate": rate, "seed": seed}
    torch.manual_seed(seed)
    tokenizer = make_wordpiece()
    model = ShapesGdino(len(tokenizer)).train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4)
    first = 0
    if (run / "last").exists():
        state = load_state(run, model, optimizer)
        if state["settings"] != settings:
            raise InputError(f"{run}: a training with other settings was interrupted there; remove it, or give another --out")
        first = state["step"]
    frames = frames_of(seed, 0, videos)
    means: dict[str, float] = {}
    with Progress("train", steps, done=first, unit="steps") as bar:
        for step in range(first, steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * min((step + 1) / 100, 0.51 + 0.49 * math.cos(math.pi * step / steps))
            terms = _losses(model, tokenizer, examples(frames, np.random.default_rng((seed, step))))
            optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            for name, value in terms.items():
                means[name] = means.get(name, 0.0) + (value.item() - means.get(name, 0.0)) / min(step - first + 1, 50)
            bar.advance(title=f"loss {means['loss']:.2f}")
            if (step + 1) % SAVED == 0:
                save_state(run, model, optimizer, {"step": step + 1, "settings": settings})
    with new_folder(out) as folder:
        write_upstream(folder, model.live.grounding, tokenizer, model.live.head, {"source": "pipelines.gdino_shapes", **settings})
    return out


@torch.no_grad()
def accuracy(checkpoint: Path, seed: int, videos: int) -> tuple[int, int]:
    """(correct, count): how often the best query of a sentence lies on an object that it names, in held-out frames.

    A sentence is asked if it is true of some objects of the frame and not of all.
    """
    upstream = Upstream(str(checkpoint), KEEP, "code_gate")
    correct = count = 0
    for frame in frames_of(seed, 1, videos):
        asked = {text: truth for text, truth in claims_of(frame).items() if not all(truth)}
        maps = upstream.encode(normalise(torch.from_numpy(frame.image)[None].permute(0, 3, 1, 2)))
        objects = targets_of(Example(frame, "", Claim("", "", "", "")), every=True).boxes.to(upstream.device)
        for text, truth in asked.items():
            queries = upstream.read(maps.levels, upstream.caption(text))
            best = (queries.hs[0] @ queries.text[0].T).amax(-1).argmax()
            box = upstream.boxes(queries.hs, queries.reference)[0, best]
            correct += truth[int(giou(box[None], objects).argmax())]
        count += len(asked)
    return correct, count


class TrainingHead(ReferDinoHead):
    """A head that reads all sentences of a step, and draws masks of the last layer's queries alone, which is half of a step's time.

    tokens: of each layer, then of the encoder. Logits are means over words, so that each word is learned; their maximum, which
    stage one takes, is at first that of a token that says nothing, and words are then not learned at all.
    """

    def __init__(self, sizes: HeadSizes) -> None:
        super().__init__(sizes)
        self.tokens: list[TokenLogits] = []

    def logits(self, queries: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """(B, 1, Q) of clips of one frame."""
        products = torch.einsum("bqc,slc->bqsl", queries[:, 0], text[:, 0])
        real = text_mask[:, 0]
        places = torch.arange(real.shape[1])
        words = (places >= 1) & (places < real.sum(1, keepdim=True) - 2)
        self.tokens.append(TokenLogits(products, real, words))
        return self.tokens[-1].means().diagonal(dim1=0, dim2=2).T[:, None]

    def mask_logits(self, queries: Tensor, *others: Tensor) -> Tensor:
        """As `ReferDinoHead.mask_logits`; zeros of other queries."""
        if queries.shape[1] == kept_queries(QUERIES, DECODER_LAYERS, KEEP):
            return super().mask_logits(queries, *others)
        return queries.new_zeros(*queries.shape[:2], *others[1].shape[-2:])


class ShapesGdino(nn.Module):
    """The model of the folder, `live`, and what only training needs: what an object is, told from maps of stride 8."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.live = make_model(words)
        self.classes = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(COUNTS))) for width in (2 * WIDTHS, CHANNELS)
        )
        self._maps: list[Tensor] = []
        head: Any = self.live.head
        self.tokens: list[TokenLogits] = head.tokens
        model = self.live.grounding.model
        model.backbone.conv_encoder.register_forward_hook(lambda _, inputs, maps: self._maps.append(maps[0][0].flatten(2)))
        model.encoder.register_forward_hook(
            lambda _, inputs, output: self._maps.append(output.last_hidden_state_vision[:, : math.prod(CELLS)].transpose(1, 2))
        )

    def predict(self, tokenizer: Any, batch: Sequence[Example]) -> list[Predicted]:
        """What each layer of the decoder predicts, then the encoder, of clips of one frame: B of them."""
        self._maps.clear()
        self.tokens.clear()
        images = normalise(torch.from_numpy(np.stack([one.frame.image for one in batch])).permute(0, 3, 1, 2))
        captions = [make_caption(one.text, tokenizer, MAX_LENGTH) for one in batch]
        words = tokenizer(captions, return_tensors="pt", padding=True)
        real = torch.ones(len(batch), *images.shape[-2:], dtype=torch.bool)
        output = self.live(images, real, words["input_ids"], words["attention_mask"].bool())
        return [*output.layers, output.encoder]

    def sentence_loss(self, layers: Sequence[Predicted], batch: Sequence[Example]) -> Tensor:
        """The contrastive loss of all objects of the last frames, each by the query at its place, with all sentences.

        One sentence for each frame alone is too little: objects are then found, and what the words say is not learned.
        """
        truth = torch.tensor([[one.claim.truth(thing) for one in batch] for own in batch for thing in own.frame.objects])
        total = torch.zeros(())
        for layer, tokens in zip(layers, self.tokens, strict=True):
            rows, logits = [], tokens.means()
            for b, one in enumerate(batch):
                targets = targets_of(one, every=True)
                costs = 5 * l1(layer.boxes[b, 0, :, None], targets.boxes) - 2 * giou(layer.boxes[b, 0, :, None], targets.boxes)
                queries, objects = assign(costs)
                rows.append(logits[b, queries[objects.argsort()]])
            total = total + contrastive(torch.cat(rows), truth)
        return total

    def class_loss(self, batch: Sequence[Example]) -> Tensor:
        """Cross-entropy of colour and shape of all objects of the last frames, told from each map under their masks; mean over maps."""
        things = [thing for one in batch for thing in one.frame.objects]
        labels = torch.tensor([[list(COLOURS).index(k.colour), SHAPES.index(k.shape)] for k in things])
        shares = [cells_of(one.frame.masks, 8).flatten(1) for one in batch]
        total = torch.zeros(())
        for classify, maps in zip(self.classes, self._maps, strict=True):
            pooled = torch.cat([own @ cells.T / own.sum(1, keepdim=True) for own, cells in zip(shares, maps)])
            parts = classify(pooled).split(COUNTS, 1)
            total = total + sum(F.cross_entropy(logits, own) for logits, own in zip(parts, labels.T))
        return total / len(self.classes)


def cells_of(masks: Any, stride: int) -> Tensor:
    """Shares float (A, H / stride, W / stride) of cells that masks, bool (A, H, W), cover."""
    return torch.from_numpy(masks).float().unflatten(2, (-1, stride)).unflatten(1, (-1, stride)).mean((2, 4))


def make_model(words: int) -> LiveReferDino:
    """GroundingDINO and ReferDINO's head, small, without noise, with first weights for a short training."""
    from transformers import BertConfig, GroundingDinoConfig, SwinConfig

    swin = SwinConfig(
        image_size=SHORT, embed_dim=WIDTHS, depths=list(DEPTHS), num_heads=[2, 4, 8, 8], window_size=5, mlp_ratio=2.0,
        drop_path_rate=0.0, out_indices=[2, 3, 4],
    )  # fmt: skip
    bert = BertConfig(
        vocab_size=words, hidden_size=CHANNELS, num_hidden_layers=2, num_attention_heads=4, intermediate_size=2 * CHANNELS,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=2 * MAX_LENGTH,
    )  # fmt: skip
    config = GroundingDinoConfig(
        backbone_config=swin, text_config=bert, d_model=CHANNELS, num_queries=QUERIES, max_text_len=MAX_LENGTH,
        num_feature_levels=3, encoder_layers=ENCODER_LAYERS, decoder_layers=DECODER_LAYERS, encoder_n_points=POINTS,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=2 * CHANNELS,
        decoder_ffn_dim=2 * CHANNELS, dropout=0.0, fusion_droppath=0.0,
    )  # fmt: skip
    grounding: Any = FourStageGroundingDino(config)
    _prepare(grounding)
    sizes = HeadSizes(
        channels=CHANNELS, map_channels=WIDTHS, temporal_layers=0, mask_layers=1, mask_hidden=2 * CHANNELS, mask_points=4,
        widths=(64, 64, 32, 32, 16),
    )  # fmt: skip
    head = TrainingHead(sizes)
    for parameter in head.box.layers[-1].parameters():
        nn.init.zeros_(parameter)
    return LiveReferDino(grounding, head, LiveOptions(keep_ratio=KEEP))


def _prepare(grounding: nn.Module) -> None:
    """transformers' first weights of standard deviation 0.02, and fusions with image and text of 1e-4, are for long training."""
    fixed = ("sampling_offsets", "attention_weights", "bbox_embed")
    for name, module in grounding.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not any(word in name for word in fixed):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
    for name, parameter in grounding.named_parameters():
        if name.endswith(("vision_param", "text_param")):
            nn.init.constant_(parameter, 0.5)


def examples(frames: Sequence[Frame], rng: np.random.Generator) -> list[Example]:
    """Random frames, half of them mirrored, with random sentences."""
    chosen = [frames[i] for i in rng.integers(len(frames), size=SENTENCES)]
    return [_example(rng, mirrored(frame) if rng.random() < 0.5 else frame) for frame in chosen]


def _example(rng: np.random.Generator, frame: Frame) -> Example:
    kind = rng.random()
    thing = frame.objects[rng.integers(len(frame.objects))]
    if kind < 0.1:
        thing = Description(str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)), "")
    claim = Claim(str(rng.choice(EVERYTHING)), "", "", "") if kind > 0.85 else describe(rng, thing, size=0.0)
    more = f" {rng.choice(PHRASES_OF_MOTION)}" if kind > 0.5 else ""
    return Example(frame, claim.text + more, claim)


def targets_of(example: Example, every: bool = False) -> Targets:
    """The objects that the sentence names, or every one of the frame."""
    masks = example.frame.masks if every else example.frame.masks[example.truth]
    boxes = centre_and_size(last_pixel_boxes(torch.from_numpy(masks))) / torch.tensor([WIDTH, HEIGHT] * 2)
    return Targets(boxes, cells_of(masks, STRIDE))


def _losses(model: ShapesGdino, tokenizer: Any, batch: Sequence[Example]) -> dict[str, Tensor]:
    """The terms of the last layer, what objects are, and `loss`, the weighted sum over the terms of all layers and this."""
    targets = [targets_of(one) for one in batch]
    predicted = model.predict(tokenizer, batch)
    *first, last, encoder = (detection_losses(*layer, targets) for layer in zip(predicted, model.tokens, strict=True))
    classes, sentences = model.class_loss(batch), model.sentence_loss(predicted, batch)
    total = CLASS_WEIGHT * classes + SENTENCE_WEIGHT * sentences + weighted(last)
    for terms in (*first, encoder):
        # Their masks are not drawn, see `TrainingHead`.
        total = total + weighted({name: value for name, value in terms.items() if name not in MASK_TERMS})
    return {**last, "classes": classes, "sentences": sentences, "loss": total}


if __name__ == "__main__":
    run_command(gdino_shapes)
