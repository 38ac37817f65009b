"""A directory of SigLIP's, whole or not: from files to masks for words, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

import weights_convert
from clipseg_jax.segmenter import Segmenter
from tests import seeded, tiny
from tests.golden.transformers import make_clip
from tests.golden.transformers.make_tokenizers import HERE
from weights_convert import CheckpointError
from weights_convert.__main__ import main
from weights_convert.formats.safetensors import write

WORDS = ["cat", "tv monitor", "grass"]
TEXT = {"hidden_size": 48, "num_hidden_layers": 1, "max_position_embeddings": 64}
LAYER = "text_model.encoder.layers.1."


def weights(vocabulary=600):
    """Those of a golden with 64 positions, one layer of text and another vocabulary."""
    shapes = json.loads((make_clip.HERE / "clip.json").read_text())["siglip"]
    shapes = {key: shape for key, shape in shapes.items() if not key.startswith(LAYER)}
    shapes["text_model.embeddings.token_embedding.weight"] = (vocabulary, 48)
    shapes["text_model.embeddings.position_embedding.weight"] = (64, 48)
    return {key: np.asarray(value) for key, value in seeded.state_dict(shapes, 7).items()}


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "siglip"
    source.mkdir()
    config = dict(make_clip.CONFIGS["siglip"])
    config["text_config"] = config["text_config"] | TEXT | {"vocab_size": 600}
    (source / "config.json").write_text(json.dumps(config))
    (source / "spiece.model").write_bytes((HERE / "spiece.model").read_bytes())
    save(source, weights())
    return source


def save(folder, arrays):
    with (folder / "model.safetensors").open("wb") as file:
        write(file, arrays, {"format": "pt"})


def test_masks_for_words(folder):
    segmenter = Segmenter(WORDS, weights=folder, short_side_px=64, prompt_templates="single")
    assert segmenter.config.mean == segmenter.config.std == (127.5, 127.5, 127.5)
    pictures = tiny.images([(64, 80), (96, 64)])
    results = dict(segmenter(pictures))
    for i, picture in enumerate(pictures):
        assert results[i].labels.shape == picture.shape[:2]
        assert set(np.unique(results[i].labels)) <= {1, 2, 3}
    ((_, alone),) = segmenter([pictures[0]])
    np.testing.assert_array_equal(alone.labels, results[0].labels)
    with pytest.raises(
        ValueError, match=r"'naclip' reads .* has SigLIP's attention pool; give meth"
    ):
        Segmenter(WORDS, weights=folder, method="naclip")


def test_the_tokenizer_goes_both_ways(folder, tmp_path):
    converted = weights_convert.convert(folder)
    stored = weights_convert.save_converted(tmp_path / "c.safetensors", converted)
    exported = weights_convert.export(
        weights_convert.load_converted(stored), tmp_path / "hf", "huggingface"
    )
    assert (exported / "spiece.model").read_bytes() == (folder / "spiece.model").read_bytes()
    for path in (folder, folder / "model.safetensors", stored, exported):
        ids = weights_convert.load_clip(path).tokenizer("a photo of a cat.")
        assert ids[0, :10].tolist() == [3, 9, 8, 7, 11, 4, 6, 3, 37, 1]


def test_without_a_tokenizer_only_words_are_refused(folder):
    (folder / "spiece.model").unlink()
    assert weights_convert.load_clip(folder).tokenizer is None
    with pytest.raises(ValueError, match=r"has no tokenizer, .* put its tokenizer\.json or spiece"):
        Segmenter(WORDS, weights=folder)


def test_a_tokenizer_with_more_ids_than_embeddings(folder):
    save(folder, weights(vocabulary=100))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 100
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"100 token embeddings, .* ids up to 104; put the sp"
    ):
        weights_convert.load_clip(folder)


def test_an_image_tower_alone(folder):
    config = json.loads((folder / "config.json").read_text())
    tower = {"model_type": "siglip_vision_model", **config["vision_config"]}
    (folder / "config.json").write_text(json.dumps(tower))
    save(folder, {key: v for key, v in weights().items() if key.startswith("vision")})
    loaded = weights_convert.load_clip(folder)
    assert loaded.tokenizer is loaded.model.cfg.text is None
    assert (loaded.model.cfg.vision.heads, loaded.mean) == (3, (127.5,) * 3)
    with pytest.raises(ValueError, match="no text tower"):
        Segmenter(WORDS, weights=folder)


def test_a_lone_file_says_what_is_guessed(folder, caplog):
    (folder / "config.json").unlink()
    weights_convert.convert(folder / "model.safetensors")
    assert "does not say its heads; 64 channels each are assumed: heads 1,1" in caplog.text
    caplog.clear()
    weights_convert.convert(folder / "model.safetensors", heads=(3, 3))
    assert not caplog.text


def test_missing_and_unexpected_keys_are_listed_by_their_own_names(folder):
    arrays = weights() | {"vision_model.head.more": np.ones(2, np.float32)}
    del arrays["vision_model.head.layernorm.bias"], arrays["logit_bias"]
    save(folder, arrays)
    with pytest.raises(CheckpointError) as caught:
        weights_convert.convert(folder)
    listed = [line.strip() for line in str(caught.value).splitlines()]
    assert "- logit_bias: missing" in listed
    assert "- vision_model.head.layernorm.bias: missing" in listed
    assert "+ vision_model.head.more (2,): unexpected" in listed


def test_naflex_and_fixed_sizes_are_told_apart(folder):
    key = "vision_model.embeddings.patch_embedding.weight"
    save(folder, weights() | {key: np.ones((48, 768), np.float32)})
    with pytest.raises(CheckpointError, match=r"model_type 'siglip', the weights have siglip2's"):
        weights_convert.convert(folder)
    save(folder, weights() | {key: np.ones((48, 770), np.float32)})
    with pytest.raises(CheckpointError, match=r"not the weights of a CLIP"):
        weights_convert.convert(folder)


def test_the_command_knows_it(folder, tmp_path, capsys):
    assert main([str(folder), "--inspect"]) == 0
    assert (
        "SigLIP's ViT, patch 16, width 48, 2 layers, 3 heads, gelu_tanh" in capsys.readouterr().out
    )
    assert main([str(folder), "-o", str(tmp_path / "c.safetensors")]) == 0
    assert main([str(tmp_path / "c.safetensors"), "--export", str(tmp_path / "a.pth"), "--to",
                 "openai"]) == 2  # fmt: skip
    assert "SigLIP has no names of OpenAI's; export it with --to huggingface" in (
        capsys.readouterr().err
    )
