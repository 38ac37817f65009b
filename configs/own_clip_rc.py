"""CLIP-RC on your own images and label maps, of all classes or of some.

    python -m clipseg_jax.main --config=configs/own_clip_rc.py --config.dataset.root=my_data \\
        --workdir=workdir/mine

All classes of my_data/classes.txt are labelled in my_data/train/labels. Where some are not labelled
anywhere, `own_clip_rc.py:some` with `--config.dataset.unseen=zebra,giraffe` finds these as well: it
labels them itself from half-way on, where the label maps have 255. `:inductive` learns nothing of
them but their names.

Hardware: any number of devices that divides the batch of 8. Hours: not measured on a GPU. Paper:
none on your images. Ours: the demo world, docs/own_images.md.
"""

from ml_collections import ConfigDict

from configs.base import clip_rc, own

# Config string -> the published name of the setting.
_SETTINGS = {"all": "fully", "some": "transductive", "inductive": "inductive"}


def get_config(labelled: str = "all") -> ConfigDict:
    """`labelled`: "all" classes, "some", or "inductive", some as well.

    Raises:
      ValueError: anything else.
    """
    if labelled not in _SETTINGS:
        raise ValueError(f"no {labelled!r}; choose one of {', '.join(_SETTINGS)}")
    config = own.of_own_images(
        clip_rc.get_config(_SETTINGS[labelled]),
        *("dataset.longest_px", "clip_rc.scale_px", "clip_rc.crop_px"),
        *("inference.scale_px", "inference.crop_px", "inference.stride_px"),
    )
    config.text.templates = "clip_rc_15"
    # Published: 20,000 to 40,000 steps of 16 on 10,582 images. Prompts and head alone are trained.
    config.clip_rc.batch_size = 8
    config.clip_rc.total_steps = 1000
    config.clip_rc.optim.warmup_steps = 50
    config.clip_rc.optim.end_learning_rate = 1e-5
    if labelled == "all":
        config.evaluate.published_metric = "mIoU"  # no class is unseen
    if labelled == "some":
        # Published: from another run's weights, and where unseen classes are is known.
        config.clip_rc.self_training_step = 500
        config.clip_rc.unlabelled = "hidden"
    return config
