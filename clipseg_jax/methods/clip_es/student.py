"""The stages that train a DeepLabV2 on masks, or on given label maps, and score it.

Spec deeplab; spec clip_es, section 10.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from absl import logging
from flax import nnx
from ml_collections import ConfigDict

import weights_convert
from clipseg_jax.core.checks import check_choice
from clipseg_jax.core.modules import initialised
from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.core.processes import barrier
from clipseg_jax.methods.clip_es import student_task
from clipseg_jax.methods.clip_es.build import STUDENT, network
from clipseg_jax.methods.clip_es.crf_masks import mask_path
from clipseg_jax.models.batch_norm import BatchNorm
from clipseg_jax.models.deeplab_v2 import STATISTICS, DeepLabV2
from clipseg_jax.models.resnet import RESNET50, RESNET101, DilatedResNetConfig
from clipseg_jax.ops.image import network_input
from clipseg_jax.stages import training
from clipseg_jax.stages.data import check_labelled, find_dataset
from clipseg_jax.stages.evaluation import Evaluation
from clipseg_jax.stages.inference import with_crf
from clipseg_jax.stages.network import recorded
from clipseg_jax.stages.sections import options
from input_pipeline.batches.deeplab_views import multi_scale_batches
from input_pipeline.datasets.layout import Example
from input_pipeline.writing import is_whole_png


def train(config: ConfigDict, workdir: Path) -> dict:
    """Trains on the masks of the stage `masks` or other label maps; writes student.safetensors."""
    student = config.student
    if student.trained_weights:
        return {"skipped": f"config.student.trained_weights is {student.trained_weights}"}
    if not student.init_weights:
        raise ValueError(
            "no initial weights; pass --config.student.init_weights=FILE (ResNet-101 of COCO or "
            "ImageNet, as deeplab-pytorch or Caffe have it), or =random for random weights"
        )
    dataset = find_dataset(config.dataset)
    mean, std = STATISTICS[student.variant]
    crops = functools.partial(
        multi_scale_batches,
        dataset,
        labelled_examples(config, workdir),
        scales=tuple(student.scales),
        crop_hw=tuple(student.crop_px),
        colour=mean,
        batch_size=student.batch_size,
        seed=config.train.seed,
        on_bad="skip",
    )
    model = build(config)
    if student.init_weights == "random":
        if tuple(student.blocks) in (RESNET50, RESNET101):
            logging.warning(
                "the DeepLab starts from random weights; ImageNet's make it far better "
                "(--config.student.init_weights, docs/checkpoints.md)"
            )
        calibrate_batch_norm(model, next(crops().batches()))
    elif student.variant != "caffe":
        weights_convert.load_imagenet(student.init_weights, model.backbone, statistics=True)
    else:
        loaded = weights_convert.load_deeplab_backbone(student.init_weights, model)
        if loaded.skipped:
            logging.warning("%s: not used: %s", student.init_weights, ", ".join(loaded.skipped))
    data = crops(process_index=jax.process_index(), process_count=jax.process_count())
    groups = student_task.groups(student.head_learning_rate_factor)
    optim = OptimConfig(**student.optim.to_dict(), groups=groups)
    cfg = student_task.DeepLabConfig(loss=student.loss, mean=mean, std=std)
    task = student_task.build(model, cfg)
    trained = training.run(
        config, task, data, optim, workdir, "train", total_steps=student.total_steps
    )
    if jax.process_index() == 0:
        last = trained.model
        assert isinstance(last, DeepLabV2)
        weights_convert.save_trained(
            workdir / STUDENT,
            weights_convert.DEEPLAB,
            last,
            classes=dataset.class_names,
            details={"figures": trained.metrics, **recorded(config)},
        )
    barrier("student written")
    return trained.metrics


def labelled_examples(config: ConfigDict, workdir: Path) -> list[Example]:
    """The training images that have a mask, which becomes their label map.

    With `config.student.labels` "dataset" they have the dataset's own.

    Raises:
      ValueError: none has.
    """
    split = config.dataset.train_split
    if config.student.labels == "dataset":
        check_labelled(config.dataset, split, "DeepLab")
        return find_dataset(config.dataset).index(config.dataset.root, split)
    examples = find_dataset(config.dataset).index(config.dataset.root, split, labels=False)
    if config.student.labels == "masks":
        paths = {each.name: mask_path(workdir, each.name) for each in examples}
    else:
        paths = {each.name: Path(config.student.labels) / f"{each.name}.png" for each in examples}
    with_masks = [
        dataclasses.replace(each, label_path=paths[each.name])
        for each in examples
        if paths[each.name].exists()
    ]
    masks = [paths[each.name] for each in with_masks]
    if torn := [path for path in masks if not is_whole_png(path)]:
        raise ValueError(
            f"{torn[0]} and {len(torn) - 1} other masks are damaged or no PNG; delete them and "
            "masks.done.json, and run the stage `masks` again: it makes what is missing"
        )
    if not with_masks:
        raise ValueError(
            f"no mask of the {len(examples)} images of split {split}; run the stage `masks` "
            f"first (looked for {next(iter(paths.values()))})"
        )
    return with_masks


def build(config: ConfigDict) -> DeepLabV2:
    """An untrained DeepLabV2 of the config's sizes."""
    student = config.student
    check_choice("student.variant", student.variant, tuple(STATISTICS))
    cfg = options(DilatedResNetConfig, student)
    classes = find_dataset(config.dataset).num_classes
    return initialised(lambda rngs: DeepLabV2(classes, cfg, rngs=rngs), config.train.seed)


def calibrate_batch_norm(model: DeepLabV2, batch: Mapping[str, np.ndarray]) -> None:
    """Gives random weights' batch norms the statistics of a batch of crops, layer by layer.

    Training keeps them as they are; with means 0 and variances 1 activations grow in every block,
    and no learning rate trains. All processes must pass the same batch.
    """
    graph, state = nnx.split(nnx.clone(model))

    @jax.jit
    def measured(state: nnx.State, images: jax.Array, sizes: jax.Array) -> nnx.State:
        copy = nnx.merge(graph, state)
        copy.backbone.set_attributes(BatchNorm, momentum=1.0)
        statistics = STATISTICS[copy.backbone.cfg.variant]
        copy.backbone(network_input(images, sizes, *statistics), train=True)
        return nnx.state(copy, nnx.BatchStat)

    nnx.update(model, measured(state, batch["image"], batch["image_size"]))


def evaluate_student(config: ConfigDict, workdir: Path) -> dict:
    """The student on the val split: metrics_student.json."""
    trained = network(config, workdir)
    return Evaluation(config, trained.cfg).write(trained.task, workdir, "_student")


def evaluate_student_crf(config: ConfigDict, workdir: Path) -> dict:
    """The same with a CRF after it: metrics_student_crf.json."""
    trained = network(config, workdir)
    cfg = with_crf(trained.cfg, config, config.masks.image)
    return Evaluation(config, cfg).write(trained.task, workdir, "_student_crf")
