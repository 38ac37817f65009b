"""The recipe of MaskCLIP+: a DeepLab that MaskCLIP teaches, its table, and its robustness.

Source: Zhou, Loy, Dai 2022. Spec maskclip, sections 11 to 14.

    python -m clipseg_jax.main --config=configs/voc_maskclip_plus.py:teacher=rn50x16 \\
        --config.clip.weights=RN50x16.pt

Hardware: any number of devices that divides the batch of 16 (published: 4 GPUs). Hours: not
measured. Paper, VOC: mIoU 67.5 without annotation. Ours: 85.2 zero-shot on the demo world; VOC not
run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

import weights_convert
from clipseg_jax.core.mesh import make_mesh, replicate
from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.core.processes import barrier
from clipseg_jax.inference import InferenceConfig
from clipseg_jax.methods.maskclip import build as maskclip
from clipseg_jax.methods.maskclip_plus import task
from clipseg_jax.methods.maskclip_plus.build import (
    GUIDED,
    STUDENT,
    build,
    inference,
    load_student,
    network,
    student_task,
    task_config,
    training_batches,
    unseen,
)
from clipseg_jax.methods.maskclip_plus.model import MaskCLIPPlus
from clipseg_jax.models.clip.read_outs import read_out
from clipseg_jax.stages import training
from clipseg_jax.stages.clip import text
from clipseg_jax.stages.data import check_splits, find_dataset
from clipseg_jax.stages.evaluation import Evaluation, validation
from clipseg_jax.stages.image_classes import check_label_maps
from clipseg_jax.stages.inference import inference_config
from clipseg_jax.stages.network import recorded
from clipseg_jax.stages.robustness import measure
from clipseg_jax.train import Evaluated


def data(config: ConfigDict, workdir: Path) -> dict:
    """Checks that the dataset's two splits are there; paints the demo world."""
    if config.text.background_words:
        raise ValueError(
            "MaskCLIP+ has no rows for background words; omit --config.text.background_words"
        )
    checked = check_splits(config.dataset, config.dataset.split)
    if unseen(config) and not config.student.trained_weights:
        check_label_maps(config, workdir, config.dataset.train_split, "zero-shot MaskCLIP+")
    return checked | {"training_images": len(training_batches(config).examples)}


def evaluate_maskclip(config: ConfigDict, workdir: Path) -> dict:
    """The teacher by itself, under the same protocol: metrics_maskclip.json."""
    evaluation = _evaluation(config, inference_config(config))
    teacher = maskclip.build(config, workdir, read_out(config.student.teacher_read_out))
    return evaluation.write(teacher, workdir, "_maskclip")


def train(config: ConfigDict, workdir: Path) -> dict:
    """Trains the student in both phases; writes student.safetensors.

    An evaluation at the step at which self-training begins leaves student_guided.safetensors.
    """
    student = config.student
    if student.trained_weights:
        return {"skipped": f"config.student.trained_weights is {student.trained_weights}"}
    if not student.init_weights:
        raise ValueError(
            "no initial weights; pass --config.student.init_weights=FILE (resnet50_v1c or "
            "resnet101_v1c of open-mmlab), or =random for random weights"
        )
    cfg = task_config(config)
    model, clip_sha256 = build(config, workdir)
    if student.init_weights != "random":
        backbone = model.student.backbone
        weights_convert.load_imagenet(student.init_weights, backbone, statistics=True)

    def keep(model: MaskCLIPPlus, name: str, steps: int, **more: Any) -> None:
        if jax.process_index() == 0:
            weights_convert.save_trained(
                workdir / name,
                weights_convert.MASKCLIP_PLUS,
                model,
                classes=find_dataset(config.dataset).class_names,
                details={
                    "steps": steps,
                    "clip_sha256": clip_sha256,
                    "setting": student.setting,
                    **recorded(config),
                    **more,
                },
            )

    trained = training.run(
        config,
        task.build(model, cfg),
        training_batches(config),
        OptimConfig(**student.optim.to_dict()),
        workdir,
        "train",
        total_steps=student.total_steps,
        evaluate_every_steps=student.evaluate_every_steps,
        evaluate=_validation(config, keep),
    )
    last: Any = trained.model
    keep(last, STUDENT, trained.metrics["steps"], figures=trained.metrics)
    barrier("student written")
    return trained.metrics


def evaluate_guided(config: ConfigDict, workdir: Path) -> dict:
    """The student at the end of the guided phase: metrics_guided.json."""
    path = workdir / GUIDED
    if not path.exists():
        raise ValueError(
            f"{path} is missing; run the stage `train` with a self-training phase and an "
            "evaluation at its first step (config.student.evaluate_every_steps)"
        )
    student = student_task(load_student(config, path))
    return _evaluation(config, inference(config)).write(student, workdir, "_guided")


def evaluate(config: ConfigDict, workdir: Path) -> dict:
    """The student on the val split: metrics.json."""
    trained = network(config, workdir)
    return _evaluation(config, trained.cfg).write(trained.task, workdir)


def robustness(config: ConfigDict, workdir: Path) -> dict:
    """The student's mIoU under each corruption: robustness.json."""
    trained = network(config, workdir)
    return measure(config, trained.cfg, trained.task, workdir, unseen(config))


STAGES = {
    "data": data,
    "text": text,
    "evaluate_maskclip": evaluate_maskclip,
    "train": train,
    "evaluate_guided": evaluate_guided,
    "evaluate": evaluate,
    "robustness": robustness,
}


def _evaluation(config: ConfigDict, cfg: InferenceConfig) -> Evaluation:
    return Evaluation(config, cfg, unseen=unseen(config))


def _validation(
    config: ConfigDict, keep: Callable[..., None]
) -> Callable[[nnx.Module, int], Evaluated]:
    """(model, step) -> metrics of the whole val split.

    Writes the student with which self-training begins.
    """
    validate = validation(lambda: _evaluation(config, inference(config)), student_task)
    switch = config.student.self_training_steps[0]

    def figures(model: Any, step: int) -> Evaluated:
        model.teacher = None  # the model is a copy
        if step == switch:
            graph, state = nnx.split(model)
            gathered = replicate(make_mesh(config.run.devices), state)
            keep(nnx.merge(graph, gathered), GUIDED, step)
        return validate(model, step)

    return figures
