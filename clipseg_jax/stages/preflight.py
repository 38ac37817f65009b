"""Checks before stage one of what would stop a later stage: batches, weights, places, values."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

import weights_convert
from clipseg_jax.core.checks import check_choice, check_number, check_sizes, check_whole
from clipseg_jax.core.files import check_local
from clipseg_jax.core.optim import scaled_learning_rate
from clipseg_jax.core.step_trace import check_profile_steps
from clipseg_jax.inference_config import check_values
from clipseg_jax.models.clip.read_outs import READ_OUTS
from clipseg_jax.stages.clip import row_words
from clipseg_jax.stages.data import find_dataset
from clipseg_jax.stages.inference import inference_values
from input_pipeline.batches.corruptions import check_corruption
from input_pipeline.datasets.records import is_address
from weights_convert.clip.choices import ACTIVATIONS
from weights_convert.named.find import is_name

# Config values that name files or folders, by their last word, and words they may be instead.
_FILES = ("weights", "trained_weights", "init_weights", "file")
_NOT_BY_NAME = ("file",)
_WORDS = ("random", "demo")
# Stages that train one of several networks; any other training stage has the only one.
_TRAINS = {"rectify": "rectifier", "distill": "student"}
# Stages that write what `run` asks for, scored or not.
_SEGMENTS = (
    *("evaluate", "evaluate_crf", "evaluate_student", "evaluate_student_crf"),
    *("evaluate_maskclip", "evaluate_guided", "evaluate_distilled"),
)
# The least value of whole numbers of `run`; -1: all pictures.
_LEAST = {
    "fsdp": 1, "max_buckets": 1, "log_every_steps": 1, "checkpoint_every_steps": 1,
    "keep_checkpoints": 1, "pictures": -1,
}  # fmt: skip


def fetch(config: ConfigDict, stages: Collection[str]) -> None:
    """Downloads what `stages`, those still to run, need and the config calls by name or address.

    Raises:
      ValueError, OSError: see `weights_convert.find_weights`.
    """
    for section, key, value in _files(config):
        if key not in _NOT_BY_NAME and is_name(value) and _is_needed(config, section, key, stages):
            _found(section, key, value)


def check(config: ConfigDict, stages: Collection[str]) -> None:
    """Checks what `stages`, those still to run, need.

    Raises:
      ValueError: a value of pixels or of inference without meaning, a batch that the devices cannot
        share, or an address in place of a folder.
      FileNotFoundError: a file or folder that the config names is missing.
    """
    _check_paths(config, stages)
    _check_sizes(config)
    _check_values(config)
    if "read_out" in config:
        _check_read_out(config)
    for section, key in (("student", "teacher_read_out"), ("rectifier", "read_out")):
        if key in (config.get(section) or {}):
            check_choice(f"--config.{section}.{key}", config[section][key], tuple(READ_OUTS))
    if "text" in stages and not (config.clip.weights or config.text.get("file")):
        raise ValueError(
            "no CLIP weights; pass --config.clip.weights=ViT-B/16 or another name, or a file (an "
            "OpenAI .pt, a Hugging Face directory or an OpenCLIP file)"
        )
    for name in _trained(config, stages):
        _check_training(config, name)
    if {*stages} - {"data", "text"}:
        _check_evaluation(config)
    if config.dataset.name == "folder":
        _check_labels(config, stages)


def _check_values(config: ConfigDict) -> None:
    """Values whose meaning does not depend on the method."""
    for section in ("inference", "clip"):
        try:
            check_values(inference_values(config.get(section) or ConfigDict()))
        except ValueError as error:
            raise ValueError(f"--config.{section}: {error}") from error
    for section, values in config.items():
        if isinstance(values, ConfigDict) and "dtype" in values:
            check_choice(f"--config.{section}.dtype", values.dtype, ("float32", "bfloat16"))
    clip = config.get("clip") or {}
    for key in ("activation", "trained_activation"):
        if clip.get(key) is not None:
            check_choice(f"--config.clip.{key}", clip[key], ACTIVATIONS)
    if "norm_eps" in clip:
        check_number("--config.clip.norm_eps", clip["norm_eps"], 0, 1, above=True)
    if "position_offset" in clip:
        check_number("--config.clip.position_offset", clip["position_offset"], 0, 1)
    try:
        weights_convert.check_choices(heads=clip.get("heads"))
    except ValueError as error:
        raise ValueError(f"--config.clip: {error}") from error
    check_number("--config.run.opacity", config.run.opacity, 0, 1)
    for key, least in _LEAST.items():
        check_whole(f"--config.run.{key}", config.run[key], least)
    if config.run.loader_processes is not None:
        check_whole("--config.run.loader_processes", config.run.loader_processes, least=0)
    try:
        check_profile_steps(config.run.profile_steps)
    except ValueError as error:
        raise ValueError(f"--config.run: {error}") from error
    if config.dataset.get("corruption"):
        try:
            check_corruption(config.dataset.corruption, config.dataset.corruption_level)
        except ValueError as error:
            raise ValueError(f"--config.dataset.corruption: {error}") from error


def _check_read_out(config: ConfigDict) -> None:
    """How the last block of a CLIP is read out."""
    section, key = config.read_out, "--config.read_out"
    check_choice(f"{key}.name", section.name, (*READ_OUTS, "proxyclip"))
    read_out = READ_OUTS.get(section.name)
    if read_out is None and not config.dino.weights:
        raise ValueError(
            "no DINO weights; pass --config.dino.weights=dino_vitb8 or another name, or a file "
            "(the authors' .pth, or a Hugging Face directory)"
        )
    if section.feedback.enabled and not (read_out is not None and read_out.attends):
        raise ValueError(
            f"{key}.feedback.enabled=True changes attention scores, which {section.name} has not; "
            "set it to False, or choose resclip, naclip, sclip or clearclip"
        )
    if section.cross is not None:
        check_number(f"{key}.cross", section.cross, 0, 1)
        if read_out is None or not read_out.cross_blocks:
            raise ValueError(f"{key}.cross is for resclip, not for {section.name}; omit it")
    check_number(f"{key}.feedback.threshold", section.feedback.threshold, 0, 1)
    check_number(f"{key}.feedback.gain", section.feedback.gain, 0, above=True)
    check_number(f"{key}.feedback.share", section.feedback.share, 0, 1)
    check_number(f"{key}.proxy.beta", section.proxy.beta, 0)
    check_number(f"{key}.proxy.gamma", section.proxy.gamma, 0, above=True)
    row_words(config)  # refuses names of other classes


def _files(config: ConfigDict) -> Iterator[tuple[str, str, str]]:
    """Section, key and value of everything that names a file, folder or weights."""
    for section, values in config.items():
        for key, value in values.items() if isinstance(values, ConfigDict) else ():
            if key in _FILES and value is not None and value not in _WORDS:
                yield section, key, value


def _is_needed(config: ConfigDict, section: str, key: str, stages: Collection[str]) -> bool:
    """What follows the texts may do without CLIP, on a machine that does not have it.

    Initial weights by name are for training alone, and not downloaded for other stages; a file is
    looked for in any case.
    """
    if key == "init_weights" and is_name(config[section][key]):
        return section in _trained(config, stages)
    return section != "clip" or "text" in stages


def _found(section: str, key: str, value: str) -> Path:
    """Where weights are; by name or address they are downloaded if they are not there yet."""
    try:
        return weights_convert.find_weights(value)
    except (FileNotFoundError, weights_convert.CheckpointError) as error:
        raise type(error)(f"--config.{section}.{key}: {error}") from error


def _check_paths(config: ConfigDict, stages: Collection[str]) -> None:
    for section, key, value in _files(config):
        name = f"--config.{section}.{key}"
        by_name = key not in _NOT_BY_NAME and is_name(value)
        if not by_name:
            check_local(value, name)
        if not _is_needed(config, section, key, stages):
            continue
        path = Path(value) if key in _NOT_BY_NAME else _found(section, key, value)
        if not path.exists():
            raise FileNotFoundError(
                f"{name}={value} does not exist; correct the path, or run first what writes it"
            )
    root = config.dataset.root
    if root is None or is_address(root):
        return
    check_local(root, "--config.dataset.root")
    if config.dataset.name != "demo_world" and not Path(root).exists():
        raise FileNotFoundError(f"--config.dataset.root={root} does not exist; correct the path")


def _check_sizes(config: ConfigDict) -> None:
    """Every value in pixels: a whole number, or a pair of them."""
    for section, values in config.items():
        for key, value in values.items() if isinstance(values, ConfigDict) else ():
            name = f"--config.{section}.{key}"
            if not key.endswith("_px") or value is None:
                continue
            if isinstance(value, int):
                check_whole(name, value, 0 if key == "pad_to_px" else 1)
            else:
                check_sizes(name, value, "(two sides, as the config has them)")


def _trained(config: ConfigDict, stages: Collection[str]) -> list[str]:
    """Sections of the networks that the stages train."""
    sections = [name for name, values in config.items() if "batch_size" in values and name != "run"]
    named = [_TRAINS[stage] for stage in stages if stage in _TRAINS]
    wanted = named or (sections if "train" in stages else [])
    # A new method's network may have no weights that are trained elsewhere.
    return [name for name in sections if name in wanted and not config[name].get("trained_weights")]


def _check_training(config: ConfigDict, section: str) -> None:
    """The batch of one training; in one process, devices that it does not fill are left out."""
    if section == "student" and not config.student.get("init_weights", "random"):
        raise ValueError(
            "no initial weights; pass --config.student.init_weights=FILE or a name "
            "(docs/checkpoints.md has them), or =random for random weights"
        )
    batch, parts = config[section].batch_size, config.train.accumulate_steps
    devices, needed = _devices(config), _devices(config) * parts
    if batch > 0 and batch % needed == 0:
        return
    key = f"{section}.batch_size"
    fitting = max(math.ceil(batch / needed), 1) * needed
    among = f"{devices} devices of {jax.process_count()} processes"
    accumulated = f" in {parts} accumulated parts" if parts > 1 else ""
    if jax.process_count() > 1 or batch < 1 or batch % parts:
        scaled = ""
        if optim := config[section].get("optim"):
            rate = scaled_learning_rate(optim.learning_rate, max(batch, 1), fitting, optim.name)
            scaled = f", with {fitting} {rate:.3g}"
        raise ValueError(
            f"--config.{key}={batch} cannot be shared by {among}{accumulated}; set it to {fitting} "
            f"or a multiple, and choose {section}.optim.learning_rate for that batch{scaled} "
            "(docs/training.md, larger batches)"
        )
    if config.run.devices is None and devices > 1:
        used = max(n for n in range(1, devices + 1) if batch // parts % n == 0)
        logging.warning(
            "%s %d uses %d of %d devices; a multiple of %d uses all", key, batch, used, devices,
            needed,
        )  # fmt: skip


def _check_labels(config: ConfigDict, stages: Collection[str]) -> None:
    """What is asked of a user's images that have no label maps."""
    if is_address(config.dataset.root):
        return

    def labelled(split: str) -> bool:
        return all(part.labels for part in find_dataset(config.dataset).layout.split(split).parts)

    split = config.dataset.split
    missing = f"images of split {split} in {config.dataset.root} have no label maps"
    validated = config.dataset.get("validation_split", split)
    every = [
        f"--config.{section}.{key}=0"
        for section, values in config.items()
        for key in (values if isinstance(values, ConfigDict) else ())
        if key.startswith("evaluate_every_") and values[key]
    ]
    if every and not labelled(validated) and {*stages} & {"train", *_TRAINS}:
        raise ValueError(
            f"the images of split {validated} in {config.dataset.root} have no label maps to score "
            f"while training; pass {' '.join(every)}"
        )
    if labelled(split):
        return
    if "robustness" in stages:
        raise ValueError(f"{missing} to score when they are corrupted; omit the stage robustness")
    evaluates = any(stage in _SEGMENTS for stage in stages)
    if evaluates and not (config.run.predictions or config.run.pictures):
        raise ValueError(
            f"{missing} to score, and nothing is to be written; pass --config.run.predictions=True"
        )


def _check_evaluation(config: ConfigDict) -> None:
    batch, devices = config.run.batch_size, _devices(config)
    if batch < 1 or batch % devices:
        fitting = max(math.ceil(batch / devices), 1) * devices
        raise ValueError(
            f"--config.run.batch_size={batch} cannot be shared by {devices} devices of "
            f"{jax.process_count()} processes; set it to {fitting} or a multiple"
        )


def _devices(config: ConfigDict) -> int:
    return config.run.devices or jax.device_count()
