"""The model that tune-referdino trains: which parameters, what noise, what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden_referdino import TOLERANCE, error, golden, released_tensors
from safetensors.torch import load_file
from tiny_sam2 import without_gpu
from tiny_tuning import batch_of, finished, gradients, loss_of, make_settings, shapes
from torch import Tensor
from transformers import GroundingDinoConfig, SwinConfig

from rvos_cache.errors import InputError
from rvos_cache.trackers.referdino import ReferDinoHead, align
from rvos_cache.trackers.referdino import live as live_module
from rvos_cache.trackers.referdino.condinst import CondInst
from rvos_cache.trackers.referdino.live import MaskInputs, layer_output
from rvos_cache.trackers.referdino.settings import GdinoQueriesSettings
from rvos_cache.trackers.referdino.stages import FourStageGroundingDino
from rvos_cache.trackers.referdino.start import Start, load_start, make_live
from rvos_cache.trackers.referdino.tracker import GdinoQueries
from rvos_cache.trackers.referdino.trained import counts, select_trained, set_mode
from rvos_cache.trackers.referdino.tune_settings import PRESETS, tune_settings
from rvos_cache.trackers.referdino.upstream import Upstream
from rvos_cache.tuning import run, tune
from rvos_cache.tuning.run import saved_tensors

pytestmark = pytest.mark.slow

SWIN_B = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12, "image_size": 384}


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    with without_gpu():
        yield


@pytest.fixture(scope="module")
def tuned() -> Start:
    """The finished run's model before LoRA is merged, without noise."""
    start = load_start(make_settings())
    stored = load_file(finished() / "last" / "trained.safetensors")
    with torch.no_grad():
        for name, tensor in saved_tensors(start).items():
            tensor.copy_(stored[name])
    start.live.eval()
    return start


def real_size(preset: str, **values: Any) -> dict[str, int]:
    """Trained values of each group at the released sizes, without their memory."""
    settings = tune_settings({"preset": preset, **values})
    swin = SwinConfig(out_indices=[2, 3, 4], **(SWIN_B if preset.endswith("b") else {}))
    with torch.device("meta"):
        live = make_live(FourStageGroundingDino(GroundingDinoConfig(backbone_config=swin)), None, settings)
    return counts(select_trained(live, settings.frames == 1, settings.left_out))


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("mevis_swint", 15_335_924),
        ("mevis_swinb", 15_337_012),
        ("coco_swinb", 9_808_180),
        ("a2d_swinb", 9_808_180),
        ("a2d_swint", 6_587_636),
    ],
)
def test_the_trained_parameters_are_the_released_ones(preset: str, expected: int) -> None:
    number = real_size(preset)
    assert sum(number.values()) == expected
    assert number["lora"] == (1_294_336 if preset == "a2d_swint" else 4_513_792)
    assert number["norm0"] == (256 if preset.endswith("b") else 192)
    assert number["pyramid"] == (1_073_584 if preset.endswith("b") else 1_072_560)
    others = ("box", "feat_map", "bert_norms", "mask_decoder")
    assert [number[name] for name in others] == [132_612, 196_864, 38_400, 3_852_672]


def test_ablations_train_fewer_parameters() -> None:
    attention = 4 * (256 * 256 + 256)
    deformable = 3 * (256 * 256 + 256) + 256 * 128 + 128
    decoder = 3_852_672
    expected = {
        ("temporal_layers", 0): ("enhancer", 0),
        ("text_ca", False): ("mask_decoder", decoder - 3 * attention),
        ("deform_ca", False): ("mask_decoder", decoder - 3 * deformable),
        ("mask_head", "dot"): ("mask_decoder", 0),
        ("mask_head", "condinst"): ("mask_decoder", 257 * (258 * 8 + 8 + 8 * 8 + 8 + 8 + 1)),
    }
    for (name, value), (group, count) in expected.items():
        assert real_size("mevis_swint", **{name: value})[group] == count


