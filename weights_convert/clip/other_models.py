"""Models that are taken for CLIPs, told by names that no CLIP has."""

from __future__ import annotations

import re
from collections.abc import Iterable

DINO = "a DINO, which load_dino reads, or another plain ViT"
_MODELS = {
    r"bert\.|text_model\.encoder\.layer\.\d": "Chinese-CLIP, AltCLIP or another with a BERT",
    r"visual\.blocks\.": "EVA-CLIP",
    r"visual\.trunk\.|visual\.head\.": "OpenCLIP with an image tower of timm, such as SigLIP",
    r"visual\.attn_pool\.|text_decoder\.": "CoCa, BLIP or another with a text decoder",
    r"text\.transformer\.(embeddings|encoder|layer|shared)\.": "OpenCLIP with another text tower",
    r"visual_encoder\.|vision_model\.encoder\.layers\.\d+\.self_attn\.qkv\.": "BLIP or ALBEF",
    r"(q_?former|language_model|language_projection)\.": "BLIP-2 or LLaVA",
    r"vision_model\.encoder\.stages\.": "GroupViT",
    r"visual\.transformer\.resblocks\.\d+\.ls_1\.": "OpenCLIP with layer scale",
    r"patch_embed\.proj\.|embeddings\.patch_embeddings\.projection\.": DINO,
}
_PATTERNS = {re.compile(rf"(?:^|\.)(?:{pattern})"): name for pattern, name in _MODELS.items()}


def other_model(keys: Iterable[str]) -> str | None:
    """The kind of model that the names of tensors are evidently of; None: none that is known."""
    for key in keys:
        for pattern, name in _PATTERNS.items():
            if pattern.search(key):
                return name
    return None
