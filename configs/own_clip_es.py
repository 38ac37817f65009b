"""CLIP-ES on your own images: masks of tagged images, and a DeepLab that needs no CLIP.

    python -m clipseg_jax.main --config=configs/own_clip_es.py --config.dataset.root=my_data \\
        --workdir=workdir/mine

my_data/tags.txt, or my_data/train/tags.txt, says what each image shows, in lines
`photo1: cat, dog`; without it the label maps in my_data/train/labels do. The classes are in
my_data/classes.txt, the first is `background`. Masks of the tagged images
alone: `--config.stages=data,text,cams,masks`. The DeepLab starts from torchvision's
ResNet-50; `--config.student.init_weights=random` needs no download and learns far less.

Hardware: any number of devices that divides the student's batch of 8. Hours: not measured on a GPU;
the student is slow on a CPU. Paper: none on your images. Ours: the demo world, docs/own_images.md.
"""

from ml_collections import ConfigDict

from configs.base import clip_es, own


def get_config() -> ConfigDict:
    config = own.of_own_images(
        clip_es.get_config(),
        *("dataset.longest_px", "student.crop_px", "tags.affinity_blocks"),
        *("cams.temperature", "cams.patch_px", "cams.affinity_blocks"),
    )
    config.clip.position_half = False
    config.masks.image = "raw"
    own.learn_from_nothing_or_imagenet(config.student, steps=1000)
    config.student.loss = "balanced"  # most pixels are background
    config.train.accumulate_steps = 1
    return config
