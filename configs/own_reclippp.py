"""ReCLIP++ on your own images: it learns from photos without any label what CLIP gets wrong.

    python -m clipseg_jax.main --config=configs/own_reclippp.py --config.dataset.root=my_data \\
        --workdir=workdir/mine

my_data/images are segmented, and learned from unless there is a folder my_data/train with its own
images. The classes are in my_data/classes.txt; as published there is no background, each pixel gets
the best of the names, and in label maps 0 is no class, 1 the first. The stage `evaluate_maskclip`
is the CLIP before, for comparison.

Hardware: any number of devices that divides the batch of 8. Hours: not measured on a GPU. Paper:
none on your images. Ours: the demo world, docs/own_images.md.
"""

from ml_collections import ConfigDict

from configs.base import own, reclip


def get_config() -> ConfigDict:
    config = own.of_own_images(
        reclip.get_config("reclip++", "2024"),
        *("clip.activation", "clip.mean", "clip.std", "dataset.longest_px", "tags.threshold"),
        *("rectifier.scale_px", "rectifier.crop_px", "inference.scale_px"),
        *("student.scale_px", "student.crop_px"),
    )
    # On request: `distill` and `evaluate_distilled`, a DeepLab that learns from the rectified CLIP.
    config.stages = ("data", "text", "tags", "evaluate_maskclip", "rectify", "evaluate")
    config.dataset.reduce_zero_label = True
    # Classes of a whole image: as published for VOC from a cosine of 0.23 on, at least one. Windows
    # of small images name too much: on the demo world mIoU 77.6, so 84.7, before 78.9.
    config.tags.method, config.tags.k = "whole", 1
    # As on the demo world: larger steps, and masks less sharp, so that more positions learn. Eight
    # published steps of one image at once, at nearly eight times the rate; 200 rounds of 1,464
    # images would take days.
    config.rectifier.batch_size = 8
    config.rectifier.total_steps = 600
    config.rectifier.optim.learning_rate = 0.1
    config.rectifier.gumbel_scale = 3.0
    config.rectifier.temperature = 100.0
    config.rectifier.reshuffle = True
    config.rectifier.saturation_wrap = False
    # No label decides which weights are used.
    config.rectifier.evaluate_every_epochs = config.student.evaluate_every_epochs = 0
    config.rectifier.checkpoint = config.student.checkpoint = "last"
    config.inference.class_threshold = 0.0  # no class filter: published, one is tuned for each set
    config.student.init_weights = "random"  # or "resnet50_v1c", open-mmlab's
    config.student.total_steps = 1500
    config.student.batch_size = 8
    config.student.saturation_wrap = False
    config.student.aux = "off"  # terms that teach nothing, and take most of the time
    config.student.teacher_threshold = config.student.test_threshold = 0.0
    return config
