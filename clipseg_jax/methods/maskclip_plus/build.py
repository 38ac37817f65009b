"""The parts of MaskCLIP+'s recipe, as its config describes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx
from ml_collections import ConfigDict

import weights_convert
from clipseg_jax.core.modules import initialised
from clipseg_jax.inference import InferenceConfig
from clipseg_jax.methods.maskclip.model import MaskCLIPConfig
from clipseg_jax.methods.maskclip_plus import task
from clipseg_jax.methods.maskclip_plus.model import MaskCLIPPlus, Student, make_student
from clipseg_jax.methods.maskclip_plus.task import NEVER, MaskCLIPPlusConfig
from clipseg_jax.models.clip import ResNetConfig, ViTConfig, with_class_token
from clipseg_jax.models.resnet import DilatedResNetConfig
from clipseg_jax.stages.clip import load_clip, read_embeddings, with_choices
from clipseg_jax.stages.data import find_dataset, unseen_labels
from clipseg_jax.stages.inference import inference_values
from clipseg_jax.stages.network import Network
from clipseg_jax.stages.sections import options
from clipseg_jax.task import Task

if TYPE_CHECKING:
    from input_pipeline.batches.training import TrainingBatches

STUDENT, GUIDED = "student.safetensors", "student_guided.safetensors"

# Width, and patches or blocks, of the released image towers.
_TOWERS: dict[tuple[int, int | tuple[int, ...]], str] = {
    (64, (3, 4, 6, 3)): "rn50",
    (64, (3, 4, 23, 3)): "rn101",
    (80, (4, 6, 10, 6)): "rn50x4",
    (96, (6, 8, 18, 8)): "rn50x16",
    (128, (3, 15, 36, 10)): "rn50x64",
    (768, 32): "vit_b32",
    (768, 16): "vit_b16",
    (1024, 14): "vit_l14",
}


def build(config: ConfigDict, workdir: Path) -> tuple[MaskCLIPPlus, str]:
    """An untrained student with the config's CLIP for its teacher; the sha256 of that CLIP's file.

    Raises:
      ValueError: another CLIP than the config is for.
    """
    clip, _, meta = load_clip(config)
    tower = tower_name(with_class_token(clip.visual, "MaskCLIP+").cfg)
    if config.clip.tower not in ("", tower):
        raise ValueError(
            f"{config.clip.weights} is {tower or 'no released CLIP'}, the config is for "
            f"{config.clip.tower}; give its weights, or choose teacher={tower or '...'} after the "
            "config's name"
        )
    rows = read_embeddings(config, workdir)
    seed = config.train.seed
    student = initialised(lambda rngs: student_of(config, rows.shape[1], rngs), seed)
    background = find_dataset(config.dataset).background
    visual = with_class_token(with_choices(clip, config).visual, "MaskCLIP+")
    model = MaskCLIPPlus(student, rows, visual, background=background, rngs=nnx.Rngs(seed))
    return model, meta["sha256"]


def student_of(config: ConfigDict, features: int, rngs: Any) -> Student:
    """The config's student, untrained."""
    student = config.student
    cfg = options(DilatedResNetConfig, student)
    return make_student(student.decoder, cfg, features, rngs=rngs)


def tower_name(vision: ViTConfig | ResNetConfig) -> str:
    """What configs call a released image tower; "" for any other."""
    sizes = vision.patch_px if isinstance(vision, ViTConfig) else tuple(vision.blocks)
    return _TOWERS.get((vision.width, sizes), "")


def task_config(config: ConfigDict) -> MaskCLIPPlusConfig:
    """How the config's student is taught."""
    return options(
        MaskCLIPPlusConfig,
        config.student,
        unlabelled_classes=unseen(config),
        refine=MaskCLIPConfig(**config.maskclip.to_dict()),
        mean=tuple(config.clip.mean),
        std=tuple(config.clip.std),
    )


def unseen(config: ConfigDict) -> tuple[int, ...]:
    """The labels that the zero-shot setting holds out; () without annotation.

    Raises:
      ValueError: an unknown setting or class, one that the dataset can't have, or nothing is held
        out.
    """
    setting, dataset = config.student.setting, find_dataset(config.dataset)
    if setting == "annotation_free":
        if dataset.background:
            raise ValueError(
                f"{dataset.name} has a background, for which there is no label without annotation; "
                "take the dataset without it (VOC 20, Context 59)"
            )
        return ()
    if setting != "zero_shot":
        raise ValueError(f"setting {setting!r}: choose annotation_free or zero_shot")
    return unseen_labels(config.dataset)


def training_batches(config: ConfigDict) -> TrainingBatches:
    """Views of the training images; -1 where the teacher or the student labels."""
    from input_pipeline.batches.training import random_view_batches  # with the extra "data"

    student, dataset = config.student, find_dataset(config.dataset)
    held_out = unseen(config)
    # Without annotation the label files only say what is ignored.
    labels = bool(held_out) or student.use_gt_ignore
    return random_view_batches(
        dataset,
        dataset.index(config.dataset.root, config.dataset.train_split, labels=labels),
        batch_size=student.batch_size,
        scale=tuple(student.scale_px),
        ratio_range=tuple(student.ratio_range),
        crop_hw=tuple(student.crop_px),
        unlabelled=held_out or True,
        seed=config.train.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        on_bad="skip",
    )


def inference(config: ConfigDict) -> InferenceConfig:
    """Whole images, as the student sees them; its channels are the labels."""
    return InferenceConfig(
        mean=tuple(config.clip.mean),
        std=tuple(config.clip.std),
        **inference_values(config.inference),
    )


def student_task(model: MaskCLIPPlus) -> Task:
    """A student without its teacher, to evaluate."""
    return task.build(model, MaskCLIPPlusConfig(guided_steps=NEVER))


def load_student(config: ConfigDict, path: str | Path) -> MaskCLIPPlus:
    """A trained student, ours or released; needs no CLIP."""
    names = find_dataset(config.dataset).class_names
    trained = weights_convert.load_trained(path, weights_convert.MASKCLIP_PLUS, classes=names)
    return weights_convert.build_maskclip_plus(trained, dtype=config.student.dtype)


def network(config: ConfigDict, workdir: Path) -> Network:
    """The trained student, as it is evaluated; its features are comparable with texts."""
    path = config.student.trained_weights or workdir / STUDENT
    return Network(
        student_task(load_student(config, path)),
        inference(config),
        lambda model, images, sizes: model.student(images, sizes, train=False),
    )
