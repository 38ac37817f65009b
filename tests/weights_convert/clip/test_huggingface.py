"""Directories of Hugging Face: shards, tokenizers, and JSON that is damaged or of other models."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

import weights_convert
from clipseg_jax.models.clip import Tokenizer
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD
from tests.weights_convert import toys
from weights_convert import CheckpointError
from weights_convert.clip.build import flat_arrays
from weights_convert.clip.export import write_tokenizer
from weights_convert.clip.tokenizer_files import read_tokenizer
from weights_convert.formats.safetensors import write
from weights_convert.formats.torch_writer import write_torch

TOKENIZER = Tokenizer([("a", "b</w>"), ("c", "a"), ("ca", "ab</w>")])
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Files of a directory whose tokenizer is its own."""
    folder = tmp_path_factory.mktemp("hf")
    weights = toys.vit(vocabulary=len(TOKENIZER.ids), layers=1, layers_of_text=1)
    converted = weights_convert.convert(write_torch(folder / "a.pt", weights))
    made = weights_convert.export(converted, folder / "hf", "huggingface")
    write_tokenizer(TOKENIZER, made)
    return {file.name: file.read_bytes() for file in made.iterdir()}


@pytest.fixture
def folder(whole, tmp_path):
    for name, data in whole.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def shard(folder, suffix="safetensors"):
    arrays = weights_convert.read_state_dict(folder / "model.safetensors")
    arrays = {key: np.array(value) for key, value in arrays.items()}
    stem, names = "model" if suffix == "safetensors" else "pytorch_model", []
    keys = sorted(arrays)
    for i in range(2):
        names.append(f"{stem}-{i}.{suffix}")
        part = {key: arrays[key] for key in keys[i::2]}
        if suffix == "bin":
            write_torch(folder / names[-1], part)
        else:
            with (folder / names[-1]).open("wb") as file:
                write(file, part, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    weight_map = {key: names[i % 2] for i, key in enumerate(keys)}
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_the_whole(suffix, folder, monkeypatch):
    def parameters(path):
        loaded = weights_convert.load_clip(path, cache_dir=folder / "cache")
        return {k: np.asarray(v) for k, v in flat_arrays(loaded.model).items()}, loaded.meta

    expected, _ = parameters(folder)
    index = shard(folder, suffix)
    monkeypatch.setattr("weights_convert.clip.cache._CACHED_FROM_BYTES", 1)
    digests = set()
    for path in (folder, index, folder):
        arrays, meta = parameters(path)
        toys.assert_same(arrays, expected)
        digests.add(meta["sha256"])
    assert len(digests) == 1
    assert meta["kind"].startswith("2 shards of")


@pytest.mark.parametrize("name", ["../a.safetensors", "/a.safetensors", "a.pt", "", 3, ".."])
def test_shards_are_plain_names_beside_the_index(name, folder):
    index = shard(folder)
    change(index, lambda content: content["weight_map"].update(logit_scale=name))
    with pytest.raises(CheckpointError, match="names the shard"):
        weights_convert.load_clip(folder)


def test_missing_shards_and_tensors_are_named(folder):
    index = shard(folder)
    change(index, lambda content: content["weight_map"].update(more="model-0.safetensors"))
    with pytest.raises(CheckpointError, match=r"model-0\.safetensors has no tensor 'more'"):
        weights_convert.load_clip(folder)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 'model-1\.safetensors', 1 of 2 shards"):
        weights_convert.load_clip(folder)
    index.write_text('{"weight_map": []}')
    with pytest.raises(CheckpointError, match="no weight_map"):
        weights_convert.load_clip(index)


def both(folder, pairs):
    """A tokenizer.json with merges as pairs or as texts, special tokens among the added ones."""
    ids = dict(TOKENIZER.ids)
    added = [{"id": ids.pop(each), "content": each} for each in list(ids)[-2:]]
    merges = [list(pair) if pairs else " ".join(pair) for pair in TOKENIZER.merges]
    content = {"model": {"type": "BPE", "vocab": ids, "merges": merges}, "added_tokens": added}
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize("pairs", [True, False])
def test_tokenizer_json_alone_or_beside_the_two_others(pairs, folder):
    both(folder, pairs)
    for names in ((), ("merges.txt",), ("vocab.json",)):
        for name in names:
            (folder / name).unlink()
        for path in (folder, folder / "model.safetensors"):
            tokenizer = weights_convert.load_clip(path).tokenizer
            assert (tokenizer.ids, tokenizer.merges) == (TOKENIZER.ids, TOKENIZER.merges)


def test_two_tokenizers_that_differ_are_refused(folder):
    both(folder, True)
    change(folder / "vocab.json", lambda ids: ids.update(a=ids["b"], b=ids["a"]))
    with pytest.raises(CheckpointError, match=r"vocab\.json and tokenizer\.json .* different"):
        weights_convert.load_clip(folder)


def test_tokenizers_that_do_not_fit_the_table(folder, caplog):
    ids = {**TOKENIZER.ids, "more": len(TOKENIZER.ids)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    with pytest.raises(CheckpointError, match=r"517 token embeddings, and its tokenizer ids up to"):
        weights_convert.load_clip(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    loaded = weights_convert.load_clip(folder)  # images need no tokenizer
    with pytest.raises(ValueError, match=r"517 token embeddings, OpenAI's .* put the vocab\.json"):
        loaded.tokenizer("a cat")
    large = write_torch(folder / "large.pt", toys.vit(vocabulary=49500, layers=1))
    caplog.clear()
    weights_convert.load_clip(large, activation="gelu", heads=(2, 1))
    (record,) = caplog.records
    assert "49500 token embeddings; OpenAI's tokenizer of 49408 is assumed" in record.getMessage()


def test_a_byte_order_mark_and_windows_line_ends_are_read(folder):
    for name in ("vocab.json", "merges.txt", "config.json"):
        text = (folder / name).read_text("utf-8").replace("\n", "\r\n")
        (folder / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_tokenizer(folder).merges == TOKENIZER.merges
    weights_convert.load_clip(folder)


DAMAGED = {
    "config.json": [
        b"", b"{", b"[]", b"null", b"\xff\xfe{\x00}\x00", b'{"a": NaN}', b'{"a": 1e999}',
        b'{"model_type": "clip", "a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}",
        b'{"model_type": "clip", "model_type": "clip"}',
        b'{"model_type": "clip", "vision_config": 3}',
        b'{"model_type": "clip", "vision_config": {"num_attention_heads": "4"}}',
        b'{"model_type": "clip", "vision_config": {"num_attention_heads": 5}}',
        b'{"model_type": "clip", "vision_config": {"num_attention_heads": true}}',
        b'{"model_type": "clip", "vision_config": {"layer_norm_eps": -1}}',
        b'{"model_type": "clip", "vision_config": {"hidden_act": ["gelu"]}}',
        b'{"model_type": "clip", "vision_config": {"hidden_size": 768}}',
    ],
    "vocab.json": [b"[]", b"{}", b'{"a": [1]}', b'{"\xff": 1}', b'{"a": 1, "a": 2}', b'{"a": 1}'],
    "merges.txt": [b"\xff \xfe\n", b"a\n", b"#version\na b c\n", b"x y\n"],
    "tokenizer.json": [b"{}", b'{"model": {"type": "WordPiece"}}', b'{"model": {"merges": [1]}}'],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data"), [(name, data) for name, all_data in DAMAGED.items() for data in all_data]
)
def test_damaged_files_are_named_in_one_line(name, data, folder):
    (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        weights_convert.convert(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    # Of two files that belong together, the other one may be the one that is found wrong.
    pair = ("vocab.json", "merges.txt")
    assert any(str(folder / each) in message for each in (pair if name in pair else (name,)))


def test_other_models_are_named(folder):
    for kind, said in {
        "metaclip_2": r"config\.json says .* type 'metaclip_2'; only CLIP",
        "siglip2": r"config\.json .* model_type 'siglip2', the weights have huggingface's names",
        "siglip": r"config\.json .* model_type 'siglip', the weights have huggingface's names",
    }.items():
        change(folder / "config.json", lambda content, kind=kind: content.update(model_type=kind))
        with pytest.raises(CheckpointError, match=said):
            weights_convert.load_clip(folder)


def test_an_image_tower_alone_has_a_config_of_its_own(folder):
    whole = weights_convert.read_state_dict(folder / "model.safetensors")
    tower = {key: np.array(v) for key, v in whole.items() if key.startswith("vis")}
    with (folder / "model.safetensors").open("wb") as file:
        write(file, tower, {"format": "pt"})
    config = {"model_type": "clip_vision_model", "num_attention_heads": 8, "hidden_act": "gelu"}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = weights_convert.load_clip(folder)
    assert loaded.tokenizer is loaded.model.cfg.text is None
    assert (loaded.model.cfg.vision.heads, loaded.model.cfg.vision.activation) == (8, "gelu")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("vision_cfg", "timm_model_name", "convnext_base"),
        ("vision_cfg", "pool_type", "avg"),
        ("vision_cfg", "no_ln_pre", True),
        ("vision_cfg", "attentional_pool", "parallel"),
        ("vision_cfg", "ls_init_value", 1e-4),
        ("vision_cfg", "qk_norm", True),
        ("vision_cfg", "eva_model_name", "eva-clip-b-16"),
        ("vision_cfg", "patch_size", 14),
        ("vision_cfg", "mlp_ratio", 4.3637),
        ("vision_cfg", "mlp_ratio", "4"),
        ("vision_cfg", "norm_kwargs", {"eps": 1e-6, "elementwise_affine": False}),
        ("vision_cfg", "act_kwargs", {"approximate": "sigmoid"}),
        ("text_cfg", "hf_model_name", "xlm-roberta-base"),
        ("text_cfg", "hf_tokenizer_name", "bert-base-uncased"),
        ("text_cfg", "no_causal_mask", True),
        ("text_cfg", "pool_type", "last"),
        ("text_cfg", "width", 768),
        ("text_cfg", "vocab_size", 49408),
        ("vision_cfg", "head_width", 200),
        ("model_cfg", "multimodal_cfg", {"width": 512}),
        ("model_cfg", "embed_dim", 512),
        ("model_cfg", "quick_gelu", "yes"),
        ("model_cfg", "of_next_year", 1),
    ],
)
def test_open_clip_configs_of_what_is_not_supported(section, key, value, tmp_path):
    path = write_torch(tmp_path / "a.pt", toys.vit())
    said = {key: value} if section == "model_cfg" else {section: {key: value}}
    content = {"model_cfg": {"embed_dim": toys.EMBED} | said}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=rf"open_clip_config\.json .*({key}|heads)") as caught:
        weights_convert.load_clip(path)
    assert "\n" not in str(caught.value)
    assert str(value)[:20] in str(caught.value) or key == "head_width"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("open_clip_config.json", {"model_cfg": {"embed_dim": toys.EMBED, "vision_cfg": {}},
                                   "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}),
        ("preprocessor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}),
    ],
)  # fmt: skip
def test_mean_and_deviation_come_with_the_weights(name, content, folder, tmp_path):
    path = folder
    if name.startswith("open"):
        path = write_torch(tmp_path / "a.pt", toys.vit())
    without = weights_convert.load_clip(path, activation="gelu", heads=(2, 1))
    assert (without.mean, without.std) == (CLIP_MEAN, CLIP_STD)
    (path if path.is_dir() else tmp_path).joinpath(name).write_text(json.dumps(content))
    converted = weights_convert.convert(path)
    stored = weights_convert.save_converted(tmp_path / "c.safetensors", converted)
    exported = weights_convert.export(converted, tmp_path / "hf", "huggingface")
    for each in (path, stored, exported):
        loaded = weights_convert.load_clip(each)
        assert (loaded.mean, loaded.std) == ((127.5,) * 3, (63.75,) * 3)


@pytest.mark.parametrize("std", [[0.5, 0, 0.5], [1.0, 2.0, 1.0], [0.5, 0.5], "0.5", [True] * 3])
def test_deviations_that_cannot_be_meant_are_refused(std, folder):
    content = {"image_mean": [0.5, 0.5, 0.5], "image_std": std}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: image_std is .* three"):
        weights_convert.load_clip(folder)


def test_directories_without_weights_say_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"it has none of model\.safetensors"):
        weights_convert.load_clip(tmp_path)
    (tmp_path / "ViT-B-16.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"give the file itself, such as .*ViT-B-16\.pt"):
        weights_convert.load_clip(tmp_path)
    (tmp_path / "tf_model.h5").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"it has tf_model\.h5"):
        weights_convert.load_clip(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="neither a file nor a directory"):
        weights_convert.load_clip(tmp_path / "pipe")
