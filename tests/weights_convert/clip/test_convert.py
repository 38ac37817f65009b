"""One toy CLIP in every container and layout, exports, the cache, memory."""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

import weights_convert
from clipseg_jax.models.clip import Tokenizer
from tests.weights_convert import toys
from weights_convert import CheckpointError
from weights_convert.clip import cache
from weights_convert.clip import layouts as names
from weights_convert.clip.build import flat_arrays
from weights_convert.clip.tokenizer_files import read_tokenizer
from weights_convert.formats.safetensors import write
from weights_convert.formats.torch_writer import write_torch


def _parameters(path, **options):
    model = weights_convert.load_clip(path, **options).model
    return {key: np.asarray(value) for key, value in flat_arrays(model).items()}


def _safetensors(path, arrays):
    with path.open("wb") as file:
        write(file, arrays, {"format": "pt"})
    return path


def _open_clip(weights):
    text = ("text_proj", "positional", "token_", "transformer", "ln_final")
    out = {f"text.{k}" if k.startswith(text) else k: v for k, v in weights.items()}
    return out | {"logit_bias": np.asarray(-10, np.float32)}


def _state_dict_of_maskclip(weights):
    """A MaskCLIP model's state dict: the projections as 1x1 convolutions."""
    content = names.to_maskclip(weights)
    out = {f"backbone.{key}": value for key, value in content.pop("clip").items()}
    for group, leaves in content.items():
        for leaf, value in leaves.items():
            value = value[..., None, None] if leaf == "weight" else value
            out[f"decode_head.{group}.{leaf}"] = value
    return out | {"decode_head.text_embeddings": np.ones((5, toys.EMBED), np.float32)}


@pytest.mark.parametrize("make", [toys.vit, toys.resnet])
def test_every_layout_gives_the_same_parameters(make, tmp_path):
    weights = make()
    model = weights_convert.clip_from_state_dict(weights)
    expected = {key: np.asarray(value) for key, value in flat_arrays(model).items()}
    prefixed = {f"module.{key}": value for key, value in weights.items()}
    opened = {f"module.{key}": value for key, value in _open_clip(weights).items()}
    whole = [
        write_torch(tmp_path / "plain.pt", weights),
        write_torch(tmp_path / "wrapped.pth", {"meta": {"epoch": 1}, "state_dict": weights}),
        write_torch(tmp_path / "module.bin", {"epoch": 2, "state_dict": prefixed}),
        write_torch(tmp_path / "open_clip.pt", {"state_dict": opened}),
        _safetensors(tmp_path / "plain.safetensors", weights),
        _safetensors(tmp_path / "open_clip.safetensors", _open_clip(weights)),
    ]
    if make is toys.vit:
        whole.append(weights_convert.export_huggingface(model, tmp_path / "hf"))
    converted = weights_convert.convert(whole[0])
    whole.append(weights_convert.save_converted(tmp_path / "converted.safetensors", converted))
    for path in whole:
        toys.assert_same(_parameters(path), expected)
    tower = {key: value for key, value in expected.items() if key.startswith("visual.")}
    toys.assert_same(_parameters(whole[0], vision_only=True), tower)
    toys.assert_same(_parameters(whole[-1], vision_only=True), tower)
    weights_convert.export(converted, tmp_path / "maskclip.pth", "maskclip")
    write_torch(tmp_path / "state_dict.pth", {"state_dict": _state_dict_of_maskclip(weights)})
    pool = "visual.attnpool.positional_embedding"
    for name in ("maskclip.pth", "state_dict.pth"):
        parameters = _parameters(tmp_path / name)
        if make is toys.resnet:  # MaskCLIP's files leave it out
            assert np.isnan(parameters.pop(pool)).all()
        toys.assert_same(parameters, {key: value for key, value in tower.items() if key != pool})


def test_maskclip_backbone_alone_is_refused(tmp_path):
    path = write_torch(tmp_path / "b.pth", names.to_maskclip(toys.vit(), backbone=True))
    with pytest.raises(CheckpointError, match="without its projections"):
        weights_convert.load_clip(path)