def test_the_presets_are_the_released_configurations() -> None:
    settings = {name: tune_settings({"preset": name}) for name in PRESETS}
    assert list(settings["mevis_swinb"].costs.model_dump().values()) == [1, 3, 3, 5, 4, 4]
    a2d = settings["a2d_swint"]
    assert list(a2d.costs.model_dump().values()) == [4, 5, 2, 2, 5, 5]
    assert list(a2d.weights.model_dump().values()) == [4, 5, 2, 5, 2, 5]
    for name, one in settings.items():
        assert (one.frames == 1) == name.startswith(("coco", "a2d", "jhmdb"))
        assert one.checkpoint.endswith("base" if name.endswith("b") else "tiny")
        assert name.startswith("a2d_swint") or one.costs == one.weights
    assert settings["ytvos_swint"].lr == settings["coco_swinb"].lr == a2d.lr == 5e-5
    assert (settings["davis_swint"].frames, settings["davis_swinb"].frames) == (3, 6)
    # 16 clips in a step, as 8 GPUs of 2.
    ytvos = tune_settings({"preset": "ytvos_swinb", "accumulate": 16})
    assert [ytvos.rate(epoch) for epoch in (7, 8)] == pytest.approx([4e-4, 4e-5])
    assert tune_settings({"preset": "a2d_swint", "costs": {"cls": 7}}).costs.model_dump()["l1"] == 5
    with pytest.raises(InputError, match="no room for a frame before and one after"):
        tune_settings({"frames": 2})
    with pytest.raises(InputError, match="mask_head=dot has no such attention"):
        tune_settings({"mask_head": "dot", "text_ca": False})


def test_noise_is_that_of_the_released_code() -> None:
    swin = SwinConfig(out_indices=[2, 3, 4])
    with torch.device("meta"):
        live = make_live(FourStageGroundingDino(GroundingDinoConfig(backbone_config=swin)), None, tune_settings({}))
    set_mode(live, noise=True)
    rates = [m.drop_path.drop_prob for m in live.grounding.modules() if type(m).__name__ == "SwinLayer"]
    assert rates == pytest.approx([0.2 * i / 11 for i in range(12)])
    noisy = {name for name, m in live.named_modules() if m.training and not list(m.children())}
    dropping = {name for name in noisy if type(live.get_submodule(name)).__name__.endswith(("DropPath", "Dropout"))}
    # 12 blocks of Swin, 6 fusion layers, and BERT's dropout; none in the encoder's and the decoder's own layers.
    assert sum(".swin." in name for name in dropping) == 12
    assert sum("fusion_layer.drop_path" in name for name in dropping) == 6
    others = {name for name in dropping if ".swin." not in name and "fusion_layer.drop_path" not in name}
    in_bert = {name for name in others if "text_backbone" in name}
    assert in_bert
    assert all(name.startswith("head.") for name in others - in_bert)
    assert {m.p for name in others - in_bert if (m := live.get_submodule(name)) and hasattr(m, "p")} <= {0.0}
    set_mode(live, noise=False)
    assert not any(m.training for m in live.grounding.modules())


@torch.no_grad()
def test_noise_makes_steps_differ() -> None:
    settings = make_settings()
    start = load_start(settings)
    batch = batch_of(start, settings)
    for noise in (True, False):
        set_mode(start.live, noise)
        values = [float(loss_of(start, batch, settings)) for _ in range(2)]
        assert (values[0] == values[1]) is not noise


