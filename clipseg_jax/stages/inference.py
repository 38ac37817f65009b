"""A config's sections `clip`, `text` and `inference` as what inference takes."""

from __future__ import annotations

from ml_collections import ConfigDict

from clipseg_jax.inference import InferenceConfig
from clipseg_jax.stages.clip import row_labels


def inference_config(config: ConfigDict) -> InferenceConfig:
    """Preprocessing, windows and labels of a classifier of text rows."""
    return InferenceConfig(
        mean=tuple(config.clip.mean),
        std=tuple(config.clip.std),
        embedding_labels=row_labels(config),
        **config.inference.to_dict(),
    )
