"""Every recipe loads, names things that exist, and describes what can be built."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from clipseg_jax import main
from clipseg_jax.inference import InferenceConfig, network_size
from clipseg_jax.models.maskclip import MaskCLIPConfig
from clipseg_jax.prompts import templates
from clipseg_jax.recipes.data import find_dataset

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "configs").glob("*.py"))
RECIPES = [path for path in PATHS if path.stem != "__init__"]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_recipe(path):
    module = load(path)
    config = module.get_config()
    assert f"configs/{path.name}" in module.__doc__  # the command that runs it
    stages = main.METHODS[config.method]
    assert set(config.stages) <= set(stages)
    assert templates(config.text.templates)
    dataset = find_dataset(config.dataset)
    assert len(dataset.prompts) in (dataset.num_classes, dataset.num_classes - 1)
    MaskCLIPConfig(**config.maskclip.to_dict())
    cfg = InferenceConfig(
        mean=tuple(config.clip.mean), std=tuple(config.clip.std), **config.inference.to_dict()
    )
    assert min(network_size(375, 500, cfg)) > 0


def test_published_sizes():
    """Spec maskclip, section 7: the size at the network of a typical photo."""
    sizes = {}
    for path in RECIPES:
        config = load(path).get_config()
        cfg = InferenceConfig(mean=(0, 0, 0), std=(1, 1, 1), **config.inference.to_dict())
        sizes[path.stem] = network_size(375, 500, cfg)
    assert sizes["voc_maskclip"] == (512, 683)
    assert sizes["coco_stuff_maskclip"] == (512, 683)
    assert sizes["context_maskclip"] == (390, 520)