@pytest.mark.parametrize("case", ["d1", "d3"])
@torch.no_grad()
def test_the_layers_are_those_of_the_released_forward(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("queries", "reference", "text", "text_mask", "real", "map4", "map8", "map16", "map32")
    if any(f"{case}.{name}" not in golden() for name in names):
        pytest.skip(f"{case} is only in the project's folder of golden values")
    g = {name: golden()[f"{case}.{name}"] for name in names}
    head = ReferDinoHead.from_official(released_tensors("head"))
    features = head.features([g["map4"], g["map8"], g["map16"], g["map32"]])
    masks = MaskInputs(features, g["real"], g["text"], g["text_mask"])
    # The released tracker also reads padded words.
    monkeypatch.setattr(live_module, "align", lambda *a, text_mask, **k: align(*a, **k))
    output = layer_output(head, g["queries"], g["reference"], masks)
    assert error(f"{case}.logits", output.logits) < TOLERANCE
    assert error(f"{case}.boxes", output.boxes) < TOLERANCE
    assert error(f"{case}.mask_logits", output.masks) < TOLERANCE


@torch.no_grad()
def test_the_exported_model_is_the_trained_one(tuned: Start) -> None:
    # Without padding, as the tracker reads frames.
    settings = make_settings(short_side=96)
    batch = batch_of(tuned, settings)
    assert batch.real.all()
    live = tuned.live(batch.images, batch.real, batch.ids, batch.words).layers[-1]
    upstream = Upstream(str(finished() / "upstream"), settings.keep_ratio, settings.prune_score)
    maps = upstream.encode(batch.images)
    caption = tuned.tokenizer.decode(batch.ids[0], skip_special_tokens=True)
    queries = upstream.read(maps.levels, caption)
    head = upstream.head
    assert head is not None
    decoder = upstream.model.model.decoder.decoder
    for own, shared in zip(head.reference_points_head.parameters(), decoder.reference_points_head.parameters()):
        assert torch.equal(own, shared)
    shapes_ = [(level.shape[2], level.shape[3]) for level in maps.levels]
    starts = [sum(h * w for h, w in shapes_[:i]) for i in range(4)]
    levels = [queries.memory[:, s : s + h * w].transpose(1, 2).unflatten(2, (h, w)) for s, (h, w) in zip(starts[:3], shapes_)]
    features = head.features([maps.stage1, *levels])
    real = torch.ones_like(features[:, 0], dtype=torch.bool)
    masks = MaskInputs(features, real, queries.text[None], torch.ones(1, *queries.text.shape[:2], dtype=torch.bool))
    output = layer_output(head, queries.hs[None], queries.reference[None], masks)
    for one, other in zip(output, live):
        assert torch.allclose(one, other, atol=1e-3 * float(other.abs().max()))


@torch.no_grad()
def test_training_goes_on_from_an_exported_folder(tuned: Start) -> None:
    settings = make_settings(checkpoint=str(finished() / "upstream"))
    start = load_start(settings)
    start.live.eval()
    batch = batch_of(start, settings)
    one, other = (s.live(batch.images, batch.real, batch.ids, batch.words) for s in (start, tuned))
    for a, b in zip((*one.layers, one.encoder), (*other.layers, other.encoder)):
        assert all(torch.allclose(x, y, atol=1e-3 * float(y.abs().max())) for x, y in zip(a, b))
    with pytest.warns(UserWarning, match="enhancer: that of .* is not used, a new one is trained: it has [0-9]+ tensors"):
        load_start(make_settings(checkpoint=str(finished() / "upstream"), temporal_layers=1))


@torch.no_grad()
def test_the_encoders_proposals_are_those_that_the_decoder_starts_from(tuned: Start) -> None:
    settings = make_settings()
    batch = batch_of(tuned, settings)
    calls: list[Any] = []
    handle = tuned.live.grounding.model.register_forward_hook(lambda module, inputs, outputs: calls.append(outputs))
    output = tuned.live(batch.images, batch.real, batch.ids, batch.words)
    handle.remove()
    assert torch.equal(output.encoder.boxes[0], calls[0].init_reference_points)
    best = calls[0].enc_outputs_class.amax(-1).topk(20, dim=1).values
    assert torch.allclose(output.encoder.logits[0], best, atol=1e-3)
    assert not torch.allclose(output.encoder.boxes, output.proposals.boxes)
    h, w = (side // 4 for side in batch.images.shape[2:])
    assert output.encoder.masks.shape == (1, 3, 20, h, w)
    assert [layer.masks.shape[2] for layer in output.layers] == [8, 4]


@torch.no_grad()
def test_settings_reach_the_model_and_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"keep_ratio": 0.3, "prune_score": "random", "alpha": 0.7, "confidence": "paper_cos"}
    settings = make_settings(**values)
    start = load_start(settings)
    norm = start.live.grounding.model.backbone.conv_encoder.model.hidden_states_norms["stage1"]
    assert (norm.weight == 1).all()
    assert (norm.bias == 0).all()
    calls: dict[str, list[dict[str, Any]]] = {"prune_call": [], "align": [], "losses": []}
    for name, module in (("prune_call", live_module), ("align", live_module), ("losses", run)):
        original = getattr(module, name)

        def recorded(*arguments: Any, name: str = name, function: Any = original, **named: Any) -> Any:
            calls[name].append(named)
            return function(*arguments, **named)

        monkeypatch.setattr(module, name, recorded)
    batch = batch_of(start, settings)
    output = start.live(batch.images, batch.real, batch.ids, batch.words)
    run.all_losses(output, batch.truth, settings, 3.0)
    assert (calls["prune_call"][0]["keep"], calls["prune_call"][0]["score"]) == (0.3, "random")
    assert [(c["alpha"], c["confidence"]) for c in calls["align"]] == [(0.7, "paper_cos")] * 2
    # Each layer is matched by itself, the encoder by its proposals.
    assert [c.get("matched_by") for c in calls["losses"][:-1]] == [None, None]
    assert calls["losses"][-1]["matched_by"] is output.proposals
    start.live.options = replace(start.live.options, tracker="none")
    start.live(batch.images, batch.real, batch.ids, batch.words)
    assert len(calls["align"]) == 2


def test_checkpointing_gives_the_same_gradients() -> None:
    results = []
    for checkpointing in (False, True):
        settings = make_settings(checkpointing=checkpointing)
        start = load_start(settings)
        set_mode(start.live, noise=True)
        torch.manual_seed(5)
        loss_of(start, batch_of(start, settings), settings).backward()
        results.append(gradients(start))
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_every_trained_parameter_has_a_gradient(tuned: Start) -> None:
    settings = make_settings()
    tuned.live.zero_grad()
    loss_of(tuned, batch_of(tuned, settings), settings).backward()
    missing = {name for name, p in tuned.trained.items() if p.grad is None or not p.grad.any()}
    # A bias of keys adds the same to all scores of a query.
    assert not {name for name in missing if "key" not in name}
    assert all(p.grad is None for p in tuned.live.parameters() if not p.requires_grad)


@pytest.mark.parametrize(
    "values",
    [
        {"tracker": "none", "temporal_layers": 0, "mask_head": "dot"},
        {"mask_head": "condinst", "frames": 1},
        {"text_ca": False, "deform_ca": False},
    ],
    ids=str,
)
def test_ablations_train_and_extract(values: dict[str, Any], tmp_path: Any) -> None:
    settings = make_settings(steps=1, **values)
    folder = tune(shapes(), settings, tmp_path / "run")
    start = load_start(settings)
    moved = load_file(tmp_path / "run" / "last" / "trained.safetensors")
    first = saved_tensors(start)
    still = {name for name in first if torch.equal(first[name], moved[name])}
    left_out = {"text_ca": ".ca_text.", "deform_ca": ".cross_attn.", "frames": "head.enhancer"}
    for name, part in left_out.items():
        if name in values:
            assert {n for n in first if part in n} <= still
    head = Upstream(str(folder), 0.4, "code_gate").head
    assert head is not None
    if "text_ca" in values:
        assert not any(layer.ca_text.out_proj.weight.any() for layer in head.mask_decoder)
    if "temporal_layers" in values:
        assert (head.sizes.temporal_layers, head.sizes.mask_layers) == (0, 0)
    video = shapes().video(shapes().video_ids()[0])
    short = replace(video, frame_names=video.frame_names[:2])
    tracker = GdinoQueries(GdinoQueriesSettings(checkpoint=str(folder), masks="head", short_side=64, keep_ratio=0.4))
    assert tracker.track(short, shapes().expressions(video.video_id)[:1]).masks.shape == (4, 2)


@torch.no_grad()
def test_an_attention_that_is_left_out_has_no_influence() -> None:
    settings = make_settings(text_ca=False)
    start = load_start(settings)
    layer = start.live.head.mask_decoder[0]
    inputs = [torch.randn(1, 2, 64) for _ in range(3)]
    boxes, features, real = torch.rand(1, 2, 4), torch.randn(1, 64, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)

    def output(text: Tensor) -> Tensor:
        return layer(*inputs[:2], boxes, features, real, text, torch.zeros(1, 2))

    assert torch.equal(output(inputs[2]), output(-3 * inputs[2]))


@torch.no_grad()
def test_condinst_is_a_network_of_its_own_for_each_query() -> None:
    torch.manual_seed(0)
    head = CondInst(6)
    queries, boxes, features = torch.randn(2, 3, 6), torch.rand(2, 3, 4), torch.randn(2, 6, 4, 5)
    logits = head(queries, boxes, features)
    k, q, row, column = 1, 2, 3, 0
    values = head.controller(queries[k, q])
    offset = torch.tensor([(column + 0.5) / 5, (row + 0.5) / 4]) - boxes[k, q, :2]
    x = torch.cat([features[k, :, row, column], offset])
    for n, m in ((8, 8), (8, 8), (8, 1)):
        weight, bias, values = values[: n * m].view(m, n), values[n * m : n * m + m], values[n * m + m :]
        x = weight @ x + bias
        x = x.relu() if m > 1 else x
    assert not len(values)
    assert torch.allclose(logits[k, q, row, column], x[0], atol=1e-5)
