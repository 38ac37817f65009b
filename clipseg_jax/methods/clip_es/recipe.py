"""The recipe of CLIP-ES: image labels -> CAMs -> CRF masks -> a DeepLab trained on them.

Source: Lin et al., "CLIP is Also an Efficient Segmenter", 2023. Specs clip_es, deeplab. With the
stage `tags` (TagCLIP) the image labels come from CLIP as well, and nothing is annotated at all.

    python -m clipseg_jax.main --config=configs/voc_clip_es.py --config.clip.weights=ViT-B/16

Hardware: any number of devices; the student's two parts of a batch of 10 use up to 5. Hours: not
measured. Paper, VOC: mIoU of CAMs 70.8, with CRF 75.0, student 73.8. Ours: 62.2, 66.0, 70.7 on the
demo world; VOC not run.
"""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from clipseg_jax.methods.clip_es.cams import cams, evaluate_cams, word_lists
from clipseg_jax.methods.clip_es.crf_masks import evaluate_masks, masks
from clipseg_jax.methods.clip_es.student import evaluate_student, evaluate_student_crf, train
from clipseg_jax.methods.tagclip.tags_stage import tags
from clipseg_jax.stages.clip import embed_words
from clipseg_jax.stages.data import check_splits, find_dataset
from clipseg_jax.stages.image_classes import check_label_maps


def data(config: ConfigDict, workdir: Path) -> dict:
    """Checks that the dataset's splits are there; paints the demo world."""
    splits = (config.dataset.train_split, config.dataset.mask_split, config.dataset.split)
    checked = check_splits(config.dataset, *dict.fromkeys(splits))
    dataset = find_dataset(config.dataset)
    if "cams" in config.stages and config.cams.background and not dataset.background:
        raise ValueError(
            f"CLIP-ES labels a background, and {dataset.name} has none; put `background` before "
            "the other class names"
        )
    if config.student.labels == "dataset" and not config.student.trained_weights:
        check_label_maps(config, workdir, config.dataset.train_split, "DeepLab")
    return checked


def text(config: ConfigDict, workdir: Path) -> dict:
    """Embeddings of the classes and of the background words, in that order."""
    classes, background = word_lists(config)
    return embed_words(config, workdir, (*classes, *background))


STAGES = {
    "data": data,
    "tags": tags,
    "text": text,
    "cams": cams,
    "evaluate_cams": evaluate_cams,
    "masks": masks,
    "evaluate_masks": evaluate_masks,
    "train": train,
    "evaluate_student": evaluate_student,
    "evaluate_student_crf": evaluate_student_crf,
}
