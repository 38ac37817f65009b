"""Wrote this folder, with the code of commit 7e46c3c; README.md has the command.

Module names are those of that commit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_default_matmul_precision", "highest")

from clipseg_jax.models.clip_rc import CLIPRCConfig, initial  # noqa: E402
from clipseg_jax.models.maskclip_plus import MaskCLIPPlus, make_student  # noqa: E402
from clipseg_jax.models.reclip import (  # noqa: E402
    RECLIP,
    RECLIP_PP,
    ReCLIP,
    ReferencePrompt,
    frozen_reference,
    image_tower,
)
from clipseg_jax.models.reclip_distill import Distillation  # noqa: E402
from clipseg_jax.models.reclip_heads import BiasDecoder, PositionNet  # noqa: E402
from clipseg_jax.models.weclip_head import HeadConfig  # noqa: E402
from clipseg_jax.tasks import weclip as weclip_task  # noqa: E402
from weights_convert.build import flat_arrays  # noqa: E402
from weights_convert.writer import write_torch  # noqa: E402

import weights_convert  # noqa: E402
from clipseg_jax.core.mesh import make_mesh  # noqa: E402
from clipseg_jax.core.modules import abstract  # noqa: E402
from clipseg_jax.core.optim import OptimConfig  # noqa: E402
from clipseg_jax.models.deeplab import DeepLab  # noqa: E402
from clipseg_jax.models.deeplab_v2 import BACKBONE, DeepLabV2  # noqa: E402
from clipseg_jax.models.resnet import DilatedResNetConfig  # noqa: E402
from clipseg_jax.train import TrainConfig, train  # noqa: E402
from tests import toy_task  # noqa: E402
from tests.weights_convert import toys  # noqa: E402
from weights_convert import results  # noqa: E402

EMBED, WIDTH = 8, 64
NAMES = ["background", "cat", "dog"]
RESNET = DilatedResNetConfig(blocks=(1, 1, 1, 1), width=4)
FOLDER = Path(sys.argv[1])


def fingerprint(arrays):
    """One digest over names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def random_arrays(shapes, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def filled(model, seed):
    """A model with random values everywhere."""
    arrays = random_arrays({k: x.shape for k, x in flat_arrays(model).items()}, seed)
    weights_convert.install(model, arrays)
    return model


def trained_files(clip):
    rows = np.eye(len(NAMES), EMBED, dtype=np.float32)
    for name, plus_plus in (("reclip_rectified", False), ("reclip_pp_distilled", True)):
        kind, cfg = (BiasDecoder, RECLIP_PP) if plus_plus else (PositionNet, RECLIP)
        tower = image_tower(clip.visual, "gelu")
        prompt = ReferencePrompt(clip.text, [[1, 40, 0]] * len(NAMES))
        head = filled(abstract(lambda rngs, k=kind: k(WIDTH, EMBED, len(NAMES), rngs=rngs)), 1)
        model = ReCLIP(tower, rows, prompt, head, cfg)
        stage = "rectification"
        if plus_plus:
            student = filled(abstract(lambda rngs: DeepLab(RESNET, EMBED, rngs=rngs)), 2)
            model, stage = Distillation(student, frozen_reference(model)), "distillation"
        record = results.record(
            stage, plus_plus=plus_plus, revision="2024", classes=NAMES, clip_sha256="0" * 64,
            visual=clip.visual, figures={"steps": 4},
        )  # fmt: skip
        results.save_result(FOLDER / f"{name}.safetensors", results.kept_arrays(model), record)
        yield name, flat_arrays(model)
    for name, cfg in (
        ("weclip", HeadConfig(width=32, layers=1, heads=1)),
        ("wtclip", HeadConfig(width=32, layers=1, heads=1, gate=True, wavelet_levels=1)),
    ):
        words = np.eye(EMBED, dtype=np.float32)
        model = weclip_task.initial(clip.visual, words[:2], words[2:], head=cfg)
        weights_convert.save_weclip(FOLDER / f"{name}.safetensors", model, NAMES, figures={})
        yield name, flat_arrays(model)
    cfg = CLIPRCConfig(crop_px=32, prompts=3, region_side=2, rounds=2, heads=8, hidden=16)
    model = initial(clip.visual, rows, cfg)
    weights_convert.save_clip_rc(
        FOLDER / "clip_rc.safetensors", model, classes=NAMES, seen=[0, 2], setting="inductive"
    )
    yield "clip_rc", flat_arrays(model)
    model = filled(
        abstract(
            lambda rngs: MaskCLIPPlus(
                make_student("deeplabv2", RESNET, EMBED, rngs=rngs),
                np.zeros((2, EMBED), np.float32),
                background=True,
                rngs=rngs,
            )
        ),
        3,
    )
    weights_convert.save_maskclip_plus(
        FOLDER / "maskclip_plus.safetensors", model, NAMES, steps=4, setting="zero_shot"
    )
    yield "maskclip_plus", flat_arrays(model)
    backbone = dataclasses.replace(BACKBONE, blocks=(1, 1, 1, 1), width=4)
    model = filled(abstract(lambda rngs: DeepLabV2(len(NAMES), backbone, rngs=rngs)), 4)
    weights_convert.save_deeplab(FOLDER / "deeplab.safetensors", model, NAMES, figures={})
    yield "deeplab", flat_arrays(model)


def convert_clip():
    shapes = toys.vit_shapes(width=WIDTH, layers=2, embed=EMBED, layers_of_text=1)
    shapes = {k: (64, s[1]) if k == "token_embedding.weight" else s for k, s in shapes.items()}
    weights = {k: x.astype(np.float16) for k, x in random_arrays(shapes, 5).items()}
    source = write_torch(FOLDER / "source.pt", weights)
    converted = weights_convert.convert(source)
    weights_convert.save_converted(FOLDER / "clip.safetensors", converted)
    source.unlink()
    return weights_convert.load_clip(FOLDER / "clip.safetensors").model


class KilledError(Exception):
    pass


def interrupt_a_run():
    """Four steps of the toy task, killed after a checkpoint at step 2; and the same unbroken."""

    def batches(start):
        for step, batch in enumerate(toy_task.batches(start), start):
            if step == 3:
                raise KilledError
            yield batch

    cfg = TrainConfig(total_steps=4, log_every_steps=1, checkpoint_every_steps=2)
    optim = OptimConfig(learning_rate=0.1, hold_steps=4)
    options = {"mesh": make_mesh(1, 1), "name": "toy"}
    try:
        train(toy_task.build(), batches, optim, cfg, workdir=FOLDER / "run", **options)
    except KilledError:
        pass
    else:
        raise AssertionError("the run was to be killed")
    whole = train(
        toy_task.build(), toy_task.batches, optim, cfg, workdir=Path(sys.argv[2]), **options
    )
    state = nnx.to_flat_state(nnx.state(whole.model))
    arrays = {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in state}
    np.savez(FOLDER / "run_after_4_steps.npz", **arrays)


def main():
    clip = convert_clip()
    expected = {"clip": flat_arrays(clip)}
    expected |= dict(trained_files(clip))
    told = {}
    for name, arrays in expected.items():
        arrays = {key: np.asarray(x) for key, x in arrays.items()}
        if name != "clip":
            path = FOLDER / f"{name}.safetensors"
            kept, _ = weights_convert.safetensors_file.parse(weights_convert.reader.map_file(path))
            arrays = {key: arrays[key] for key in kept}  # what the model held, not the file
        told[name] = {"arrays": len(arrays), "sha256": fingerprint(arrays)}
    (FOLDER / "expected.json").write_text(json.dumps(told, indent=2) + "\n")
    interrupt_a_run()


main()
