"""Outputs of transformers' and OpenCLIP's models with seeded weights: clip.npz and clip.json.

    python -m tests.golden.transformers.make_clip   # torch 2.15, transformers 5.23, open_clip 3.3

The tests make the same weights again from the shapes in clip.json, and load them as a directory.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np

from tests import seeded

HERE = Path(__file__).resolve().parent
_VISION = {"hidden_size": 48, "num_hidden_layers": 2, "image_size": 64, "patch_size": 16}
_TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 16, "vocab_size": 99}
_GELU = {"hidden_act": "gelu"}


def _clip(vision, text, embed=24):
    text = _TEXT | {"eos_token_id": 98, "bos_token_id": 97, "pad_token_id": 0} | text
    towers = {"vision_config": _VISION | vision, "text_config": text}
    return {"model_type": "clip", "projection_dim": embed, **towers}


def _siglip(vision, text):
    return {
        "model_type": "siglip",
        "vision_config": _VISION | vision,
        "text_config": _TEXT | {"hidden_size": vision.get("hidden_size", 48)} | text,
    }


def _naflex(vision, text):
    config = _siglip(vision, text) | {"model_type": "siglip2"}
    del config["vision_config"]["image_size"]
    config["vision_config"]["num_patches"] = 16
    return config


def _open_clip(vision, text, **model):
    vision = {"width": 48, "layers": 2, "image_size": 64, "patch_size": 16} | vision
    text = {"width": 32, "layers": 2, "context_length": 16, "vocab_size": 99} | text
    return {"model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, **model}}


# By name: a config.json, or an open_clip_config.json.
CONFIGS = {
    "clip_16": _clip(
        {"intermediate_size": 192, "num_attention_heads": 3},
        {"intermediate_size": 128, "num_attention_heads": 2},
    ),
    "clip_14": _clip(
        {"patch_size": 14, "image_size": 56, "hidden_size": 40, "intermediate_size": 176,
         "num_attention_heads": 5, "layer_norm_eps": 1e-4, **_GELU},
        {"intermediate_size": 100, "num_attention_heads": 4, "layer_norm_eps": 1e-4, **_GELU},
        embed=32,
    ),
    "clip_32": _clip(
        {"patch_size": 32, "image_size": 96, "intermediate_size": 96, "num_attention_heads": 2},
        {"hidden_size": 48, "intermediate_size": 192, "num_attention_heads": 6,
         "hidden_act": "gelu_pytorch_tanh"},
        embed=56,
    ),
    # In the proportions of LAION's g and bigG, DFN's H, and with what newer configs may say.
    "open_clip_g": _open_clip(
        {"width": 44, "head_width": 11, "mlp_ratio": 4.3637, "patch_size": 14, "image_size": 56},
        {"heads": 4},
    ),
    "open_clip_bigg": _open_clip(
        {"width": 52, "head_width": 13, "mlp_ratio": 4.9231}, {"heads": 2}
    ),
    "open_clip_h": _open_clip(
        {"width": 40, "head_width": 10, "patch_size": 14, "image_size": 42}, {"heads": 4},
        quick_gelu=True,
    ),
    "open_clip_custom": _open_clip(
        {"head_width": 12, "norm_kwargs": {"eps": 1e-4}, "act_kwargs": {"approximate": "tanh"}},
        {"heads": 2, "mlp_ratio": 3.0, "norm_kwargs": {"eps": 1e-6}},
        custom_text=True, init_logit_bias=-10,
    ),
    "siglip": _siglip(
        {"intermediate_size": 192, "num_attention_heads": 3},
        {"intermediate_size": 192, "num_attention_heads": 3},
    ),
    # As SO400M/14 at 384 px, whose image is no whole number of patches, and heads of another width.
    "siglip_14": _siglip(
        {"patch_size": 14, "image_size": 60, "intermediate_size": 179, "num_attention_heads": 2},
        {"intermediate_size": 179, "num_attention_heads": 2},
    ),
    # As SigLIP 2's giant: the text tower is narrower than the image tower.
    "siglip2": _siglip(
        {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 2},
        {"hidden_size": 48, "intermediate_size": 100, "num_attention_heads": 3,
         "projection_size": 64, "vocab_size": 150},
    ),
    "naflex": _naflex(
        {"intermediate_size": 100, "num_attention_heads": 3},
        {"intermediate_size": 192, "num_attention_heads": 2},
    ),
}  # fmt: skip


def sizes(config):
    """Heights and widths of the two images of a case: the model's own, and another grid."""
    towers = config.get("model_cfg", config)
    vision = towers.get("vision_config") or towers["vision_cfg"]
    patch = vision["patch_size"]
    side = vision.get("image_size", 4 * patch)
    return [(side, side), (side + 2 * patch, side - patch)]


