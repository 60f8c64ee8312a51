"""The small DVIS++ and BEiT-3 of moving shapes: their losses, and that their folders are those of the converters."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import beit3_shapes, dvis_head, dvis_segmenter, dvis_shapes, shapes_scores
from pipelines import dervos_shapes as dervos_page
from pipelines.clip_shapes import Frame
from pipelines.dervos_shapes import ROWS, dervos_shapes
from pipelines.dvis_segmenter import GEOMETRY, SIDE, MapHeads, cell_places, centres, place_loss, places_of
from pipelines.shapes_segmenter import CLASSES, FRAME_QUERIES, ShapesVideo, class_loss, draw_video
from pipelines.shapes_words import Claim, Description, phrases
from rvos_cache.errors import InputError
from rvos_cache.shapes.language import NUMBERS
from rvos_cache.shapes.scene import COLOURS, SHAPES
from rvos_cache.store import read_card
from rvos_cache.system.device import device
from rvos_cache.tensors import read_tensors
from rvos_cache.text.beit3 import Beit3Tokenizer
from rvos_cache.text.beit3.tokenizer import UNKNOWN
from rvos_cache.trackers.dvis.checkpoint import load_dvis
from rvos_cache.trackers.mask2former.segmenter import SegmentedFrames


def test_places_by_hand() -> None:
    shares = torch.zeros(1, 2, 4, 8)
    shares[0, 0, 2:, :4] = 1  # the lower left quarter
    where, visible = places_of(shares)
    assert torch.allclose(where[0, 0], torch.tensor([-0.5, 0.5, math.log(0.5)])) and visible.tolist() == [[True, False]]
    assert place_loss(where + 0.5, shares) == pytest.approx(0.5)
    assert place_loss(where, 0 * shares) == 0


def test_the_place_of_a_cell_is_that_of_its_largest_object() -> None:
    masks = torch.zeros(2, 96, 160)
    masks[0, :12, :20], masks[1, :24, 40:60], masks[1, 12:24, 20:24] = 1, 1, 1
    places, inside = cell_places([masks, masks[:0]], 20)
    assert inside.shape == (2, 8, 8) and not inside[1].any()
    assert inside[0].nonzero().tolist() == [[0, 0], [0, 2], [1, 2]]
    own = torch.tensor([-0.875, -0.875, 0.5 * math.log(1 / 64)])
    other = torch.tensor([0.2 * -0.625 / 2.2 + 2 * -0.375 / 2.2, -0.75 + 0.2 * 0.125 / 2.2, 0.5 * math.log(2.2 / 64)])
    assert torch.allclose(places[0, 0, 0], own, atol=1e-5) and torch.allclose(places[0, :2, 2], other, atol=1e-5)
    assert torch.allclose(centres(8, 8)[0, 0], own[:2])


def test_maps_are_asked_for_objects_and_their_places() -> None:
    """Maps that are the answers themselves have no loss; with the classes or the places of others they have."""
    masks = [torch.zeros(2, 96, 160), torch.zeros(1, 96, 160)]
    masks[0][0, :12, :20], masks[0][1, 12:24, 140:], masks[1][0, 48:72, :40] = 1, 1, 1
    labels = [torch.tensor([7, 40]), torch.tensor([13])]
    where, _ = cell_places(masks, 20)
    answers = torch.zeros(2, 8, 8, 18)
    for t, (own, kinds) in enumerate(zip(masks, labels)):
        for mask, kind in zip(own, kinds.tolist()):
            cells = (GEOMETRY.shares(mask[None], 20)[0] > 0.5)[..., None]
            answers[t, ..., :13] += cells * one_hot([kind // len(SHAPES), len(COLOURS) + kind % len(SHAPES)])
    answers[..., 13:16], answers[..., 16:] = where, centres(8, 8)
    heads = MapHeads([18], True)
    for head, rows in ((heads.classes[0], range(13)), (heads.places[0], range(13, 18))):
        torch.nn.init.zeros_(head.bias)
        head.weight.data = torch.eye(18)[rows.start : rows.stop] * (30 if rows.start == 0 else 1)
    assert heads([answers.permute(0, 3, 1, 2)], masks, labels) < 1e-3
    exchanged = [labels[0].flip(0), labels[1]]
    assert heads([answers.permute(0, 3, 1, 2)], masks, exchanged) > 20
    answers[..., 13:] += 0.5
    assert heads([answers.permute(0, 3, 1, 2)], masks, labels).item() == pytest.approx(2, abs=1e-3)


def one_hot(numbers: list[int]) -> torch.Tensor:
    """(13,): 1 at the numbers."""
    return torch.nn.functional.one_hot(torch.tensor(numbers), 13).sum(0).float()


def test_the_class_loss_by_hand() -> None:
    logits = torch.zeros(3, len(CLASSES) + 1)
    logits[0, 5] = 2.0
    k = len(CLASSES)
    own = torch.tensor(float(np.exp(2) + k)).log() - 2
    nothing = torch.tensor(float(k + 1)).log()
    expected = (own + 2 * 0.1 * nothing) / 1.2
    assert torch.allclose(class_loss(logits, torch.tensor([0]), torch.tensor([5])), expected)


def test_every_word_of_the_language_is_one_token_of_the_small_beit3(tmp_path: Path) -> None:
    beit3_shapes.write_spm(tmp_path / "words.spm")
    tokenizer = Beit3Tokenizer.from_spm(tmp_path / "words.spm")
    texts = [*phrases(), *NUMBERS, *(f"the {c} {s}" for c in COLOURS for s in SHAPES), "all red crosses", "everything"]
    for text, (ids, spans) in zip(texts, tokenizer(texts)):
        assert UNKNOWN not in ids
        words = text.replace(",", " ,").replace("-", " - ").split()
        assert [text[a:b] for a, b in spans[1:-1]] == words
    ((ids, _),) = tokenizer(["zebra"])
    assert UNKNOWN not in ids and len(ids) > 5


def test_shares_and_classes_of_patches() -> None:
    """Two objects, of which the sentence is true of one; the third is undecided."""
    masks = np.zeros((3, 96, 160), bool)
    masks[0, :12, :20], masks[1, :24, 40:60], masks[2, 84:, 140:] = True, True, True
    things = (Description("red", "circle", "small"), Description("blue", "star", "big"), Description("red", "circle", ""))
    frame = Frame(np.zeros((96, 160, 3), np.uint8), masks, things)
    truth, counted, classes = beit3_shapes._targets(frame, Claim("", "red", "", "small"))
    grid = truth.reshape(8, 8)
    assert grid[0, 0] == pytest.approx(1) and grid.sum() == pytest.approx(1)
    assert not counted[-1] and counted.sum() == 63
    colours, shapes = classes.reshape(2, 8, 8)
    assert (colours[0, 0], shapes[0, 0]) == (list(COLOURS).index("red"), SHAPES.index("circle"))
    assert (colours[:2, 2] == list(COLOURS).index("blue")).all() and (colours >= 0).sum() == 4


def test_segments_belong_to_their_objects() -> None:
    """Owners are objects that the frame shows, each once."""

    class Exact:
        """A segmenter whose query n has the mask of object n + 1, from mask features that are the objects' masks."""

        def __init__(self, video: ShapesVideo) -> None:
            self.maps = torch.stack([GEOMETRY.shares(torch.from_numpy(m)) for m in video.masks], 1)
            self.labels, self.done = video.labels, 0

        def segment(self, images: torch.Tensor) -> object:
            t, a = len(images), self.maps.shape[1]
            maps, self.done = self.maps[self.done : self.done + t], self.done + t
            q = torch.roll(torch.eye(a), -1, 0).expand(t, a, a)
            return SegmentedFrames(q, maps, torch.cat([maps, torch.ones(t, 1, SIDE // 4, SIDE // 4)], 1))

        def norm(self, q: torch.Tensor) -> torch.Tensor:
            return q

        def mask_embed(self, q: torch.Tensor) -> torch.Tensor:
            return torch.cat([20 * q, torch.full((*q.shape[:2], 1), -10.0)], -1)

        def class_logits(self, q: torch.Tensor) -> torch.Tensor:
            return 10 * q @ torch.nn.functional.one_hot(self.labels, len(CLASSES) + 1).float()

    video = draw_video(0, 1)
    tracked = dvis_head.segment_video(Exact(video), video)  # type: ignore[arg-type]
    shown = torch.from_numpy(video.masks.any((2, 3)))
    objects = len(video.labels)
    for t, owners in enumerate(tracked.owners):
        for n, owner in enumerate(owners.tolist()):
            visible = tracked.shares[(n + 1) % objects, t].float().sum() > 1
            assert owner == ((n + 1) % objects if visible else -1) and (owner < 0 or shown[owner, t])


@pytest.mark.slow
def test_training_is_on_the_cpu_where_there_is_a_gpu_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dvis_head, "FRAMES", 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    folder = dvis_shapes.train_dvis(tmp_path / "dvis", 1, 2, 1, 2, 11)
    assert device() == torch.device("cuda")
    monkeypatch.undo()
    assert all(value.isfinite().all() for value in read_tensors(folder / "dvis_head.safetensors", "").values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dvis", "nothing"], "--dvis nothing: there is no such folder"),
        (["--beit3", "nothing"], "--beit3 nothing: there is no such folder"),
        (["--set", "config.width=-3"], "selector dervos: setting 'width'"),
    ],
)
def test_what_is_missing_or_wrong_is_said_before_anything_is_trained(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["page", "--out", str(tmp_path / "out"), *words])
    with pytest.raises(InputError, match=message):
        dervos_shapes(standalone_mode=False)
    assert not (tmp_path / "out").exists()


def test_the_progress_of_a_stage_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str | None] = []
    advance = dvis_segmenter.Progress.advance
    monkeypatch.setattr(
        dvis_segmenter.Progress, "advance", lambda self, title=None: titles.append(title) or advance(self, title=title)
    )
    weight = torch.nn.Parameter(torch.ones(1))
    dvis_segmenter.optimize(lambda: (weight**2).sum(), torch.optim.AdamW([weight]), 2, 1e-3, "tracker")
    assert [str(title).partition(" ")[0] for title in titles] == ["tracker,", "tracker,"]


def test_tracks_that_are_missing_are_advised_on_by_the_page_s_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: Any) -> None:
        raise InputError("none of the 4 videos has a track; look, then extract with another tracker or other settings")

    monkeypatch.setattr(dervos_page, "train_and_predict", none)
    monkeypatch.setattr(dervos_page, "write_shapes", lambda *a, **k: None)
    monkeypatch.setattr(dervos_page, "extract_all", lambda *a, **k: {})
    (tmp_path / "model").mkdir()
    words = ["--out", tmp_path / "out", "--dvis", tmp_path / "model", "--beit3", tmp_path / "model"]
    monkeypatch.setattr(sys, "argv", ["page", *map(str, words)])
    with pytest.raises(InputError, match="look, then train DVIS.* longer, with a larger --dvis-steps and another --out"):
        dervos_shapes(standalone_mode=False)


def test_scores_by_what_a_sentence_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claims = {"0": "right", "1": "right", "2": "up then left", "3": "left then up", "4": "looks"}
    sentences = {key: {"claim": own, "kind": "static" if own == "looks" else "motion"} for key, own in claims.items()}
    (tmp_path / "meta_expressions.json").write_text(json.dumps({"videos": {"v": {"expressions": sentences}}}))
    expected = {"v/0": "right", "v/1": "right", "v/2": "then", "v/3": "then"}
    assert shapes_scores.claims_of(tmp_path) == expected
    values = (0.1, 0.3), (0.5, 0.7), (0.2, 0.2), (0.8, 1.0), (1.0, 1.0)
    row = {"expressions": {f"v/{key}": {"j": j, "f": f} for key, (j, f) in enumerate(values)}}
    assert shapes_scores.show_claims({"own": row}, expected) == {"own": pytest.approx({"right": 0.4, "then": 0.55})}
    printed = capsys.readouterr().out
    assert "40.0" in printed and "55.0" in printed and "looks" not in printed


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_from_frames_to_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"videos": 5, "dvis-videos": 2, "dvis-steps": 2, "track-videos": 2, "track-steps": 2, "beit3-videos": 2}
    words = [word for k, v in {**sizes, "beit3-steps": 2}.items() for word in (f"--{k}", str(v))]
    small = {"epochs": 1, "clip.frames": 3, "config.width": 16, "config.hidden": 16, "config.cfma_layers": 1}
    words += [word for k, v in small.items() for word in ("--set", f"{k}={v}")]
    monkeypatch.setattr(sys, "argv", ["page", "--out", str(tmp_path / "out"), *words])
    dervos_shapes(standalone_mode=False)
    printed, stderr = capsys.readouterr()
    assert "train and predict words:" in stderr and "CFMA alone" in (tmp_path / "out/report/index.html").read_text()
    assert "motion alone" in printed and "the object of a static sentence" in printed
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    names = {*ROWS, "mean_cosine", "all_tracks", "oracle"}
    assert metrics.keys() == names | {"kinds", "claims"} and metrics["kinds"].keys() == metrics["claims"].keys() == names
    segmenter, head = load_dvis(str(tmp_path / "out/dvis"))
    assert segmenter.model.config.num_queries == FRAME_QUERIES and all(p.isfinite().all() for p in head.parameters())
    card = read_card(tmp_path / "out/cache/valid_u/text-beit3.zarr")
    assert card.settings["checkpoint"] == str(tmp_path / "out/beit3")
    assert (tmp_path / "out/report/index.html").is_file()
