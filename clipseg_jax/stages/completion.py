"""What a recipe leaves open, filled in before a run: class names, background words, sizes.

A user's folder may name its classes in classes.txt, and the values that `config.clip.decides` lists
follow from the CLIP where they are None. The completed config is what a work directory records, so
that its results can be used without the folder, and without asking the CLIP again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import weights_convert
from clipseg_jax.core.files import read_json
from clipseg_jax.models.clip import ResNetConfig, ViTConfig
from clipseg_jax.stages.clip import clip_facts
from clipseg_jax.stages.work_directory import CONFIG, flat
from input_pipeline.datasets.class_sets import prompt_set
from input_pipeline.text_lists import numbered_lines

_RESNET_PX = 32  # of the image for a position of a ResNet's features


def completed(config: ConfigDict, workdir: Path) -> ConfigDict:
    """A copy of the config without open values.

    What the CLIP decides is taken from the work directory once its stage `text` has run.

    Raises:
      ValueError: no class names, words for no background, or no CLIP.
      FileNotFoundError: no such CLIP.
    """
    config = config.copy_and_resolve_references()
    if config.dataset.name == "folder":
        if not config.dataset.class_names:
            config.dataset.class_names = _class_names(config.dataset)
        if "text" in config and "usual_background" in config.text:
            config.text.background_words = _background_words(config)
    values = flat(config.to_dict())
    decides = config.clip.get("decides", ()) if "clip" in config else ()
    missing = [name for name in decides if values[name] is None]
    if missing:
        recorded = _recorded(workdir)
        if any(recorded.get(name) is None for name in missing):
            recorded = decided_by_clip(config.method, clip_facts(config))
        config.update_from_flattened_dict({name: recorded[name] for name in missing})
    return config


def decided_by_clip(method: str, clip: weights_convert.CLIPFacts) -> dict[str, Any]:
    """Values by their full names that follow from a CLIP, for a user's own images.

    Images have a short side of half as much again as the side that the CLIP was trained at, as the
    read-outs publish (spec readouts, section 9), in steps of four patches, which CLIP-RC's regions
    need: 384 for OpenAI's ViT-B/16, 96 for the demo's. All other sizes keep the proportions that
    the methods publish for ViT-B/16.
    """
    vision = clip.config.vision
    trained = vision.image_px
    patch = _RESNET_PX if isinstance(vision, ResNetConfig) else vision.patch_px
    step = 4 * patch
    side = -(-3 * trained // (2 * step)) * step
    longest = 3 * side // 2
    blocks = vision.layers if isinstance(vision, ViTConfig) else 12
    scale, crop = (4 * side, side), (side, side)
    values: dict[str, Any] = {
        "clip.mean": clip.mean,
        "clip.std": clip.std,
        "dataset.longest_px": longest,
        "cams.temperature": clip.temperature,
        "cams.patch_px": patch,
        "cams.affinity_blocks": tuple(range(blocks // 3, blocks)),
        "cams.early_blocks": 2 * blocks // 3,
        "cams.late_blocks": blocks // 2,
        "head.crop_px": crop,
        "head.affinity_radius": side // patch // 3,
        "student.crop_px": crop,
        "rectifier.scale_px": scale,
        "rectifier.crop_px": crop,
        "student.scale_px": scale,
        "tags.affinity_blocks": tuple(range(2 * blocks // 3, blocks - 1)),
        "tags.threshold": round(0.23 * clip.temperature, 3),  # of logits: 23 for all released CLIPs
        "clip_rc.scale_px": scale,
        "clip_rc.crop_px": side,
        "inference.scale_px": (longest, longest) if method == "weclip" else scale,
        "inference.crop_px": crop,
        "inference.stride_px": (5 * side // 6, 5 * side // 6),
    }
    if not isinstance(vision, ResNetConfig):
        values |= {"clip.activation": vision.activation, "clip.norm_eps": vision.norm_eps}
    if method == "readouts":  # windows of the side that the CLIP was trained at
        values |= {"inference.crop_px": (trained,) * 2, "inference.stride_px": (trained // 2,) * 2}
    return values


def _recorded(workdir: Path) -> dict[str, Any]:
    """The values of a run whose CLIP has been read; {}: there is none."""
    if not (workdir / "text.done.json").exists() or not (workdir / CONFIG).exists():
        return {}
    values = flat(read_json(workdir / CONFIG, "delete it and run again with the same values"))
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def _class_names(dataset: ConfigDict) -> tuple[str, ...]:
    """Those of classes.txt; a background is no class where label 0 is none."""
    path = Path(dataset.root) / "classes.txt"
    if not path.is_file():
        raise ValueError(
            f"no class names; write them into {path}, one a line, or pass "
            "--config.dataset.class_names=background,cat,dog"
        )
    names = tuple(line for _, line in numbered_lines(path))
    return names[1:] if dataset.reduce_zero_label and names[0] == "background" else names


def _background_words(config: ConfigDict) -> tuple[str, ...]:
    """The config's own words and, if it says so, the published ones of CLIP-ES that are no class.

    Without a class "background" there are none.

    Raises:
      ValueError: words for a background that is no class; they would be the first class.
    """
    names, own = tuple(config.dataset.class_names), tuple(config.text.background_words)
    if names[0] != "background":
        if own:
            raise ValueError(
                "--config.text.background_words needs the name background before the other "
                "classes; omit it, or name these words as classes"
            )
        return ()
    usual = prompt_set("voc", synonyms=True).background if config.text.usual_background else ()
    return (*own, *(word for word in usual if word not in (*names, *own)))
