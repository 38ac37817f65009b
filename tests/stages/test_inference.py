"""A config's words as what inference takes."""

from __future__ import annotations

import pytest

from clipseg_jax.ops.crf import CRFConfig
from clipseg_jax.ops.pamr import PAMRConfig
from clipseg_jax.ops.par import PARConfig
from clipseg_jax.stages.inference import inference_config
from configs import demo_readout, voc_maskclip


@pytest.mark.parametrize(
    ("word", "kind"),
    [("", type(None)), ("pamr", PAMRConfig), ("par", PARConfig), ("crf", CRFConfig)],
)
def test_refinements(word, kind):
    config = demo_readout.get_config("naclip")
    config.inference.refine, config.inference.pamr.steps = word, 3
    cfg = inference_config(config)
    assert type(cfg.refine) is kind
    if word == "pamr":
        assert cfg.refine == PAMRConfig(steps=3, dilations=(8, 16))
    config.inference.refine = "par "
    with pytest.raises(ValueError, match="refine is 'par '; give '' or 'pamr' or 'par' or 'crf'"):
        inference_config(config)


def test_a_recipe_without_refinement():
    cfg = inference_config(voc_maskclip.get_config())
    assert cfg.refine is None
    assert cfg.embedding_labels == tuple(range(20))
