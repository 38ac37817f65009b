"""The published recipes of released files, which record neither recipe nor, often, classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from clipseg_jax.prompts import check_class_names
from configs.base import clip_es, clip_rc, maskclip_plus, reclip, weclip
from weights_convert import CLIP_RC, DEEPLAB, MASKCLIP_PLUS, RECLIP, WECLIP, CheckpointError, Format

BACKGROUND = "background"


def released_config(
    path: Path, fmt: Format, record: Mapping[str, Any], classes: Sequence[str] | None
) -> ConfigDict:
    """The published values of the file's method, for the file's classes.

    Class filters and the offset of seen classes, which go with a dataset, are off.

    Args:
      record: of the file.
      classes: names of the labels, where the record has none.

    Raises:
      ValueError: no names, or another number of them than the file has classes.
    """
    if fmt is WECLIP:
        config = weclip.get_config("wtclip" if record["method"] == "WTCLIP" else "weclip")
        config.text.words = ""
    elif fmt is RECLIP:
        model = "reclip++" if record["method"] == "ReCLIP++" else "reclip"
        config = reclip.get_config(model, record["revision"] or "2024")
        config.inference.class_threshold = 0.0
        config.student.teacher_threshold = config.student.test_threshold = 0.0
    elif fmt is CLIP_RC:
        config = clip_rc.get_config("transductive")
        config.text.templates = "single"
        for name in ("crop_px", "prompts", "region_side", "heads"):
            config.clip_rc[name] = record.get(name, config.clip_rc[name])
    elif fmt is MASKCLIP_PLUS:
        config = maskclip_plus.get_config("deeplabv2_r101", "", "annotation_free")
    else:
        assert fmt is DEEPLAB, fmt.name
        config = clip_es.get_config()
    config.dataset.name = "folder"
    config.dataset.class_names = _names(path, record, classes, background=fmt in (WECLIP, DEEPLAB))
    return config


def _names(
    path: Path, record: Mapping[str, Any], classes: Sequence[str] | None, *, background: bool
) -> tuple[str, ...]:
    """Names of all labels; `background`: the first of the network's is it."""
    given, count = record["classes"] or classes, record.get("class_count")
    if given is None:
        number = "" if count is None else f"{count} "
        raise CheckpointError(
            f"{path} does not record the names of its classes; give them in their order: "
            f"classes=[...], {number}names, or --classes"
        )
    names = check_class_names(given, "classes")
    if background and names[0] != BACKGROUND and len(names) + 1 == count:
        names = [BACKGROUND, *names]
    if count not in (None, len(names)):
        raise CheckpointError(f"{path} has {count} classes, and {len(names)} names are given")
    return tuple(names)
