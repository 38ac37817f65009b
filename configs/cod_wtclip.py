"""WTCLIP on camouflaged animals (R2C7K), 64 classes and background, from image labels.

    python -m clipseg_jax.main --config=configs/cod_wtclip.py \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/R2C7K/Camo/train

As the release means it; as released it can't run (21 classes are scored, 20 named). The folder has
VOC's layout: JPEGImages/*.jpg, SegmentationClassAug/*.png with class ids 1 to 64 (0 background, 255
ignored; how they were made of the binary masks isn't published) and a list of stems, train.txt.
`--config.labels.file=image_labels.npy` takes the release's image labels. It scores the images that
it learns; with val.txt beside the list, `--config.dataset.split=val` scores others. No number is
published.

Hardware: any number of devices that divides the batch of 4 (published: 1 GPU). Hours: not measured.
Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import weclip


def get_config() -> ConfigDict:
    config = weclip.get_config("wtclip")
    config.dataset.name = "cod_65"
    config.dataset.root = "data/R2C7K/Camo/train"
    config.dataset.train_split = config.dataset.validation_split = config.dataset.split = "train"
    config.text.words = "cod"
    config.head.evaluate_every_steps = 200
    config.head.late_step = 15_000  # in steps: how many images the release counts isn't known
    config.run.log_every_steps = 20
    return config
