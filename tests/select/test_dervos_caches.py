"""DeRVOS: which caches and checkpoints fit, and what is said of those that do not."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_sam2
import torch
from dervos_caches import PIXELS, TINY, whole, write_dervos_caches
from tiny_beit3 import SPM, official_tensors
from tiny_dervos import SMALL

from rvos_cache.errors import InputError
from rvos_cache.store import read_card
from rvos_cache.text.beit3.convert import convert_beit3
from rvos_select.contracts.selector_case import SelectorCase
from rvos_select.data.cards import CacheCards
from rvos_select.selectors.dervos import Dervos, DervosConfig
from rvos_select.selectors.dervos.beit3 import NAME


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    """As in the other tests of DeRVOS on caches."""
    with tiny_sam2.without_gpu():
        yield


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> SelectorCase:
    tracks, texts = write_dervos_caches(tmp_path_factory.mktemp("dervos"))
    return SelectorCase("dervos", TINY, tracks=tracks, texts=texts)


def cards(caches: tuple[Path, Path]) -> CacheCards:
    return CacheCards([read_card(caches[0])], [read_card(caches[1])])


def test_a_moved_checkpoint_is_read_from_rvos_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = write_dervos_caches(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "beit3").rename(tmp_path / "elsewhere/beit3")
    config = {**SMALL, "token_channels": 16, "word_channels": 64, "side": PIXELS}
    with pytest.raises(InputError, match="BEiT-3 checkpoint .*: there is no such folder, nor one in RVOS_CHECKPOINTS"):
        Dervos(DervosConfig(**config)).bind(cards(caches))
    monkeypatch.setenv("RVOS_CHECKPOINTS", str(tmp_path / "elsewhere"))
    model = Dervos(DervosConfig(**config))
    model.bind(cards(caches))
    assert NAME in model.frozen
    # Other weights under the same name.
    shutil.rmtree(tmp_path / "elsewhere/beit3")
    write_other_beit3(tmp_path / "elsewhere/beit3")
    with pytest.raises(InputError, match="beit3 has digest .*, the text cache was made with"):
        Dervos(DervosConfig(**config)).bind(cards(caches))


def write_other_beit3(folder: Path) -> None:
    tensors = official_tensors()
    tensors["beit3.vision_embed.proj.bias"] += 1
    torch.save({"model": tensors}, folder.with_suffix(".pth"))
    convert_beit3(folder.with_suffix(".pth"), SPM, folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"producer": "roberta"}, "words of contract/train are of the encoder 'roberta'; give a text cache"),
        ({"weights": {}}, "are of the encoder 'beit3'"),
    ],
)
def test_words_of_another_encoder(case: SelectorCase, values: dict[str, Any], message: str) -> None:
    text = case.cards.text[0].model_copy(update=values)
    with pytest.raises(InputError, match=message):
        Dervos(case.selector.config).bind(CacheCards(case.cards.tracks, [text]))


def test_words_of_two_checkpoints(case: SelectorCase) -> None:
    text = case.cards.text[0]
    second = text.model_copy(update={"weights": {"beit3": "0" * 32}})
    with pytest.raises(InputError, match="the text caches are of 2 checkpoints of BEiT-3, expected one"):
        Dervos(case.selector.config).bind(CacheCards(case.cards.tracks, [text, second]))


def test_another_width(case: SelectorCase) -> None:
    config = case.selector.config.model_copy(update={"word_channels": 128})
    with pytest.raises(InputError, match="this BEiT-3 has 64 channels, the selector 128; --set config.word_channels=64"):
        Dervos(config).bind(case.cards)


@pytest.mark.parametrize(
    ("settings", "dims", "message"),
    [
        ({"square": 64, "resample": "bicubic"}, None, "frames of 64 x 64 by bicubic, the selector reads 48 x 48 by bicubic"),
        (
            {"square": 48},
            None,
            "48 x 48 by bilinear, the selector reads 48 x 48 by bicubic, .* --set square=48 --set resample=bicubic",
        ),
        ({"short_side": 48}, None, "its frames are not resized to a square"),
        ({}, ["T", 2, 3, 6], "f_mask_pooled of 2 x 3 cells, expected a square"),
        ({}, ["T", 2, 2, 6], "of 2 x 2 cells, BEiT-3 has 3 x 3 patches .* --set pool=3, or .* --set square=32"),
        ({}, ["T", 3, 3, 7], "of 7 channels, the selector has 6"),
        ({}, ["T", "h", "w", 6], "expected a number at position 1"),
    ],
)
def test_caches_that_do_not_fit(case: SelectorCase, settings: dict[str, Any], dims: list[Any] | None, message: str) -> None:
    card = case.cards.tracks[0]
    specs = [{**s, "dims": dims} if dims and s["name"] == "f_mask_pooled" else s for s in card.feature_specs]
    card = card.model_copy(update={"settings": settings or card.settings, "feature_specs": specs})
    with pytest.raises(InputError, match=message):
        Dervos(case.selector.config).bind(CacheCards([card], case.cards.text))


def test_matching_can_do_without_soft_masks(case: SelectorCase) -> None:
    assert "--set config.match_cost=counts" in case.selector.advice("measured.soft_area") and not case.selector.advice("pixels")


def test_frames_by_another_filter_are_warned_of(case: SelectorCase) -> None:
    card = case.cards.tracks[0].model_copy(update={"settings": {"square": 48}})
    cards = CacheCards([card], case.cards.text)
    with pytest.warns(UserWarning, match="resized by bilinear, BEiT-3 was trained with bicubic; .* --set resample=bicubic"):
        assert Dervos.config_values({}, cards)["resample"] == "bilinear"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Dervos.config_values({"resample": "bilinear"}, cards)
        Dervos.config_values({"understanding": "words"}, cards)
        Dervos.config_values({}, case.cards)


def test_no_bind(case: SelectorCase) -> None:
    with pytest.raises(ValueError, match="needs bind"):
        Dervos(case.selector.config)(whole(case.selector, case.samples[0]))
