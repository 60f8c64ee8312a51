"""A released checkpoint of images: its enhancer was never trained, so neither stage has one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from released_referdino import RELEASED_SINGLE, shared_grounding, single_frame_file
from tiny_sam2 import without_gpu
from tiny_tuning import make_settings, work

from rvos_cache.trackers.referdino import ReferDinoHead
from rvos_cache.trackers.referdino.enhancer import Enhancer
from rvos_cache.trackers.referdino.settings import GdinoQueriesSettings
from rvos_cache.trackers.referdino.start import first_head, load_start
from rvos_cache.trackers.referdino.tracker import GdinoQueries
from rvos_cache.trackers.referdino.upstream import RECORD_FILE, load_head
from rvos_select.cli.train import import_referdino as command
from rvos_select.runs.checkpoint import load_selector, run_cards


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    with without_gpu():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The imported run, and what the command prints."""
    folder = tmp_path_factory.mktemp("images")
    words = [str(single_frame_file()), "--grounding", str(shared_grounding()), "--out", str(folder / "run")]
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    return folder / "run", result.output


def test_an_untrained_enhancer_is_listed_and_left_out(run: tuple[Path, str]) -> None:
    folder, printed = run
    state = torch.load(single_frame_file(), weights_only=True)["model_state_dict"]
    number = sum(name.startswith("temporal_decoder.") for name in state)
    assert (
        number == RELEASED_SINGLE
        and f"not read: {number} tensors of the enhancer" in printed
        and "temporal_layers is 0" in printed
    )
    assert json.loads((folder / "upstream" / RECORD_FILE).read_text())["untrained"] == number
    head = load_head(str(folder / "upstream"))
    assert head is not None and head.sizes.temporal_layers == 0 and not list(head.enhancer.parameters())
    assert not [name for name in head.state() if name.startswith("temporal_decoder.")]
    # The mask decoder is the file's.
    assert torch.equal(head.mask_decoder.state_dict()["0.norm1.bias"].cpu(), state["mask_decoder.0.norm1.bias"])
    selector = load_selector(folder)
    assert selector.config.temporal_layers == 0 and {name.partition(".")[0] for name in selector.state_dict()} == {"box"}
    assert json.loads((folder / "settings.json").read_text())["resolved"]["config"]["temporal_layers"] == 0
    # ask and predict expect tracks of images, and extraction warns of others.
    assert run_cards(folder)["tracks"].settings["resizing"] == "image"
    settings = {"checkpoint": str(folder / "upstream"), "masks": "head", "keep_ratio": 0.4, "short_side": 32}
    with pytest.warns(UserWarning, match="upstream: was trained with resizing=image; extract with --set resizing=image$"):
        GdinoQueries(GdinoQueriesSettings(**settings))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GdinoQueries(GdinoQueriesSettings(**settings, resizing="image"))


@pytest.mark.parametrize("name", ["norm.1.weight", "layer.0.decoder.norm2.bias", "layer.1.self_attn.out_proj.bias"])
def test_an_enhancer_that_a_step_has_changed_is_a_trained_one(name: str) -> None:
    torch.manual_seed(0)
    enhancer = Enhancer(64, 32, 2)
    assert enhancer.is_untrained() and not Enhancer(64, 32, 0).is_untrained()
    with torch.no_grad():
        enhancer.get_parameter(name)[3] += 1e-6
    assert not enhancer.is_untrained()


def test_a_step_of_an_optimiser_makes_it_a_trained_one() -> None:
    torch.manual_seed(0)
    enhancer = Enhancer(64, 32, 1)
    optimizer = torch.optim.AdamW(enhancer.parameters(), lr=1e-4, weight_decay=1e-4)
    enhancer(torch.randn(1, 3, 2, 64), torch.randn(1, 3, 64)).square().mean().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert not enhancer.is_untrained()


def test_clips_get_a_new_enhancer_and_images_none(run: tuple[Path, str]) -> None:
    upstream = str(run[0] / "upstream")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start = load_start(make_settings(checkpoint=upstream, temporal_layers=2))
    assert start.live.head.sizes.temporal_layers == 2 and start.live.head.enhancer.is_untrained()
    assert [name for name in start.trained if "enhancer" in name]
    # Images: no new one, and a trained one stays as it is.
    one = make_settings(frames=1, temporal_layers=2)
    assert load_start(one).live.head.sizes.temporal_layers == 0
    start = load_start(make_settings(checkpoint=str(work() / "gdino"), temporal_layers=2))
    old: ReferDinoHead = start.live.head
    kept = first_head(start.live.grounding, old, one)
    assert torch.equal(kept.enhancer.state_dict()["norm.1.weight"], old.enhancer.state_dict()["norm.1.weight"])
    assert kept.sizes.temporal_layers == 2
