"""CLIP in a recipe: loading it, class embeddings, and its ViT with a method's choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import weights_convert
from clipseg_jax.core.files import load_array, write_atomic
from clipseg_jax.core.progress import progress_bar
from clipseg_jax.models.clip import CLIP, VisionTransformer, ViTConfig
from clipseg_jax.prompts import check_embeddings, class_embeddings, templates, text_encoder
from clipseg_jax.stages.data import find_dataset
from input_pipeline.datasets.class_sets import prompt_set, readout_rows

EMBEDDINGS = "text_embeddings.npy"
# Choices of the image tower that a config may make, by the names of `ViTConfig`.
_TOWER_CHOICES = ("norm_eps", "position_keep_count", "position_offset", "pad_to_patch")


def load_clip(config: ConfigDict) -> weights_convert.LoadedCLIP:
    """The CLIP that the config names.

    Raises:
      ValueError, FileNotFoundError: as `check_weights`; or the weights cannot be used.
    """
    weights = str(config.clip.weights)
    if weights.startswith(weights_convert.RANDOM):  # set by ahead-of-time compilation alone
        return weights_convert.random_clip(weights, **_choices(config))
    return weights_convert.load_clip(check_weights(config), **_choices(config))


def clip_facts(config: ConfigDict) -> weights_convert.CLIPFacts:
    """What the checkpoint of the config's CLIP says of it.

    Raises:
      ValueError, FileNotFoundError: as `load_clip`.
    """
    choices = {name: value for name, value in _choices(config).items() if name != "dtype"}
    return weights_convert.clip_facts(check_weights(config), **choices)


def check_weights(config: ConfigDict) -> Path:
    """Where the config's CLIP is; checked in milliseconds, before stages that take hours.

    A name that is not in the cache is downloaded.

    Raises:
      ValueError: no weights named, or choices that cannot be meant. FileNotFoundError: no file.
      OSError: a name that cannot be downloaded now.
    """
    if not config.clip.weights:
        raise ValueError(
            "no CLIP weights; pass --config.clip.weights=ViT-B/16 or another name, or a file "
            "(OpenAI's .pt, a Hugging Face directory, an OpenCLIP file; demo: the demo's tiny one)"
        )
    weights_convert.check_choices(**_choices(config))
    try:
        path = weights_convert.find_weights(config.clip.weights)
        weights_convert.weights_file(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--config.clip.weights: {error}") from error
    return path


def _choices(config: ConfigDict) -> dict[str, Any]:
    """What the config says of its CLIP beyond the file; a new method's may say nothing."""
    # In MaskCLIP and ReCLIP `activation` is the published image tower's, whatever the weights'.
    named = "trained_activation" if "trained_activation" in config.clip else "activation"
    return {
        "activation": config.clip.get(named),
        "heads": config.clip.get("heads"),
        "dtype": config.clip.dtype,
    }


def with_choices(clip: CLIP, config: ConfigDict) -> CLIP:
    """`clip` with the image tower's choices of the config; the text tower is unchanged."""
    if not isinstance(clip.cfg.vision, ViTConfig):
        return clip
    choices = {name: config.clip[name] for name in _TOWER_CHOICES if name in config.clip}
    if "trained_activation" in config.clip:  # `activation` is that of the image tower alone
        choices["activation"] = config.clip.activation
    vision = dataclasses.replace(clip.cfg.vision, **choices)
    return weights_convert.with_config(clip, dataclasses.replace(clip.cfg, vision=vision))


def row_words(config: ConfigDict) -> list[str]:
    """Words of the classifier's rows: the names of each class, then background words.

    Raises:
      ValueError: `config.text.names` is of other classes, or there is no such set.
    """
    names = [name for names in _names(config) for name in names]
    return [*names, *config.text.background_words]


def row_labels(config: ConfigDict) -> tuple[int, ...]:
    """The label of each row of the classifier.

    Every name of a class has its label; background words are label 0.
    """
    names = _names(config)
    # The prompts of a dataset have none for its background.
    first = find_dataset(config.dataset).num_classes - len(names)
    labels = (label for label, each in enumerate(names, first) for _ in each)
    return (*labels, *(0 for _ in config.text.background_words))


def _names(config: ConfigDict) -> list[tuple[str, ...]]:
    """The names of each class, in label order: those of `config.text.names`, or the prompts."""
    dataset = find_dataset(config.dataset)
    published = config.text.get("names")
    if not published:
        return [(prompt,) for prompt in dataset.prompts]
    names = readout_rows(published)
    if len(names) != dataset.num_classes:
        raise ValueError(
            f"--config.text.names={published} has {len(names)} classes, {dataset.name} "
            f"{dataset.num_classes}; choose that dataset's, or none: --config.text.names="
        )
    return list(names)


