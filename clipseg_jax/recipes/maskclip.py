"""MaskCLIP's recipe: class embeddings, then evaluation. Nothing is trained."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from rich.console import Console
from tqdm import tqdm

import weights_convert
from clipseg_jax.core.files import write_atomic, write_json
from clipseg_jax.core.mesh import make_mesh
from clipseg_jax.core.pictures import overlay, save_picture
from clipseg_jax.evaluate import evaluate, report
from clipseg_jax.inference import InferenceConfig, network_size
from clipseg_jax.models.clip import CLIP, Tokenizer, ViTConfig
from clipseg_jax.models.maskclip import MaskCLIPConfig
from clipseg_jax.prompts import class_embeddings, templates, text_encoder
from clipseg_jax.recipes.data import find_dataset, prepare_demo_world
from clipseg_jax.tasks import maskclip
from input_pipeline import pipeline


def data(config: ConfigDict, workdir: Path) -> dict:
    """Checks that the dataset is there; paints the demo world."""
    del workdir
    if config.dataset.name == "demo_world" and jax.process_index() == 0:
        prepare_demo_world(Path(config.dataset.root))
    dataset = find_dataset(config.dataset)
    examples = dataset.index(config.dataset.root, config.dataset.split)
    return {"dataset": dataset.name, "images": len(examples), "classes": dataset.num_classes}


def load_clip(config: ConfigDict) -> tuple[CLIP, Tokenizer | None]:
    """The CLIP that the config names, with its choices.

    Raises:
      ValueError: no weights named.
    """
    if not config.clip.weights:
        raise ValueError(
            "no CLIP weights; pass --config.clip.weights=FILE (an OpenAI .pt, a Hugging Face "
            "directory or an OpenCLIP file)"
        )
    loaded = weights_convert.load_clip(config.clip.weights, dtype=config.clip.dtype)
    return loaded.model, loaded.tokenizer


def with_choices(clip: CLIP, config: ConfigDict) -> CLIP:
    """`clip` with an image tower that follows the config; the text tower stays as trained."""
    if not isinstance(clip.cfg.vision, ViTConfig):
        return clip
    names = ("activation", "norm_eps", "position_keep_count")
    choices = {name: config.clip[name] for name in names}
    vision = dataclasses.replace(clip.cfg.vision, **choices)
    return weights_convert.with_config(clip, dataclasses.replace(clip.cfg, vision=vision))


def text(config: ConfigDict, workdir: Path) -> dict:
    """Class embeddings (rows, e) into text_embeddings.npy: prompts, then background words."""
    dataset = find_dataset(config.dataset)
    words = [*dataset.prompts, *config.text.background_words]
    clip, tokenizer = load_clip(config)
    if clip.cfg.text is None or tokenizer is None:
        raise ValueError(f"{config.clip.weights} has no text tower to make class embeddings with")
    with tqdm(unit="prompt", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        rows = class_embeddings(
            words,
            text_encoder(clip.text),
            tokenizer,
            prompt_templates=templates(config.text.templates),
            context_length=clip.cfg.text.context_length,
            progress=progress,
        )
    if jax.process_index() == 0:
        write_atomic(workdir / "text_embeddings.npy", lambda file: np.save(file, rows))
    return {"rows": len(rows), "prompts": words}


def evaluate_stage(config: ConfigDict, workdir: Path) -> dict:
    """mIoU over the split, into metrics.json; overlays into pictures/."""
    dataset = find_dataset(config.dataset)
    examples = dataset.index(config.dataset.root, config.dataset.split)
    embeddings = workdir / "text_embeddings.npy"
    if not embeddings.exists():
        raise ValueError(f"{embeddings} is missing; run the stage `text` first")
    clip = with_choices(load_clip(config)[0], config)
    refine = MaskCLIPConfig(**config.maskclip.to_dict())
    rows = np.load(embeddings)
    task = maskclip.build(clip, rows, refine)
    # Prompt i stands for label i, or i + 1 beside a background class; background words for 0.
    first = dataset.num_classes - len(dataset.prompts)
    labels = [*range(first, dataset.num_classes), *(0 for _ in config.text.background_words)]
    if len(labels) != len(rows):
        raise ValueError(
            f"{embeddings} holds {len(rows)} rows for {len(labels)} prompts and background words; "
            "delete it and run the stage `text` again"
        )
    cfg = InferenceConfig(
        mean=tuple(config.clip.mean),
        std=tuple(config.clip.std),
        row_labels=tuple(labels),
        **config.inference.to_dict(),
    )
    mesh = make_mesh(config.evaluate.devices)
    damage = config.dataset.corruption
    run = pipeline.evaluation(
        dataset,
        examples,
        batch_size=config.evaluate.batch_size,
        network_size=functools.partial(network_size, cfg=cfg),
        max_buckets=config.evaluate.max_buckets,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        on_bad="skip",
        corruption=(damage, config.dataset.corruption_level) if damage else None,
    )
    rest = run

    def batches(start: int) -> pipeline.EvaluationBatches:
        nonlocal rest
        rest = dataclasses.replace(run, plan=run.plan[start:])
        return rest

    colours = np.asarray(dataset.palette, np.uint8)
    clear = (0, 255) if dataset.background else (255,)
    folder = workdir / "pictures"
    wanted = config.evaluate.pictures

    def picture(index: int, image: np.ndarray, predicted: np.ndarray) -> None:
        if 0 <= wanted <= index:
            return
        painted = overlay(image, predicted, colours, config.evaluate.opacity, clear=clear)
        save_picture(folder / f"{examples[index].name}.png", painted)

    partial = workdir / "evaluate.partial.npz"
    progress = evaluate(
        task,
        cfg,
        batches,
        classes=dataset.num_classes,
        mesh=mesh,
        total=len(examples),
        plan=hashlib.sha256(repr(run.plan).encode()).hexdigest(),
        progress_path=partial,
        on_labels=picture if wanted else None,
    )
    for skipped in rest.skipped:
        logging.warning("skipped %s: %s", skipped.name, skipped.reason)
    console = Console(quiet=jax.process_index() != 0)  # one table, not one for each process
    figures = report(progress, dataset.class_names, console=console)
    figures["skipped"] = [f"{skipped.name}: {skipped.reason}" for skipped in rest.skipped]
    if jax.process_index() == 0:
        write_json(workdir / "metrics.json", figures)
        partial.unlink(missing_ok=True)
        print(f"metrics: {workdir / 'metrics.json'}")
        if wanted:
            print(f"pictures: {folder}")
    left_out = len(examples) - progress.images
    return {"images": progress.images, "skipped": left_out, "mIoU": figures["mIoU"]}


STAGES = {"data": data, "text": text, "evaluate": evaluate_stage}
