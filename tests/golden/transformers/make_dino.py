"""Writes dino.json and dino.npz: features of small DINOs of `transformers`, with seeded weights.

Run in an environment with torch, transformers and safetensors, from the root of the repository:
python -m tests.golden.transformers.make_dino
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from tests import seeded

FOLDER = Path(__file__).parent
SEED = 41
_SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 48}
# name: (class of transformers, options, sizes of images). At other sizes than the stored one, only
# the towers with registers resize positions in transformers as in the authors' code.
MODELS = {
    "dino": ("ViT", {"patch_size": 8, "intermediate_size": 192}, [(48, 48)]),
    "dinov2": ("Dinov2", {"patch_size": 12}, [(48, 48)]),
    "dinov2_swiglu": ("Dinov2", {"patch_size": 12, "use_swiglu_ffn": True}, [(48, 48)]),
    "dinov2_registers": ("Dinov2WithRegisters", {"patch_size": 8}, [(48, 48), (40, 72), (24, 33)]),
}


def weight(name, shape, seed=SEED):
    """A seeded weight; scales of layers are near 1, so that the blocks count."""
    return seeded.tensor(name.replace("lambda1", "gamma"), shape, seed)


def pixels(size, seed=SEED):
    """A normalised image (h, w, 3)."""
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    return ((seeded.image(*size, seed) - mean) / std).astype(np.float32)


def saved(kind, options, folder):
    """A random model of transformers, with the files that it writes."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(**_SMALL, **options)
    pooling = {"add_pooling_layer": False} if kind == "ViT" else {}
    model = getattr(transformers, f"{kind}Model")(config, **pooling).eval()
    model.save_pretrained(folder)
    return model


def features(model, size):
    """Patch tokens (hp, wp, d) after the last norm."""
    import torch

    x = torch.from_numpy(pixels(size)).permute(2, 0, 1)[None]
    with torch.no_grad():
        tokens = model(x).last_hidden_state[0]
    patch = model.config.patch_size
    rows, columns = size[0] // patch, size[1] // patch
    return tokens[-rows * columns :].reshape(rows, columns, -1).numpy()


def main() -> None:
    """Writes the two files."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    cases, arrays = {}, {}
    for name, (kind, options, sizes) in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            saved(kind, options, folder)
            shapes = {key: tuple(value.shape) for key, value in load_file(path).items()}
            weights = {key: torch.from_numpy(weight(key, shape)) for key, shape in shapes.items()}
            save_file(weights, path, {"format": "pt"})
            model = getattr(transformers, f"{kind}Model").from_pretrained(
                folder, **({"add_pooling_layer": False} if kind == "ViT" else {})
            )
            config = json.loads((Path(folder) / "config.json").read_text())
        for size in sizes:
            arrays[f"{name}_{size[0]}x{size[1]}"] = features(model.eval(), size)
        cases[name] = {"config": config, "shapes": shapes, "sizes": sizes}
    (FOLDER / "dino.json").write_text(json.dumps({"seed": SEED, "models": cases}, indent=1) + "\n")
    np.savez_compressed(FOLDER / "dino.npz", **arrays)


if __name__ == "__main__":
    main()
