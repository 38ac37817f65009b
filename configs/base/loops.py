"""The sections that recipes share, and the scheme that all configs follow.

- `method`, `stages`: what runs. `clip`, `dataset`, `text`, `labels`, `tags`, `cams`, `masks`,
  `crf`, `inference`, ...: how a step of the method works.
- Every trained network has a section of its name (ReCLIP: `rectifier`, `student`; MaskCLIP+ and
  CLIP-ES: `student`; WeCLIP: `head`; CLIP-RC: `clip_rc`) with its sizes, its loss and, where they
  apply, the keys
    trained_weights       a file: use these, skip training
    init_weights          a file: start from these
    checkpoint            which checkpoint of our training is used, "best" or "last"
    batch_size            images of one step, over all devices and processes
    total_steps           of the run; or total_epochs (stages/training.py turns epochs into steps)
    evaluate_every_steps  on a labelled split, 0: never; or evaluate_every_epochs
    dtype                 of the matrix products and convolutions
    optim.*               clipseg_jax/core/optim.py
- `train`: what all trainings of a recipe share.
- `run`: what changes only speed, memory, or how much is kept or shown. These values and `stages`
  may change between runs of one work directory; every other value must stay.
- Thresholds end in `_threshold`, sizes in pixels in `_px`, lengths in `_steps` or `_epochs`.

Names of earlier versions: clipseg_jax/core/config_names.py.
"""

from ml_collections import ConfigDict, config_dict


def train(*, seed: int = 0, accumulate_steps: int = 1) -> ConfigDict:
    """What the trainings of a recipe share."""
    section = ConfigDict()
    section.seed = seed
    section.accumulate_steps = accumulate_steps  # parts of a batch, one after another
    return section


def evaluate(*, published_metric: str = "mIoU") -> ConfigDict:
    """How a split is scored."""
    section = ConfigDict()
    # What the method's paper prints: marked in tables and files, see core/metrics.py.
    section.published_metric = published_metric
    return section


def inference() -> ConfigDict:
    """What makes label maps follow the edges of images; recipes add what else inference takes."""
    section = ConfigDict()
    section.refine = ""  # "pamr", "par" or "crf"
    # Longest side in pixels at which larger images are refined; None: all at their own size.
    section.refine_px = config_dict.placeholder(int)
    section.pamr = ConfigDict()  # of ResCLIP's feedback, too
    section.pamr.steps = 10  # rounds over all pixels
    section.pamr.dilations = (8, 16)  # pixels, of its eight neighbours each
    return section


def robustness() -> ConfigDict:
    """Corrupted images: kinds of input_pipeline/batches/corruptions.py at levels 1 to 5."""
    section = ConfigDict()
    section.kinds = (
        *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
        *("gaussian_blur", "defocus_blur", "spatter", "jpeg_compression"),
    )
    section.levels = (1, 2, 3, 4, 5)
    section.seed = 0  # of the noise, with each picture's place in the split
    return section


def run(*, log_every_steps: int = 20) -> ConfigDict:
    """What changes only speed, memory, or how much is kept or shown."""
    section = ConfigDict()
    # None: all; while training, as many as divide the batch.
    section.devices = config_dict.placeholder(int)
    section.fsdp = 1  # devices that share one copy of the trained parameters
    section.batch_size = 8  # images of a batch wherever nothing is trained, over all devices
    # Processes that decode and crop for a training; 0: threads; None: threads on up to 8 cores.
    section.loader_processes = config_dict.placeholder(int)
    section.max_buckets = 8  # static shapes that are compiled
    section.log_every_steps = log_every_steps
    section.checkpoint_every_steps = 500
    section.keep_checkpoints = 2
    # First and last step of each training that JAX's profiler traces, such as (10, 14).
    section.profile_steps = config_dict.placeholder(tuple)
    section.pictures = 0  # overlays to write: the first n images, -1 for all
    section.opacity = 0.5  # of the overlays
    # Label maps, predictions*/<id>.png: class numbers from 0, as they are scored.
    section.predictions = False
    # Predictions and pseudo masks with a palette, to look at. Without one they are grey, as the
    # published masks are: OpenCV and other tools read a palette's colours instead of the labels.
    section.palette = False
    return section
