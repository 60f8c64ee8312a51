"""DMVS: decoupled motion expression video segmentation on a frozen VITA (Fang et al., CVPR 2025).

Frame and video queries of the segmenter meet static and motion words; its best video queries become motion queries, which a
decoder classifies as referred or not and gives masks. What the paper leaves open follows the code of its relatives (MeViS's
LMPM, DsHmp, VITA) and is a setting. Letters as in `rvos_cache.types`; Nv video queries, Cm mask channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_cache.errors import InputError
from rvos_cache.media.geometry import FrameGeometry
from rvos_cache.trackers.vita.head import VitaHead
from rvos_select.data.batch import Batch
from rvos_select.data.cards import CacheCards
from rvos_select.data.transfer import HostCopy, copy_together
from rvos_select.losses.matching import assign_all
from rvos_select.merging.policy import Empty
from rvos_select.selectors.base import Selector
from rvos_select.selectors.dmvs.config import DmvsConfig
from rvos_select.selectors.dmvs.layers import (
    Keys,
    MaskMlp,
    MotionExpressionEncoder,
    MotionQueryLayer,
    Pooler,
    TextProjection,
    masked_mean,
)
from rvos_select.selectors.dmvs.masks import bytes_in_input, mask_logits, pair_losses, point_costs, predict_masks
from rvos_select.selectors.dmvs.tracks import query_labels
from rvos_select.selectors.dmvs.visible import VisibleObjects
from rvos_select.selectors.dmvs.vita import HEAD_NAME, VitaInput, video_queries, vita_head
from rvos_select.selectors.frozen import FrozenPart
from rvos_select.selectors.matching import IGNORED, NO_OBJECT, REFERRED, count_parts


class Decoded(NamedTuple):
    """What heads and losses read. layers: (layers, B, Q, C) after the shared norm; real: bool (B, Q); source: int64 (B, Q), the
    video query, or with frozen masks the track, that each motion query source as; None where it is not one."""

    layers: Tensor
    real: Tensor
    source: Tensor | None


class Dmvs(Selector):
    """Scores motion queries and predicts their masks, or with masks=frozen scores the cache's tracks."""

    Config = DmvsConfig
    threshold = 0.7
    top1_of_one = True

    def __init__(self, config: DmvsConfig) -> None:
        super().__init__(config)
        c = self.config
        self.word_projection = TextProjection(c.word_channels, c.width, c.dropout)
        own = c.sentence != "mean_shared"
        self.sentence_projection = TextProjection(c.word_channels, c.width, c.dropout) if own else None
        self.pooler = Pooler(c.word_channels) if c.sentence == "roberta_pooler" else None
        self.encoder = MotionExpressionEncoder(c.width, c.mee_form, c.mee_static, c.mee_motion) if c.mee else None
        self.motion_query = nn.Embedding(c.motion_queries, c.width) if c.init == "random" else None
        self.position = nn.Embedding(c.motion_queries, c.width) if c.position == "rank" else None
        videos = c.init != "video" if c.video_attention is None else c.video_attention
        self.decoder = nn.ModuleList(MotionQueryLayer(c.width, c.hidden, videos) for _ in range(c.layers))
        self.decoder_norm = nn.LayerNorm(c.width)
        self.class_head = nn.Linear(c.width, 2)
        self.mask_head = MaskMlp(c.width, c.token_channels) if c.masks == "drawn" else None
        self.input: VitaInput | None = None
        self._untrained = True
        self.register_load_state_dict_post_hook(_trained)  # type: ignore[no-untyped-call]

    @property
    def requires(self) -> tuple[str, ...]:  # type: ignore[override]
        """The parts of a Batch that it reads; after `bind`."""
        particles = ("particle_words",) if self.config.cues == "dmvs_particles" else ()
        always = ("spans", "static_words", "motion_words", *particles, "frames.q_f")
        if self.config.masks == "frozen":
            return (*always, "features.q_v", "features.logits", "features.query", *count_parts(self.config.match_scope))
        basis = ("features.mask_basis",) if self.input is not None and self.input.low_rank else ()
        return (*always, "frames.f_mask", *basis, "truth")

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Its logits are of queries with masks of their own, not of the tracks."""
        return self.config.masks == "drawn"

    @property
    def draw_threshold(self) -> float:  # type: ignore[override]
        """Score below which a query's mask is predicted only where it is an expression's best."""
        return self.config.draw_threshold

    @property
    def empty(self) -> Empty:  # type: ignore[override]
        """What is selected where no score is above the threshold."""
        return self.config.empty

    def frozen_parts(self, cards: CacheCards) -> Sequence[FrozenPart]:
        """VITA's head, where it is run, from the checkpoint that the caches' cards name.

        Raises InputError for caches that are not of one VITA.
        """
        c = self.config
        if c.masks == "frozen":
            return ()
        self.input = VitaInput.of(cards.tracks)
        return (vita_head(cards.tracks, c.width, c.token_channels),)

    def bound(self, cards: CacheCards) -> None:
        """The mask head starts as VITA's where `mask_init` says so and it has no weights of its own yet."""
        if self.config.mask_init == "vita" and self._untrained and self.mask_head is not None:
            own = [layer for layer in self.mask_head if isinstance(layer, nn.Linear)]
            for layer, source in zip(own, self.vita.mask_embed.layers):
                layer.load_state_dict(source.state_dict())

    @property
    def vita(self) -> VitaHead:
        """The frozen head. Raises ValueError before `bind`."""
        if HEAD_NAME not in self.frozen:
            raise ValueError("DMVS needs bind(cards) of its caches before it reads a batch")
        head = self.frozen[HEAD_NAME]
        assert isinstance(head, VitaHead)
        return head

    def _geometry(self, size: tuple[int, int]) -> FrameGeometry:
        if self.input is None:
            raise ValueError("DMVS needs bind(cards) of its caches before it reads a batch")
        return self.input.geometry(size)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, Q) of the last layer, the best class score's query first, or with frozen masks (B, N); their sigmoid is the
        softmax's probability of "referred". A track that is no candidate has 0, one that has no motion query -inf."""
        decoded = self.decode(batch)
        scores = self.class_head(decoded.layers[-1]).float()
        logits: Tensor = scores[..., REFERRED] - scores[..., NO_OBJECT]
        if self.draws:
            return logits
        assert decoded.source is not None
        out = torch.zeros(batch.track_mask.shape, device=logits.device).masked_fill(batch.track_mask, -torch.inf)
        return out.scatter(1, decoded.source, torch.where(decoded.real, logits, out.gather(1, decoded.source)))

    @torch.no_grad()
    def draw(self, batch: Batch, queries: Tensor) -> Iterator[Tensor]:
        """The masks of the K queries marked in bool (B, Q), row by row: bool (K, t, H, W), one chunk of frames after another.

        The expressions are of one video. Raises ValueError for several, or with frozen masks.
        """
        if self.mask_head is None or len(batch.tokens) != 1:
            raise ValueError(
                f"masks={self.config.masks}, {len(batch.tokens)} videos: expected a module that predicts masks, and one video"
            )
        embed = self._in_basis(self.mask_head(self.decode(batch).layers[-1][queries]), batch, 0)
        yield from predict_masks(embed, batch.frames["f_mask"][0], self._geometry(batch.sizes[0]), self.config.chunk)

    def decode(self, batch: Batch) -> Decoded:
        """The motion queries after each layer."""
        c = self.config
        words, mask, sentence, is_word = self._text(batch)
        q_f = torch.stack([frames[:] for frames in batch.frames["q_f"]]).to(words.device).float()
        facts = batch.mask_facts
        frame_mask = None if facts.frames_real else batch.frame_mask
        q_v, scores = self._video_queries(batch, q_f, frame_mask)
        b = len(words)
        expression = sentence[:, None]
        if self.encoder is not None:
            static, motion = self._cues(batch, is_word)
            cues = torch.cat([words, expression], 1)
            expression = self.encoder(expression, cues, static, motion, q_f, frame_mask, q_v)
        x, real, source = self._motion_queries(batch, sentence, q_v, scores)
        position = None if self.position is None else self.position.weight[: x.shape[1]]
        if c.position == "query":
            assert source is not None
            position = self.vita.query_embed.weight[source]
        every_real = self.draws or (facts.tracks_real and facts.used is None) or bool(real.all())
        query_keys, word_keys = None if every_real else Keys.of(real), None if facts.words_real else Keys.of(mask)
        layers = []
        for layer in self.decoder:
            x = layer(x, words, word_keys, expression, q_v.expand(b, -1, -1), position, query_keys)
            layers.append(x)
        return Decoded(self.decoder_norm(torch.stack(layers)), real, source)

    def _text(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """F_w (B, L, C), its mask, F_se (B, C), and which words are none of the encoder's special ones, bool (B, L).

        Raises InputError for sentence=roberta_pooler where a text begins with a word.
        """
        words = batch.words[:, : self.config.max_length].to(self.class_head.weight.dtype)
        mask = batch.word_mask[:, : self.config.max_length]
        assert batch.spans is not None
        spans = batch.spans[:, : self.config.max_length]
        is_word = mask & (spans[..., 1] > spans[..., 0])
        projection = self.word_projection if self.sentence_projection is None else self.sentence_projection
        if self.pooler is None:
            return self.word_projection(words), mask, projection(_mean_word(words, mask, is_word)), is_word
        if bool(is_word[:, 0].any()):
            raise InputError(
                "sentence=roberta_pooler reads the token before the first word, which these texts do not have; "
                "extract-text with --encoder roberta, or --set config.sentence=mean_own"
            )
        return self.word_projection(words), mask, projection(self.pooler(words)), is_word

    def _cues(self, batch: Batch, is_word: Tensor) -> tuple[Keys, Keys]:
        """Which of L + 1 keys are static and motion cues; the last one is the sentence."""
        assert batch.static_words is not None and batch.motion_words is not None
        motion = batch.motion_words[:, : is_word.shape[1]] & is_word
        static = is_word & (~motion if self.config.cues == "dshmp" else batch.static_words[:, : is_word.shape[1]])
        if self.config.cues == "dmvs_particles":
            assert batch.particle_words is not None
            of_verbs = batch.particle_words[:, : is_word.shape[1]] & is_word
            static, motion = static & ~of_verbs, motion | of_verbs
        sentence = self.config.append_sentence
        static_keys, motion_keys = (Keys.of(F.pad(cue, (0, 1), value=sentence), every=sentence) for cue in (static, motion))
        return static_keys, motion_keys

    def _video_queries(self, batch: Batch, q_f: Tensor, frame_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Video queries (V, Nv, C) and their class scores (V, Nv), V being B or 1. Frozen masks are those of the whole video's
        queries, and a clip's queries need not mean the same objects."""
        if self.draws:
            return video_queries(self.vita, q_f, frame_mask)
        return batch.features["q_v"].float(), batch.features["logits"].float().softmax(-1)[..., :-1].amax(-1)

    def _motion_queries(
        self, batch: Batch, sentence: Tensor, q_v: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """First motion queries (B, Q, C), `real` and `source` of `Decoded`; Eqs. 5 to 7."""
        b, count = len(sentence), self.config.motion_queries
        if self.config.init != "video":
            x = sentence[:, None] if self.motion_query is None else self.motion_query.weight.expand(b, -1, -1)
            return x.expand(-1, count, -1), torch.ones(b, count, dtype=torch.bool, device=x.device), None
        query = torch.arange(scores.shape[1], device=scores.device)[None] if self.draws else batch.features["query"].long()
        real = torch.ones_like(query, dtype=torch.bool) if self.draws else batch.track_mask
        ranked = scores.gather(1, query.expand(len(scores), -1)).expand(b, -1).masked_fill(~real, -torch.inf)
        source = torch.sort(ranked, dim=1, descending=True, stable=True).indices[:, :count]
        chosen = query.expand(b, -1).gather(1, source)
        x = q_v.expand(b, -1, -1).gather(1, chosen[..., None].expand(-1, -1, q_v.shape[-1]))
        return x, real.expand(b, -1).gather(1, source), source

    def _in_basis(self, embed: Tensor, batch: Batch, owner: int) -> Tensor:
        """Mask embeddings (..., Cm) as the cache's mask features want them: as they are, or in its low-rank basis (..., r)."""
        basis = batch.features.get("mask_basis")
        return embed if basis is None else embed.float() @ basis[min(owner, len(basis) - 1)].to(embed.device)

    def normalisers(self, batch: Batch) -> dict[str, float]:
        """Of predicted masks the numbers of expressions and of objects that a frame shows; frozen masks have means over expressions."""
        if not self.draws or batch.truth is None:
            return {}
        return VisibleObjects(batch).normalisers

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars: "loss" = class_weight · "class" + bce_weight · "bce" + dice_weight · "dice", each summed over the decoder's
        layers. "class" is the mean over the expressions, the other two over the objects of the batch, or with `Batch.normalisers`
        the sum over the batch's divided by the numbers of the step; frozen masks have neither of the two.

        Raises ValueError without ground truth.
        """
        c = self.config
        targets = batch.truth if self.draws else batch.overlap
        if targets is None:
            raise ValueError(
                "DMVS's loss needs Batch.truth, or with masks=frozen Batch.overlap; this split hides its ground truth"
            )
        visible = VisibleObjects(batch) if self.draws else None
        decoded = self.decode(batch)
        layers = decoded.layers if c.deep_supervision else decoded.layers[-1:]
        with torch.autocast(layers.device.type, enabled=False):
            classes = _in_float(self.class_head, layers)
            labels = torch.full(classes.shape[:-1], NO_OBJECT, device=layers.device)
            counted = batch.word_mask.any(1)
            if visible is None:
                has_loss = self._match_tracks(batch, decoded, classes, labels)
                value = self._class_loss(classes, labels, has_loss, counted) / counted.sum().clamp(min=1)
                return {"loss": c.class_weight * value, "class": value}
            embed = _in_float(self.mask_head, layers)
            sums = self._match_masks(batch, classes, embed, labels, visible.counts.objects)
            totals = batch.normalisers or visible.normalisers
            bce, dice = (each / max(totals["objects"], 1) for each in sums)
            value = self._class_loss(classes, labels, decoded.real, counted) / max(totals["expressions"], 1)
            loss = c.class_weight * value + c.bce_weight * bce + c.dice_weight * dice
            return {"loss": loss, "class": value, "bce": bce, "dice": dice}

    def _class_loss(self, classes: Tensor, labels: Tensor, real: Tensor, counted: Tensor) -> Tensor:
        """Cross-entropy of classes (layers, B, Q, 2): the weighted mean over an expression's `real` queries, bool (B, Q) or
        (layers, B, Q), the sum over the `counted` expressions, bool (B,), and over layers."""
        each = F.cross_entropy(classes.movedim(-1, 1), labels, reduction="none")
        weight = torch.where(labels == NO_OBJECT, self.config.no_object_weight, 1.0) * (real & counted[:, None])
        means = (each * weight).sum(-1) / weight.sum(-1).clamp(min=self.config.no_object_weight)
        return means.sum()

    def _match_tracks(self, batch: Batch, decoded: Decoded, classes: Tensor, labels: Tensor) -> Tensor:
        """Mark the matched queries, and with iou_multi all that cover an object, in labels (layers, B, Q), costs from the cache's
        counts of binary masks. Returns which queries have a loss, bool (layers, B, Q): real ones, without duplicates of an
        object's track."""
        assert batch.overlap is not None and decoded.source is not None
        # All that the host needs in one copy; float64 holds the numbers of tracks exactly.
        referred = classes.detach().softmax(-1)[..., REFERRED].double()
        values = torch.cat([referred.flatten(), decoded.real.flatten(), decoded.source.flatten()])
        probabilities, real, source = (
            HostCopy(values).read().split([referred.numel(), decoded.real.numel(), decoded.real.numel()])
        )
        shape = decoded.real.shape
        host = query_labels(
            probabilities.float().view(referred.shape),
            real.bool().view(shape),
            source.long().view(shape),
            batch.overlap,
            self.config,
        )
        (own,) = copy_together([host], labels.device)
        labels.copy_(own.masked_fill(own == IGNORED, NO_OBJECT))
        return decoded.real & (own != IGNORED)

    def _match_masks(
        self, batch: Batch, classes: Tensor, embed: Tensor, labels: Tensor, visible: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Mark the matched queries in labels (layers, B, Q); sums over the objects of BCE and Dice of the matched masks, embed
        (layers, B, Q, Cm). visible: of each expression its objects that the frames show.

        The costs of all expressions are computed before the host reads them, once, and then the losses.
        """
        c = self.config
        layers, _, queries, _ = embed.shape
        clips = [self._clip(batch, b, objects) for b, objects in enumerate(visible) if objects]
        referred = c.cost_class * classes.detach().softmax(-1)[..., REFERRED, None]
        costs = []
        for clip in clips:
            own_embed = self._in_basis(embed[:, clip.row].detach().flatten(0, 1), batch, clip.owner)
            bce_cost, dice_cost = point_costs(own_embed, clip.features, clip.truth, c.points)
            both = c.cost_bce * bce_cost + c.cost_dice * dice_cost
            costs.append(both.reshape(layers, queries, -1) - referred[:, clip.row])
        matched = assign_all(costs)
        chosen = [
            [(layer * len(visible) + clip.row) * queries + row for layer, (rows, _) in enumerate(own) for row in rows]
            for clip, own in zip(clips, matched)
        ]
        bce, dice = embed.new_zeros(()), embed.new_zeros(())
        if not clips:
            return bce, dice
        (index,) = copy_together([torch.tensor([*chain.from_iterable(chosen)])], embed.device)
        labels.view(-1).index_fill_(0, index, REFERRED)
        pairs = embed.flatten(0, 2).index_select(0, index).split([len(own) for own in chosen])
        for clip, own_pairs, own in zip(clips, pairs, matched):
            logits = mask_logits(self._in_basis(own_pairs, batch, clip.owner), clip.features)
            losses = pair_losses(logits, clip.truth, [a for _, columns in own for a in columns], c.points)
            bce, dice = bce + losses[0], dice + losses[1]
        return bce, dice

    def _clip(self, batch: Batch, row: int, objects: Sequence[int]) -> _Clip:
        """The masks of an expression's `objects`, and the mask features of its frames."""
        assert batch.truth is not None
        owner, masks = min(row, len(batch.tokens) - 1), batch.truth[row]
        shown = masks if len(objects) == len(masks) else torch.stack([masks[a] for a in objects])
        truth = bytes_in_input(shown, self._geometry(batch.sizes[owner]))
        features = batch.frames["f_mask"][owner][:].to(batch.words.device)
        return _Clip(row, owner, truth.to(features.device), features)


class _Clip(NamedTuple):
    """The frames of the expression `row`, those of the video `owner`. truth: uint8 (A, T, *padded); features: (T, h, w, r)."""

    row: int
    owner: int
    truth: Tensor
    features: Tensor


def _mean_word(words: Tensor, mask: Tensor, is_word: Tensor) -> Tensor:
    """The mean (B, D) of the words of a text; of one of special tokens alone, of these."""
    return masked_mean(words, torch.where(is_word.any(1, keepdim=True), is_word, mask))


def _in_float(head: nn.Module | None, x: Tensor) -> Tensor:
    assert head is not None
    out: Tensor = head(x.float())
    return out


def _trained(module: nn.Module, _: Any) -> None:
    module._untrained = False  # type: ignore[assignment]