def images(config):
    """Normalised images (1, h, w, 3) float32; OpenCLIP's models take their own size only."""
    pixels = [seeded.image(*size, 5)[None] for size in sizes(config)]
    normalised = [(image / 127.5 - 1).astype(np.float32) for image in pixels]
    return normalised[:1] if "model_cfg" in config else normalised


def ids(config):
    """Token ids (2, 16): words, an end token that is the highest id, padding."""
    text = config["text_config"] if "text_config" in config else config["model_cfg"]["text_cfg"]
    last = text["vocab_size"] - 1
    rows = np.random.RandomState(3).randint(1, last - 1, (2, 16))
    rows[0, 5], rows[1, 9] = last, last
    rows[0, 6:], rows[1, 10:] = 0, 0
    return rows.astype(np.int32)


def run(name):
    """Outputs of a case by their names, and the shapes of its state dict; needs torch."""
    import torch

    config = copy.deepcopy(CONFIGS[name])
    model = _model(config).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    weights = seeded.state_dict(shapes, 7)
    model.load_state_dict(
        {key: torch.from_numpy(np.asarray(value)) for key, value in weights.items()}
    )
    return features(model, CONFIGS[name]), shapes


def features(model, config):
    """What tests compare, by names, of a model with its weights."""
    import torch

    texts = torch.from_numpy(ids(config).astype(np.int64))
    out = {}
    with torch.no_grad():
        for i, image in enumerate(images(config)):
            pooled, tokens = _image_features(model, _inputs(config, image))
            out |= {f"image{i}": pooled, f"tokens{i}": tokens}
        out["text"] = _text_features(model, texts)
        if "model_cfg" not in config:
            inputs = _inputs(config, images(config)[0])
            inputs.pop("interpolate_pos_encoding", None)
            out["logits"] = model(**inputs, input_ids=texts).logits_per_image
    return {key: value.numpy() for key, value in out.items()}


def _model(config):
    if "model_cfg" in config:
        from open_clip.model import CLIP, CustomTextCLIP

        cfg = config["model_cfg"]
        custom = cfg.pop("custom_text", False)
        return (CustomTextCLIP if custom else CLIP)(**cfg)
    import transformers

    kinds = {
        "clip": (transformers.CLIPConfig, transformers.CLIPModel),
        "siglip": (transformers.SiglipConfig, transformers.SiglipModel),
        "siglip2": (transformers.Siglip2Config, transformers.Siglip2Model),
    }
    config_class, model_class = kinds[config["model_type"]]
    return model_class(config_class(**{k: v for k, v in config.items() if k != "model_type"}))


def _inputs(config, image):
    """What an image tower takes of an image (1, h, w, 3)."""
    import torch

    if config.get("model_type") != "siglip2":
        pixels = torch.from_numpy(np.moveaxis(image, -1, 1).copy())
        return {"pixel_values": pixels, "interpolate_pos_encoding": True}
    side = config["vision_config"]["patch_size"]
    _, h, w, _ = image.shape
    rows, columns = h // side, w // side
    patches = image.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    return {
        "pixel_values": torch.from_numpy(patches.reshape(1, rows * columns, -1).copy()),
        "pixel_attention_mask": torch.ones(1, rows * columns, dtype=torch.int64),
        "spatial_shapes": torch.tensor([[rows, columns]]),
    }


def _image_features(model, inputs):
    """Image features, and the tokens that our towers give as well."""
    if not hasattr(model, "vision_model"):  # OpenCLIP's
        kept = []
        hook = model.visual.transformer.register_forward_hook(lambda *x: kept.append(x[-1]))
        pooled = model.encode_image(inputs["pixel_values"])
        hook.remove()
        return pooled, kept[0]
    out = model.vision_model(**inputs)
    if hasattr(model, "visual_projection"):
        return model.visual_projection(out.pooler_output), out.last_hidden_state
    return out.pooler_output, out.last_hidden_state


def _text_features(model, texts):
    if not hasattr(model, "text_model"):
        return model.encode_text(texts)
    pooled = model.text_model(input_ids=texts).pooler_output
    return model.text_projection(pooled) if hasattr(model, "text_projection") else pooled


def main() -> None:
    """Writes clip.npz, the outputs, and clip.json, the shapes."""
    arrays, all_shapes = {}, {}
    for name in CONFIGS:
        outputs, all_shapes[name] = run(name)
        arrays |= {f"{name}.{key}": value for key, value in outputs.items()}
    np.savez_compressed(HERE / "clip.npz", **arrays)
    (HERE / "clip.json").write_text(json.dumps(all_shapes, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
