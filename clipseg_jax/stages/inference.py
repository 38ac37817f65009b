"""A config's sections `clip`, `text` and `inference` as what inference takes."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from ml_collections import ConfigDict

from clipseg_jax.core.checks import check_choice
from clipseg_jax.inference_config import REFINEMENTS, InferenceConfig
from clipseg_jax.ops.crf import CRFConfig
from clipseg_jax.ops.pamr import PAMRConfig
from clipseg_jax.stages.clip import row_labels


def inference_config(config: ConfigDict) -> InferenceConfig:
    """Preprocessing, windows and labels of a classifier of text rows."""
    return InferenceConfig(
        mean=tuple(config.clip.mean),
        std=tuple(config.clip.std),
        embedding_labels=row_labels(config),
        **inference_values(config.inference),
    )


def with_crf(
    cfg: InferenceConfig, config: ConfigDict, image: Literal["wrapped", "raw"]
) -> InferenceConfig:
    """`cfg` with the CRF of the config's section `crf` after it, along the edges of `image`."""
    return dataclasses.replace(
        cfg,
        refine=CRFConfig(**config.crf.to_dict()),
        refine_px=config.dataset.longest_px,
        crf_image=image,
    )


def inference_values(section: ConfigDict) -> dict[str, Any]:
    """The section's values, with the refinement that `refine` names in place of its name.

    Raises:
      ValueError: an unknown refinement, or one with values that have no meaning.
    """
    values = section.to_dict()
    if "refine" not in values:
        return values
    choices = {"": None, **REFINEMENTS, "pamr": PAMRConfig(**values.pop("pamr"))}
    check_choice("refine", values["refine"], tuple(choices))
    return {**values, "refine": choices[values["refine"]], "crf_image": "raw"}
