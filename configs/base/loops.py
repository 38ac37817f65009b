"""The sections `train` and `evaluate`, of which methods change little."""

from ml_collections import ConfigDict, config_dict


def train(*, seed: int = 0, accumulate_steps: int = 1, log_every_steps: int = 20) -> ConfigDict:
    """What every training loop does."""
    section = ConfigDict()
    section.seed = seed
    section.accumulate_steps = accumulate_steps
    section.devices = config_dict.placeholder(int)  # None: all
    section.fsdp = 1  # devices that share one copy of the parameters
    section.log_every_steps = log_every_steps
    section.checkpoint_every_steps = 500
    section.keep_checkpoints = 2
    section.steps = config_dict.placeholder(int)  # stop after so many, whatever the method says
    return section


def evaluate(*, published_metric: str = "mIoU") -> ConfigDict:
    """How a split is scored; `published_metric` is what the method's paper prints."""
    section = ConfigDict()
    section.published_metric = published_metric  # marked in tables and files, see core/metrics.py
    section.batch_size = 8  # images over all devices and processes
    section.devices = config_dict.placeholder(int)  # None: all
    section.max_buckets = 8  # static shapes that are compiled
    section.pictures = 0  # overlays to write: the first n images, -1 for all
    section.opacity = 0.5
    # Also label maps, predictions*/<id>.png: numbers of the classes, from 0, as they are scored.
    section.predictions = False
    # Predictions and pseudo masks with a palette, to look at. Without one they are grey, as the
    # published masks are: OpenCV and other tools read a palette's colours instead of the labels.
    section.palette = False
    return section
