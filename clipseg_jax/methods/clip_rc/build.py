"""What CLIP-RC's recipe reads of a config: classes, choices, and models."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

import weights_convert
from clipseg_jax.inference import InferenceConfig
from clipseg_jax.methods.clip_rc import task
from clipseg_jax.methods.clip_rc.model import CLIPRC, CLIPRCConfig, init_clip_rc
from clipseg_jax.methods.clip_rc.task import CLIPRCTaskConfig
from clipseg_jax.models.clip import with_class_token
from clipseg_jax.stages.clip import load_clip, read_embeddings
from clipseg_jax.stages.data import find_dataset, unseen_labels
from clipseg_jax.stages.network import Network
from clipseg_jax.stages.sections import options
from weights_convert.trained.clip_rc.format import is_whole

HALF, LAST = "clip_rc_half.safetensors", "clip_rc_last.safetensors"


def unseen(config: ConfigDict) -> tuple[int, ...]:
    """The labels held out; those that are scored apart where all are seen, which may be none."""
    named = config.dataset.unseen or find_dataset(config.dataset).unseen
    if config.clip_rc.setting == "fully" and not named:
        return ()
    return unseen_labels(config.dataset)


def task_config(config: ConfigDict) -> CLIPRCTaskConfig:
    """Which labels train the network, and how its losses are weighted."""
    classes = find_dataset(config.dataset).num_classes
    held_out = unseen(config)
    seen = tuple(label for label in range(classes) if label not in held_out)
    return options(
        CLIPRCTaskConfig,
        config.clip_rc,
        seen=tuple(range(classes)) if config.clip_rc.setting == "fully" else seen,
        mean=tuple(config.inference.mean),
        std=tuple(config.inference.std),
    )


def model_config(config: ConfigDict) -> CLIPRCConfig:
    """Sizes and choices of the network."""
    return options(CLIPRCConfig, config.clip_rc, remat=config.run.remat)


def inference_config(config: ConfigDict) -> InferenceConfig:
    """Windows of the training crop's size, or whole images."""
    return InferenceConfig(**config.inference.to_dict())


def class_words(config: ConfigDict) -> list[str]:
    """What the rows of text stand for: all class names verbatim, a background's too."""
    return list(find_dataset(config.dataset).class_names)


def build_model(config: ConfigDict, workdir: Path) -> CLIPRC:
    """An untrained model around the config's CLIP.

    Raises:
      ValueError: no CLIP, one without a ViT, or no text embeddings.
    """
    rows = read_embeddings(config, workdir, class_words(config))
    cfg = model_config(config)
    visual = with_class_token(load_clip(config).model.visual, "CLIP-RC")
    return init_clip_rc(visual, rows, cfg, seed=config.train.seed)


def load_model(config: ConfigDict, workdir: Path, path: str | Path) -> CLIPRC:
    """The trained model of a file, ours or published; a published one needs no CLIP beside it.

    Raises:
      CheckpointError: it isn't one, doesn't fit, or was trained with another CLIP.
    """
    result = weights_convert.load_trained(path, weights_convert.CLIP_RC)
    if is_whole(result) and not config.clip.weights:
        rows = read_embeddings(config, workdir, class_words(config))
        cfg = model_config(config)
        return weights_convert.build_clip_rc(
            result,
            rows,
            dtype=config.clip.dtype,
            heads=cfg.heads,
            dropout=cfg.dropout,
            remat=cfg.remat,
        )
    model = build_model(config, workdir)
    weights_convert.install_clip_rc(model, result, path)
    return model


def network(config: ConfigDict, workdir: Path) -> Network:
    """The trained model, as it is evaluated; its features are those of the patches."""
    model = load_model(config, workdir, config.clip_rc.trained_weights or workdir / LAST)
    return Network(
        task.build(model, task_config(config)),
        inference_config(config),
        lambda model, images, sizes: model.encoder(images, sizes).patches,
    )
