"""Record what open_clip's ConvNeXt CLIP returns for the inputs of tests/golden/clip.safetensors, at a tiny size with weights by a rule.

    python tests/golden/make_clip.py [--out tests/golden/clip.safetensors]

Needs open_clip_torch (recorded: 3.3.0), timm (1.0.31), ftfy and torchvision, which nothing else of the project's tests does. Float32,
CPU, one thread. It also compares the tokens of SENTENCES with open_clip's whole vocabulary, which is too large to be recorded.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import tempfile
import unicodedata
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "cache"))
sys.path.insert(0, str(Path(__file__).parents[2]))

import open_clip.tokenizer
import timm
from golden_values import FOLDER
from open_clip.model import CLIP
from tiny_clip import DEPTHS, LAYERS, MERGES, POSITIONS, PROJECTION, TOKENS, WIDTHS, open_clip_tensors, shapes

from rvos_cache.clip import cleaning
from rvos_cache.clip.towers import tokenize
from rvos_cache.clip.vocabulary import clip_tokenizer

TEXT_WIDTH = 128
"""Two heads, so that their number matters."""
SENTENCES = (
    "a red square moves to the left",
    "The RED   square\tmoves\nto the left  ",
    "the man’s dog – “running” away…",
    "the man's dog doesn't run, we'll say they've gone: 'S 'T I'M he'd",
    "cats &amp; dogs &amp;amp; &lt;birds&gt; &#39;fish&#39; &eacute;",
    "",
    "   ",
    "!",
    "!! wow !!! a!b",
    "café cafe\u0301 naïve ÅNGSTRÖM straße",
    "İstanbul ΣΊΣΥΦΟΣ ﬁnger Ǆ",
    "汉字 と かな 한국어 русский",
    "emoji 🐶🐱 👨‍👩‍👧 ✨",
    "numbers 12345 3.14 1st ½ ²",
    "under_score hyphen-ated e-mail@x.org #tag 50% a/b\\c",
    "<|endoftext|> inside <|startoftext|> a sentence",
    "zero\u200bwidth non\u00a0breaking soft\u00adhyphen \ufeffbom",
    "mojibake: cafÃ© â€œquotedâ€\u009d",
    "control \x07 \x1b[31mred\x1b[0m \x00 end",
    "''''s 'd''ll ''' n't o'clock rock'n'roll",
    "word " * 100,
    "a very long sentence with ünïcödé " * 12,
)


def random_weights(model: Any) -> Any:
    """The model with the weights of the rule. Raises if their names or shapes are not open_clip's."""
    tensors = open_clip_tensors(TEXT_WIDTH)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == shapes(TEXT_WIDTH)
    model.load_state_dict(tensors)
    return model.eval()


def open_clip_model() -> Any:
    """open_clip's model at the tiny size, by the settings of `convnext_large_d_320.json`."""
    vision = {
        "timm_model_name": "convnext_large", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "mlp",
        "timm_drop": 0.0, "timm_drop_path": 0.1, "image_size": 64,
    }  # fmt: skip
    text = {
        "context_length": POSITIONS, "vocab_size": TOKENS, "width": TEXT_WIDTH, "heads": TEXT_WIDTH // 64, "layers": LAYERS,
    }  # fmt: skip
    with patch.object(timm, "create_model", partial(timm.create_model, depths=DEPTHS, dims=WIDTHS)):
        return random_weights(CLIP(PROJECTION, vision, text))


def record_image(model: Any, images: torch.Tensor) -> dict[str, NDArray[Any]]:
    """The maps of the four stages and the projected feature."""
    trunk, out = model.visual.trunk, {}
    x = trunk.stem(images)
    for i, stage in enumerate(trunk.stages):
        x = stage(x)
        out[f"output.stage{i}"] = x.numpy()
    out["output.image_features"] = model.encode_image(images).numpy()
    return out


def record_text(model: Any, ids: torch.Tensor) -> dict[str, NDArray[Any]]:
    """Words and sentences, as SSA's `clip.py` computes the words."""
    x = model.token_embedding(ids) + model.positional_embedding
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
    return {"output.words": (x @ model.text_projection).numpy(), "output.sentences": model.encode_text(ids).numpy()}


def open_clip_ids(file: Path, with_ftfy: bool) -> torch.Tensor:
    """Ids (B, 77). Without ftfy: only with composed accents, as rvos_cache.clip.cleaning."""
    tokenizer = open_clip.tokenizer.SimpleTokenizer(str(file), context_length=POSITIONS)
    if with_ftfy:
        return tokenizer(list(SENTENCES))
    with patch.object(open_clip.tokenizer.ftfy, "fix_text", partial(unicodedata.normalize, "NFC")):
        return tokenizer(list(SENTENCES))


def compare_real_vocabulary() -> None:
    """Raises AssertionError if a token of a sentence differs from open_clip's with its whole vocabulary."""
    file = Path(open_clip.tokenizer.default_bpe())
    tokenizer = clip_tokenizer(str(file), 49408, POSITIONS)
    for with_ftfy in (True, False):
        with patch.object(cleaning, "_ftfy", cleaning._ftfy if with_ftfy else lambda: None):
            ids = tokenize(tokenizer, SENTENCES).ids
        for text, one, expected in zip(SENTENCES, ids, open_clip_ids(file, with_ftfy).numpy()):
            assert (one == expected).all(), (with_ftfy, text, one, expected)
        print(f"whole vocabulary, {'with' if with_ftfy else 'without'} ftfy: {len(ids)} sentences equal")


def record() -> dict[str, NDArray[Any]]:
    """Every tensor of the file."""
    lines = gzip.decompress(Path(open_clip.tokenizer.default_bpe()).read_bytes()).decode().split("\n")
    merges = "\n".join(lines[: 1 + MERGES]).encode()
    images = torch.randn((2, 3, 64, 96), generator=torch.Generator().manual_seed(3))
    texts = "\0\0".join(SENTENCES).encode()
    out: dict[str, NDArray[Any]] = {
        "input.merges": np.frombuffer(merges, np.uint8), "input.images": images.numpy(),
        "input.sentences": np.frombuffer(texts, np.uint8),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "merges.gz"
        file.write_bytes(gzip.compress(merges))
        ids = {with_ftfy: open_clip_ids(file, with_ftfy) for with_ftfy in (True, False)}
    out |= {"output.ids": ids[True].numpy().astype(np.int16), "output.ids_without_ftfy": ids[False].numpy().astype(np.int16)}
    model = open_clip_model()
    few = [0, 3, 5, 8, 20]
    return out | record_image(model, images) | record_text(model, ids[True][few]) | {"input.few": np.array(few, np.int16)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER / "clip.safetensors")
    options = parser.parse_args()
    torch.set_num_threads(1)
    from safetensors.numpy import load_file, save_file

    with torch.inference_mode():
        recorded = record()
    if options.out.is_file():
        for name, before in load_file(options.out).items():
            now = recorded.get(name, np.zeros(0))
            same = before.shape == now.shape
            print(f"{name}: {np.abs(before.astype(float) - now.astype(float)).max() if same else 'shape differs'}")
    save_file({name: np.ascontiguousarray(value) for name, value in recorded.items()}, options.out)
    print(f"{options.out}: {options.out.stat().st_size} bytes")
    compare_real_vocabulary()


if __name__ == "__main__":
    main()
