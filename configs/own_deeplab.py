"""A plain DeepLabV2 on your own images and label maps; no CLIP, no text.

    python -m clipseg_jax.main --config=configs/own_deeplab.py --config.dataset.root=my_data \\
        --workdir=workdir/mine

It is the student of CLIP-ES without the rest. my_data/train/images and my_data/train/labels are
learned from, the classes are in my_data/classes.txt. It starts from torchvision's ResNet-50;
`--config.student.init_weights=random` needs no download and learns far less. docs/own_images.md has
the whole folder.

Hardware: any number of devices that divides the batch of 8. Hours: not measured on a GPU; on a CPU
slow, take fewer steps. Paper: none on your images. Ours: the demo world, docs/own_images.md.
"""

from ml_collections import ConfigDict

from configs.base import clip_es, own


def get_config() -> ConfigDict:
    config = own.of_own_images(clip_es.get_config())
    config.clip.weights = None
    config.stages = ("data", "train", "evaluate_student", "evaluate_student_crf")
    config.student.labels = "dataset"
    config.dataset.longest_px = 512
    config.student.crop_px = (321, 321)
    own.learn_from_nothing_or_imagenet(config.student, steps=1500)
    config.masks.image = "raw"  # what the CRF sees
    config.train.accumulate_steps = 1
    return config
