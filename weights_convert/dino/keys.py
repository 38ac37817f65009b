"""Key maps of DINO, DINOv2 and DINOv2 with registers.

Left: as published; right: our paths, or the authors' names. Spec readouts, section 12; files of
`save_pretrained` of transformers 5.23, whose names are those of version 4.
"""

from __future__ import annotations

from weights_convert.mapping import CONV, HEAD_AXES, HEAD_AXIS, KeyMap, Rule, layer_norm, linear

MASK_TOKEN = "mask_token"  # of DINOv2's training; no tower here has it, exports repeat it


_BLOCK = "blocks.{i}"
AUTHORS = KeyMap(
    [
        Rule("cls_token", "cls_token", HEAD_AXES),
        Rule("pos_embed", "pos_embed", HEAD_AXIS),
        Rule("register_tokens", "register_tokens", HEAD_AXIS),
        Rule(MASK_TOKEN, MASK_TOKEN),
        Rule("patch_embed.proj.weight", "patch_embed.kernel", CONV),
        Rule("patch_embed.proj.bias", "patch_embed.bias"),
        *layer_norm(f"{_BLOCK}.norm1", f"{_BLOCK}.norm1"),
        *linear(f"{_BLOCK}.attn.qkv", f"{_BLOCK}.attn.in_proj"),
        *linear(f"{_BLOCK}.attn.proj", f"{_BLOCK}.attn.out_proj"),
        Rule(f"{_BLOCK}.ls1.gamma", f"{_BLOCK}.ls1"),
        *layer_norm(f"{_BLOCK}.norm2", f"{_BLOCK}.norm2"),
        *linear(f"{_BLOCK}.mlp.fc1", f"{_BLOCK}.mlp.c_fc"),
        *linear(f"{_BLOCK}.mlp.fc2", f"{_BLOCK}.mlp.c_proj"),
        *linear(f"{_BLOCK}.mlp.w12", f"{_BLOCK}.mlp.w12"),
        *linear(f"{_BLOCK}.mlp.w3", f"{_BLOCK}.mlp.w3"),
        Rule(f"{_BLOCK}.ls2.gamma", f"{_BLOCK}.ls2"),
        *layer_norm("norm", "norm"),
    ]
)


def _huggingface(layer: dict[str, str]) -> KeyMap:
    """Hugging Face -> authors; `layer`: the names in a layer that differ between v1 and v2."""
    leaf, left = "{leaf:weight|bias}", "encoder.layer.{i}"
    rules = [
        Rule("embeddings.cls_token", "cls_token"),
        Rule("embeddings.position_embeddings", "pos_embed"),
        Rule("embeddings.register_tokens", "register_tokens"),
        Rule("embeddings.mask_token", MASK_TOKEN),
        Rule(f"embeddings.patch_embeddings.projection.{leaf}", f"patch_embed.proj.{leaf}"),
        # The authors pack query, key and value into one matrix; "#n" is part n.
        *(
            Rule(f"{left}.attention.attention.{part}.{leaf}", f"{_BLOCK}.attn.qkv.{leaf}#{n}")
            for n, part in enumerate(("query", "key", "value"))
        ),
        Rule(f"{left}.layer_scale{{n:[12]}}.lambda1", f"{_BLOCK}.ls{{n:[12]}}.gamma"),
        Rule(f"layernorm.{leaf}", f"norm.{leaf}"),
    ]
    names = {"attention.output.dense": "attn.proj", **layer}
    rules += [
        Rule(f"{left}.{key}.{leaf}", f"{_BLOCK}.{name}.{leaf}") for key, name in names.items()
    ]
    return KeyMap(rules)


HUGGINGFACE_V1 = _huggingface(
    {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
)
HUGGINGFACE_V2 = _huggingface(
    {
        "norm1": "norm1",
        "norm2": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "mlp.weights_in": "mlp.w12",
        "mlp.weights_out": "mlp.w3",
    }
)
