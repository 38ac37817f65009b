"""Which classes images show: all that WeCLIP is told of its training images."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from clipseg_jax.core.files import write_json
from clipseg_jax.stages.data import find_dataset
from clipseg_jax.stages.image_classes import log_unknown
from clipseg_jax.stages.label_list import read_label_list
from input_pipeline.datasets.image_labels import NO_OBJECT, image_labels
from input_pipeline.datasets.layout import Example


def tagged_examples(
    config: ConfigDict, workdir: Path, split: str, *, label_maps: bool
) -> tuple[list[Example], np.ndarray]:
    """A split's examples whose classes are known, and their classes (n, c) bool.

    An image that surely shows no class is kept, as background. One whose classes nobody knows is
    left out, and named in labels_problems.json. Examples surely have label maps with `label_maps`.

    Raises:
      ValueError: an unknown source, a list of other classes, or no image is left.
    """
    dataset, labels = find_dataset(config.dataset), config.labels
    root = config.dataset.root
    if labels.source not in ("masks", "annotations"):
        raise ValueError(f'labels.source {labels.source!r} must be "masks" or "annotations"')
    maps = labels.source == "masks" or dataset.layout.split(split).annotations is None
    examples = dataset.index(root, split, labels=label_maps or (maps and not labels.file))
    if labels.file:
        known = read_label_list(labels.file, len(dataset.foreground))
        found = [known.get(each.name, ()) for each in examples]
        problems = [(e.name, f"is not in {labels.file}") for e in examples if e.name not in known]
    else:
        found, problems = image_labels(
            dataset, root, split, examples, maps=maps, cache=workdir, on_bad="skip"
        )
        problems = [(name, reason) for name, reason in problems if reason != NO_OBJECT]
    log_unknown(problems)
    if jax.process_index() == 0:
        write_json(workdir / "labels_problems.json", dict(problems))
    unknown = {name for name, _ in problems}
    kept = [i for i, each in enumerate(examples) if each.name not in unknown]
    if not kept:
        raise ValueError(f"no class is known of any of the {len(examples)} images of {split}")
    tags = np.zeros((len(kept), len(dataset.foreground)), bool)
    for row, i in zip(tags, kept, strict=True):
        row[list(found[i])] = True
    return [examples[i] for i in kept], tags
