"""Model, head, task and inference of WeCLIP, as a config describes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jax import Array
from ml_collections import ConfigDict

import weights_convert
from clipseg_jax.inference import InferenceConfig
from clipseg_jax.methods.weclip import task
from clipseg_jax.methods.weclip.head import HeadConfig
from clipseg_jax.methods.weclip.model import WeCLIP, WeCLIPConfig
from clipseg_jax.methods.weclip.task import TaskConfig, init_weclip
from clipseg_jax.ops.par import PARConfig
from clipseg_jax.stages.clip import load_image_tower, read_embeddings, word_lists
from clipseg_jax.stages.data import find_dataset
from clipseg_jax.stages.network import Network
from clipseg_jax.stages.sections import options
from input_pipeline.places import place


def method(config: ConfigDict) -> str:
    """What files call this head."""
    return "WTCLIP" if config.head.gate or config.head.wavelet_levels else "WeCLIP"


def build_model(config: ConfigDict, workdir: Path) -> WeCLIP:
    """An untrained model of the config's sizes around its frozen CLIP.

    Raises:
      ValueError: the stage `text` has not run; or the background is no class of the dataset.
    """
    dataset = find_dataset(config.dataset)
    classes, background = word_lists(config)
    if not dataset.background or len(classes) != len(dataset.foreground):
        raise ValueError(
            f"{len(classes)} words for the {len(dataset.foreground)} classes of {dataset.name}, "
            f"{'beside' if dataset.background else 'without'} a background; WeCLIP needs a word "
            "for each class, and a background class before them"
        )
    rows = read_embeddings(config, workdir, (*classes, *background))
    return init_weclip(
        load_image_tower(config, pad_to_patch=False),
        rows[: len(classes)],
        rows[len(classes) :],
        WeCLIPConfig(**config.cams.to_dict(), par=PARConfig(**config.par.to_dict())),
        options(HeadConfig, config.head),
        seed=config.train.seed,
    )


def trained_path(config: ConfigDict, workdir: Path) -> Path:
    """The head to evaluate: the config's file, or what the stage `train` wrote."""
    head = config.head
    return place(head.trained_weights or workdir / f"head_{head.checkpoint}.safetensors")


def load_trained(config: ConfigDict, workdir: Path) -> WeCLIP:
    """The model with its trained head.

    Raises:
      ValueError: the stage `train` has not run. CheckpointError: a head of something else.
    """
    path = trained_path(config, workdir)
    if not path.exists() and not config.head.trained_weights:
        raise ValueError(
            f"{path} is missing; run the stage `train` first, or pass "
            "--config.head.trained_weights=FILE"
        )
    model = build_model(config, workdir)
    names = find_dataset(config.dataset).class_names
    trained = weights_convert.load_trained(
        path,
        weights_convert.WECLIP,
        classes=names,
        expected={"method": method(config)},
        visual=model.clip.visual,
    )
    weights_convert.install(model, trained.arrays, complete=("head.",))
    return model


def task_config(config: ConfigDict) -> TaskConfig:
    """How the config's head is trained."""
    mean, std = tuple(config.clip.mean), tuple(config.clip.std)
    return options(TaskConfig, config.head, mean=mean, std=std)


def inference(config: ConfigDict) -> InferenceConfig:
    """The published protocol (spec weclip, section 10)."""
    return InferenceConfig(
        mean=tuple(config.clip.mean),
        std=tuple(config.clip.std),
        average="logits",
        temperature=1.0,  # the head's logits are no cosines
        **config.inference.to_dict(),
    )


def network(config: ConfigDict, workdir: Path) -> Network:
    """The model with its trained head, as it is evaluated; its features are the fused ones."""
    model = load_trained(config, workdir)
    cfg = dataclasses.replace(inference(config), min_side_px=model.clip.visual.cfg.patch_px)
    return Network(task.build(model, task_config(config)), cfg, _fused)


def _fused(model: WeCLIP, images: Array, sizes: Array) -> Array:
    features = model.encode(images, sizes, maps=False)
    fused = model.decode(features).fused
    return fused.reshape(fused.shape[0], *features.shape, -1)
