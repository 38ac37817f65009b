"""Every default of WeCLIP and of WTCLIP. Specs weclip, wtclip, densecrf."""

from ml_collections import ConfigDict, config_dict

from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD
from configs.base import loops


def get_config(model: str = "weclip") -> ConfigDict:
    """The published values for VOC 2012; `model` is "weclip" or "wtclip".

    Raises:
      ValueError: another model.
    """
    if model not in ("weclip", "wtclip"):
        raise ValueError(f"no model {model!r}; choose weclip or wtclip")
    config = ConfigDict()
    config.method = "weclip"
    # Stages run in this order; name some of them to run only those. On request: "masks", the
    # labels that training makes, of whole images.
    config.stages = ("data", "text", "train", "evaluate", "evaluate_crf")

    config.clip = ConfigDict()
    # A name such as ViT-B/16, an OpenAI .pt, a Hugging Face folder, or what weights_convert made.
    config.clip.weights = config_dict.placeholder(str)
    config.clip.dtype = "float32"  # or "bfloat16" for the matrix products; published: float16
    # What an OpenCLIP file without its JSON does not say; None: as the file, else OpenAI's.
    config.clip.activation = config_dict.placeholder(str)  # "gelu" or "quick_gelu"
    config.clip.heads = config_dict.placeholder(tuple)  # of both towers: (12, 8)
    # The original runs the out projections of attention, the residual stream and the positions in
    # float16 on GPUs (spec weclip, section 3). Here all is float32, on purpose; True rounds the
    # positions alone, as CLIP-ES does.
    config.clip.position_half = False
    # Pixel values. ImageNet's, also for CLIP: what the published numbers used (spec weclip, quirk
    # 2).
    config.clip.mean = IMAGENET_MEAN
    config.clip.std = IMAGENET_STD

    config.dataset = ConfigDict()
    config.dataset.name = config_dict.placeholder(str)
    config.dataset.root = config_dict.placeholder(str)
    config.dataset.train_split = "train_aug"
    config.dataset.validation_split = "train"  # scored while training; published, though learned
    config.dataset.split = "val"
    config.dataset.class_names = ()  # for name "folder" only; otherwise from the record
    config.dataset.reduce_zero_label = False  # same: 0 in the files is no class, 1 the first
    # Larger images are read shrunk to this longest side, to learn from and to make CAMs of.
    config.dataset.longest_px = config_dict.placeholder(int)
    config.dataset.corruption = config_dict.placeholder(str)  # see configs/base/maskclip.py
    config.dataset.corruption_level = 1

    config.labels = ConfigDict()  # which classes an image shows
    # What the training split's label maps show, as published (spec weclip, quirk 1), or the
    # dataset's own "annotations".
    config.labels.source = "masks"
    # Instead of both: cls_labels_onehot.npy, or a list with lines `<id> <class> <class> ...`.
    config.labels.file = config_dict.placeholder(str)

    config.text = ConfigDict()
    config.text.templates = "clip_es"
    config.text.words = "voc"  # published prompts with synonyms, and background; "": the dataset's
    config.text.background_words = ()  # with words ""

    config.head = ConfigDict()  # what is trained; spec weclip, section 4; spec wtclip, section 2
    config.head.width = 256
    config.head.layers = 3
    config.head.heads = 8
    config.head.dropout = 0.1
    config.head.gate = model == "wtclip"
    config.head.wavelet_levels = 1 if model == "wtclip" else 0

    config.cams = ConfigDict()  # how labels are made; spec weclip, section 5
    config.cams.box_threshold = 0.4
    config.cams.early_blocks = 8
    config.cams.late_blocks = 6
    # WTCLIP's released edge step changes nothing; "scaled" makes it work (spec wtclip, section 3).
    config.cams.edge = "off"
    config.cams.temperature = 100.0  # exp(logit_scale) of all released CLIPs

    config.par = ConfigDict()  # spec weclip, section 5.8
    config.par.iterations = 20
    config.par.dilations = (1, 2, 4, 8, 12, 24)  # pixels
    config.par.width = 0.3
    config.par.position_weight = 0.01

    # Its training: spec weclip, sections 6 to 9.
    config.head.trained_weights = config_dict.placeholder(str)  # published or own; no training
    config.head.crop_px = (320, 320)
    config.head.ratio_range = (0.5, 2.0)
    config.head.batch_size = 4
    config.head.total_steps = 30_000
    # From this step on the learned affinity refines the labels. The released counter also counts
    # 1464 validation images every 2000 steps, which makes its 15000 this; the paper means steps.
    config.head.late_step = 9144
    config.head.affinity_weight = 0.1
    config.head.affinity_radius = 8  # patches
    config.head.padding = "learned"  # spec weclip, quirk 9: like pixels; or "ignored"
    config.head.optim = ConfigDict()
    config.head.optim.name = "adamw"
    config.head.optim.learning_rate = 2e-4  # logged; the head's is ten times it
    config.head.optim.schedule = "poly"
    config.head.optim.power = 1.0
    config.head.optim.warmup_steps = 50
    config.head.optim.warmup_ratio = 1e-6
    config.head.optim.warmup_alone = True
    config.head.optim.weight_decay = 0.01  # of all there is, biases and norms as well
    config.head.optim.clip_norm = 0.0  # no limit
    # On the validation split, at one scale; 0: never. Published with dropout, here without (spec
    # weclip, quirk 4).
    config.head.evaluate_every_steps = 2000
    config.head.checkpoint = "last"  # as published; "best": by mIoU of the validation split

    config.train = loops.train(seed=1)

    config.inference = ConfigDict()  # spec weclip, section 10
    config.inference.scale_px = (512, 512)  # the long side's
    config.inference.ratios = (1.0, 0.75)
    config.inference.flip = True

    config.crf = ConfigDict()  # clipseg_jax/ops/crf/config.py; spec densecrf, section 8
    config.crf.theta_gamma = 3.0
    config.crf.w2 = 3.0
    config.crf.theta_alpha = 64.0
    config.crf.theta_beta = 5.0
    config.crf.w1 = 4.0
    config.crf.iterations = 10
    config.crf.filter = "lattice"

    config.masks = ConfigDict()  # spec weclip, section 10.4
    config.masks.split = "train"  # whose image labels are known
    config.masks.score = True  # against its label maps: metrics_masks.json

    config.evaluate = loops.evaluate(published_metric="mIoU_of_labelled")
    config.run = loops.run(log_every_steps=200)
    return config


def for_coco(config: ConfigDict) -> ConfigDict:
    """`config` with the published values for COCO 2014."""
    config.dataset.name = "coco14_81"
    config.dataset.root = "data/coco2014"
    config.dataset.train_split = config.dataset.validation_split = "train"
    config.text.words = "coco"
    config.cams.box_threshold = 0.7
    config.cams.late_blocks = 10
    config.head.total_steps = 80_000
    config.head.late_step = 40_000  # nothing else is counted there
    config.head.evaluate_every_steps = 0
    return config
