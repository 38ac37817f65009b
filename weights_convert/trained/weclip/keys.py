"""Key map of WeCLIP's and WTCLIP's heads. Left: as stored; right: our paths.

Spec weclip, section 12; spec wtclip, sections 2 and 7. A file also holds the frozen CLIP under
`ENCODER`, and arrays that the published code computes itself, `COMPUTED`.
"""

from __future__ import annotations

from weights_convert.clip.keys import block
from weights_convert.mapping import CONV_1X1_LINEAR, KeyMap, Rule, Transform, linear

ENCODER = "encoder."
COMPUTED = (
    "encoder.visual.positional_embedding_new",  # positions resized by the last forward pass
    "par.kernel",
    "decoder.wtconv.depthwise.wt_filter",
    "decoder.wtconv.depthwise.iwt_filter",
)
# (c, 1, s, s) <-> (s, s, c), and (1, c, 1, 1) <-> (c,)
DEPTHWISE = Transform(lambda x: x[:, 0].transpose(1, 2, 0), lambda x: x.transpose(2, 0, 1)[:, None])
SCALE = Transform(lambda x: x[0, :, 0, 0], lambda x: x[None, :, None, None])
_FUSION, _DECODER, _WAVELET = "decoder_fts_fuse.", "decoder.", "decoder.wtconv."


HEAD = KeyMap(
    [
        *linear(_FUSION + "linears_modulelist.{i}.proj", "head.fusion.adapters.{i}.proj"),
        *linear(_FUSION + "linears_modulelist.{i}.proj_2", "head.fusion.adapters.{i}.proj_2"),
        *linear(_FUSION + "linear_fuse", "head.fusion.fuse", CONV_1X1_LINEAR),
        *linear(_FUSION + "spatial_attention.0", "head.fusion.gate", CONV_1X1_LINEAR),
        *block(_DECODER + "transformer", "head.decoder.transformer"),
        *linear(_DECODER + "linear_pred", "head.decoder.classifier", CONV_1X1_LINEAR),
        *linear(_WAVELET + "depthwise.base_conv", "head.decoder.wavelet.base", DEPTHWISE),
        Rule(_WAVELET + "depthwise.base_scale.weight", "head.decoder.wavelet.base.scale", SCALE),
        Rule(
            _WAVELET + "depthwise.wavelet_convs.{i}.weight",
            "head.decoder.wavelet.bands.{i}.kernel",
            DEPTHWISE,
        ),
        Rule(
            _WAVELET + "depthwise.wavelet_scale.{i}.weight",
            "head.decoder.wavelet.bands.{i}.scale",
            SCALE,
        ),
        Rule(
            _WAVELET + "pointwise.weight", "head.decoder.wavelet.pointwise.kernel", CONV_1X1_LINEAR
        ),
    ]
)