def text(config: ConfigDict, workdir: Path) -> dict:
    """Stage: class embeddings (rows, e) into text_embeddings.npy."""
    # COCO-Object's published names have "bed" twice, of the background and of its own class.
    published = bool(config.text.get("names"))
    return embed_words(config, workdir, row_words(config), repeated=published)


def embed_words(
    config: ConfigDict,
    workdir: Path,
    words: Sequence[str],
    name: str = EMBEDDINGS,
    *,
    templates_name: str | None = None,
    repeated: bool = False,
) -> dict:
    """Embeddings (words, e) into the file `name`; in the templates of `config.text` or others.

    A word that is listed twice is refused unless words may be `repeated`.
    """
    clip, tokenizer, _ = load_clip(config)
    if clip.cfg.text is None:
        raise ValueError(f"{config.clip.weights} has no text tower to make class embeddings with")
    if tokenizer is None:
        raise ValueError(f"{config.clip.weights} has no {weights_convert.MISSING_TOKENIZER}")
    different = list(dict.fromkeys(words)) if repeated else words
    with progress_bar(unit="prompt", desc="text") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        rows = class_embeddings(
            different,
            text_encoder(clip.text),
            tokenizer,
            prompt_templates=templates(templates_name or config.text.templates),
            context_length=clip.cfg.text.context_length,
            progress=progress,
        )
    rows = rows[[different.index(word) for word in words]]
    if jax.process_index() == 0:
        write_atomic(workdir / name, lambda file: np.save(file, rows))
    return {"rows": len(rows), "prompts": list(words)}


def read_embeddings(
    config: ConfigDict,
    workdir: Path,
    words: Sequence[str] | None = None,
    name: str = EMBEDDINGS,
) -> np.ndarray:
    """Rows (words, e) that the stage `text` or `embed_words` wrote.

    Raises:
      ValueError: the file is missing or damaged, has rows of another class list, or such as are
        not finite.
    """
    path = workdir / name
    if not path.exists():
        raise ValueError(f"{path} is missing; run the stage `text` first")
    made_by_text = " and text.done.json" if name == EMBEDDINGS else ""
    remedy = f"delete it{made_by_text} and run again: it is made again"
    rows, words = load_array(path, remedy), row_words(config) if words is None else words
    if rows.ndim != 2 or rows.dtype.kind != "f" or len(rows) != len(words):
        raise ValueError(
            f"{path} holds {rows.dtype} {rows.shape} for {len(words)} prompts and background "
            f"words; {remedy}"
        )
    check_embeddings(rows, words, str(path))
    return rows


def word_lists(
    config: ConfigDict, *, synonyms: bool = True
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Prompts of the classes and of the background.

    `config.text.words` names a published list ("voc", "coco", "coco_stuff"); without one they are
    the dataset's own and `config.text.background_words`.
    """
    if config.text.words:
        words = prompt_set(config.text.words, synonyms=synonyms)
        return words.prompts, words.background
    return find_dataset(config.dataset).prompts, tuple(config.text.background_words)


def load_image_tower(
    config: ConfigDict, *, pad_to_patch: bool = True, position_half_stored: bool = True
) -> VisionTransformer:
    """CLIP's ViT as CLIP-ES and TagCLIP read it: with positions resized bilinearly.

    WeCLIP's drops rows and columns that don't fill a patch (`pad_to_patch` False); TagCLIP's keeps
    the positions of images of CLIP's own size in float32 (`position_half_stored` False).

    Raises:
      ValueError: a CLIP without a ViT.
    """
    clip = load_clip(config).model
    if not isinstance(clip.visual, VisionTransformer):
        raise ValueError(f"{config.clip.weights} has no ViT; the method reads its attention")
    vision = dataclasses.replace(
        clip.visual.cfg,
        position_resize="bilinear",
        position_half=config.clip.position_half,
        position_half_stored=position_half_stored,
        pad_to_patch=pad_to_patch,
    )
    tower = weights_convert.with_config(clip, dataclasses.replace(clip.cfg, vision=vision)).visual
    assert isinstance(tower, VisionTransformer)
    return tower


def whole_patches(height: int, width: int, patch_px: int) -> tuple[int, int]:
    """The next size of whole patches, each side by itself (spec clip_es, section 2)."""
    return -(-height // patch_px) * patch_px, -(-width // patch_px) * patch_px