@pytest.mark.parametrize("make", [toys.vit, toys.resnet])
def test_half_precision_source_is_exported_bit_for_bit(make, tmp_path):
    source = toys.as_released(make())
    write_torch(tmp_path / "source.pt", {"state_dict": source})
    converted = weights_convert.convert(tmp_path / "source.pt")
    weights_convert.save_converted(tmp_path / "c.safetensors", converted)
    for loaded in (converted, weights_convert.load_converted(tmp_path / "c.safetensors")):
        toys.assert_same(weights_convert.to_state_dict(loaded), source)
        path = weights_convert.export(loaded, tmp_path / "back.pt")
        toys.assert_same(weights_convert.read_state_dict(path), source)


def test_huggingface_directory_is_lossless_and_whole(tmp_path):
    source = toys.as_released(toys.vit())
    converted = weights_convert.convert(write_torch(tmp_path / "source.pt", source))
    directory = weights_convert.export(converted, tmp_path / "hf", "huggingface")
    again = weights_convert.to_state_dict(weights_convert.convert(directory))
    numbers = ("input_resolution", "context_length", "vocab_size")
    toys.assert_same(again, {k: v for k, v in source.items() if k not in numbers})
    assert read_tokenizer(directory).ids == Tokenizer.openai().ids
    weights_convert.load_clip(directory / "model.safetensors")
    model = weights_convert.clip_from_state_dict(toys.resnet())
    with pytest.raises(CheckpointError, match="ViT"):
        weights_convert.export_huggingface(model, tmp_path / "no")


def test_huggingface_config_as_transformers_reads_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = weights_convert.clip_from_state_dict(toys.vit())
    weights_convert.export_huggingface(model, tmp_path)
    config = transformers.CLIPConfig.from_pretrained(tmp_path)
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (128, 2, 2)
    assert (vision.image_size, vision.patch_size, vision.intermediate_size) == (32, 8, 512)
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (64, 2, 1)
    assert (text.vocab_size, text.max_position_embeddings, text.eos_token_id) == (600, 77, 599)
    assert vision.hidden_act == text.hidden_act == "quick_gelu"
    assert vision.layer_norm_eps == text.layer_norm_eps == 1e-5
    assert config.projection_dim == toys.EMBED
    pytest.importorskip("torch")
    written = weights_convert.read_state_dict(tmp_path / "model.safetensors")
    expected = transformers.CLIPModel(config).state_dict()
    expected = {k: v for k, v in expected.items() if not k.endswith("position_ids")}
    assert {k: v.shape for k, v in written.items()} == {
        k: tuple(v.shape) for k, v in expected.items()
    }


def test_config_files_tell_heads_and_activation(tmp_path):
    model = weights_convert.clip_from_state_dict(toys.vit())
    weights_convert.export_huggingface(model, tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content["vision_config"] |= {"num_attention_heads": 4, "layer_norm_eps": 1e-6}
    content["text_config"]["hidden_act"] = "gelu"
    del content["text_config"]["num_attention_heads"]  # transformers leaves its default of 8 out
    path.write_text(json.dumps(content))
    config = weights_convert.load_clip(tmp_path).model.cfg
    assert (config.vision.heads, config.vision.norm_eps) == (4, 1e-6)
    assert (config.text.heads, config.text.activation) == (8, "gelu")
    content["vision_config"]["hidden_act"] = "relu"
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="activation 'relu'"):
        weights_convert.load_clip(tmp_path)
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        weights_convert.load_clip(tmp_path)


def test_open_clip_config(tmp_path):
    _safetensors(tmp_path / "open_clip_model.safetensors", toys.vit())
    content = {"model_cfg": {"vision_cfg": {"head_width": 32}, "text_cfg": {"heads": 2}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    config = weights_convert.load_clip(tmp_path).model.cfg
    assert (config.vision.heads, config.text.heads) == (4, 2)
    assert config.vision.activation == config.text.activation == "gelu"


def test_choices_override(tmp_path):
    path = write_torch(tmp_path / "a.pt", toys.vit())
    config = weights_convert.load_clip(path, activation="gelu", norm_eps=1e-6).model.cfg
    assert (config.vision.activation, config.text.norm_eps) == ("gelu", 1e-6)
    with pytest.raises(TypeError, match="colour"):
        weights_convert.load_clip(path, colour="red")


def test_damaged_converted_file(tmp_path):
    path = tmp_path / "a.safetensors"
    converted = weights_convert.convert(write_torch(tmp_path / "a.pt", toys.vit(layers=1)))
    whole = weights_convert.save_converted(path, converted).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    places = [header, header + 1, len(whole) - 1, *rng.integers(0, len(whole), 10)]
    places += list(rng.integers(0, header, 40))
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            weights_convert.load_converted(path)
    path.write_bytes(whole[:-5])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        weights_convert.load_clip(path)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_CACHED_FROM_BYTES", 1)
    return write_torch(tmp_path / "a.pt", toys.vit()), tmp_path / "cache"


def test_second_load_comes_from_the_cache(cached, monkeypatch, caplog):
    path, folder = cached
    first = _parameters(path, cache_dir=folder)
    (file,) = folder.iterdir()
    module = importlib.import_module("weights_convert.clip.convert")
    monkeypatch.setattr(module, "read_weights", None)  # would fail if it were called
    toys.assert_same(_parameters(path, cache_dir=folder), first)
    monkeypatch.undo()
    monkeypatch.setattr(cache, "_CACHED_FROM_BYTES", 1)
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        toys.assert_same(_parameters(path, cache_dir=folder), first)
    assert "again" in caplog.text
    weights_convert.load_converted(file)
    write_torch(path, toys.vit(seed=2))
    changed = _parameters(path, cache_dir=folder)
    assert not np.array_equal(changed["visual.proj"], first["visual.proj"])


def test_unwritable_cache_warns(cached, tmp_path, caplog):
    path, _ = cached
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        _parameters(path, cache_dir=tmp_path / "file" / "cache")
    assert "continuing without a cache" in caplog.text


def _race(path, folder):
    cache._CACHED_FROM_BYTES = 1
    weights_convert.load_clip(path, cache_dir=folder)


@pytest.mark.slow
def test_processes_may_write_one_cache(cached):
    path, folder = cached
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_race, args=(path, folder)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    (file,) = folder.iterdir()
    weights_convert.load_converted(file)


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
def test_memory_stays_below_two_and_a_half_files(half, tmp_path):
    weights = toys.vit(width=512, layers=24 if half else 12, patch=16, grid=7)
    weights = toys.as_released(weights) if half else weights
    path = write_torch(tmp_path / "a.pt", weights)
    small = write_torch(tmp_path / "small.pt", toys.vit(width=64, layers=1))
    code = f"""
        import sys
        import jax
        jax.config.update("jax_platforms", "cpu")
        sys.path.insert(0, {str(toys.ROOT)!r})
        import weights_convert
        from tests.weights_convert import toys
        weights_convert.clip_from_state_dict(toys.vit(width=64, layers=1))
        weights_convert.load_clip(sys.argv[1]).tokenizer.encode("a photo")
        def memory(name):  # not getrusage, whose maximum a child inherits from its parent
            with open("/proc/self/status") as file:
                return 1024 * int(file.read().split(name + ":")[1].split()[0])
        before = memory("VmRSS")
        clip = weights_convert.load_clip({str(path)!r}, cache_dir={str(tmp_path / "cache")!r})
        print(memory("VmHWM") - before)
    """
    for _ in ("converted", "from the cache"):
        command = [sys.executable, "-c", textwrap.dedent(code), str(small)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) < 2.5 * path.stat().st_size, int(done.stdout) / path.stat().st_size


def test_exports_load_in_torch(tmp_path):
    torch = pytest.importorskip("torch")
    source = toys.as_released(toys.resnet())
    converted = weights_convert.convert(write_torch(tmp_path / "a.pt", source))
    weights_convert.export(converted, tmp_path / "b.pt")
    loaded = torch.load(tmp_path / "b.pt", weights_only=True)
    toys.assert_same({key: value.numpy() for key, value in loaded.items()}, source)
    weights_convert.export(converted, tmp_path / "c.pt", "maskclip")
    assert set(torch.load(tmp_path / "c.pt", weights_only=True)) > {"clip", "c_proj"}


def test_parameters_do_not_follow_the_file(tmp_path):
    path = _safetensors(tmp_path / "a.safetensors", toys.vit())
    model = weights_convert.load_clip(path).model
    before = np.array(model.visual.proj[...])
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(path.stat().st_size // 2))
    np.testing.assert_array_equal(np.asarray(jax.device_get(model.visual.proj[...])), before)
