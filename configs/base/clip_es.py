"""Every default of CLIP-ES and of TagCLIP before it. Specs clip_es, tagclip, densecrf, deeplab."""

from ml_collections import ConfigDict, config_dict

from configs.base import loops


def get_config() -> ConfigDict:
    """The published values for VOC 2012."""
    config = ConfigDict()
    config.method = "clip_es"
    # Stages run in this order; name some of them to run only those.
    config.stages = (
        *("data", "text", "cams", "evaluate_cams", "masks", "evaluate_masks"),
        *("train", "evaluate_student", "evaluate_student_crf"),
    )

    config.clip = ConfigDict()
    # A name such as ViT-B/16, an OpenAI .pt, a Hugging Face folder, or what weights_convert made.
    config.clip.weights = config_dict.placeholder(str)
    config.clip.dtype = "float32"  # or "bfloat16" for the matrix products; published: float16
    # What an OpenCLIP file without its JSON does not say; None: as the file, else OpenAI's.
    config.clip.activation = config_dict.placeholder(str)  # "gelu" or "quick_gelu"
    config.clip.heads = config_dict.placeholder(tuple)  # of both towers: (12, 8)
    config.clip.position_half = True  # quirk: positions are always rounded to float16

    config.dataset = ConfigDict()
    config.dataset.name = config_dict.placeholder(str)
    config.dataset.root = config_dict.placeholder(str)
    config.dataset.train_split = "train_aug"  # gets CAMs and masks, and trains the student
    config.dataset.mask_split = "train"  # part of it, on which CAMs and masks are scored
    config.dataset.split = "val"  # on which the student is scored
    config.dataset.class_names = ()  # for name "folder" only; otherwise from the record
    config.dataset.reduce_zero_label = False  # same: 0 in the files is no class, 1 the first
    # Larger images are read shrunk to this longest side, to learn from and to make CAMs of.
    config.dataset.longest_px = config_dict.placeholder(int)
    config.dataset.corruption = config_dict.placeholder(str)  # see configs/base/maskclip.py
    config.dataset.corruption_level = 1

    config.labels = ConfigDict()  # which classes an image shows
    config.labels.source = "annotations"  # or "tags": TagCLIP's
    # Instead of both: a list with lines `<id> <class> <class> ...`.
    config.labels.file = config_dict.placeholder(str)

    config.tags = ConfigDict()  # TagCLIP; spec tagclip, section 9
    config.tags.templates = "maskclip_85"
    config.tags.affinity_blocks = (8, 9, 10)
    config.tags.relative_threshold = 0.5
    config.tags.votes = 4
    config.tags.mix = 0.5
    config.tags.skip_empty_boxes = False  # spec tagclip, quirk 1
    config.tags.position_half_stored = False  # quirk: not at 224 x 224, the size of every crop

    config.text = ConfigDict()
    config.text.templates = "clip_es"
    config.text.words = "voc"  # published prompts with synonyms, and background; "": the dataset's
    config.text.background_words = ()  # with words ""

    config.cams = ConfigDict()  # spec clip_es, sections 5, 6, 8 and 11
    config.cams.temperature = 100.0  # exp(logit_scale) of all released CLIPs
    config.cams.patch_px = 16  # of the CLIP; the stages after `cams` need no CLIP
    config.cams.refine = True  # False: the CAMs before their affinity
    config.cams.box_threshold = 0.4
    config.cams.affinity_blocks = (4, 5, 6, 7, 8, 9, 10, 11)
    config.cams.sinkhorn_iterations = 3
    config.cams.propagation_steps = 2
    config.cams.cover_border = False  # spec clip_es, quirk 1
    config.cams.background = True  # a label of its own, where no class is likely
    config.cams.thresholds = (1.0, 2.0)  # from 1 on: powers of 1 - best score; below: scores

    config.crf = ConfigDict()  # clipseg_jax/ops/crf/config.py; spec densecrf, section 8
    config.crf.theta_gamma = 1.0
    config.crf.w2 = 3.0
    config.crf.theta_alpha = 67.0
    config.crf.theta_beta = 3.0
    config.crf.w1 = 4.0
    config.crf.iterations = 10
    config.crf.filter = "lattice"

    config.masks = ConfigDict()  # spec clip_es, section 9
    config.masks.image = "wrapped"  # spec clip_es, quirk 4; or "raw"
    config.masks.confidence_threshold = 0.95  # pixels below it become 255; 0: none

    config.student = ConfigDict()  # DeepLabV2; spec deeplab; spec clip_es, section 10
    config.student.trained_weights = config_dict.placeholder(str)  # released or own; no training
    # ResNet-101 of COCO or ImageNet (deeplab-pytorch's .pth, .caffemodel), or "random".
    config.student.init_weights = config_dict.placeholder(str)
    # Of the ResNet: "caffe", as published; "v1" takes torchvision's weights, "v1c" open-mmlab's.
    config.student.variant = "caffe"
    # "masks" of the stage, a folder of <id>.png, or "dataset": the label maps of the train split.
    config.student.labels = "masks"
    config.student.blocks = (3, 4, 23, 3)
    config.student.width = 64
    config.student.dtype = "float32"  # of the convolutions
    config.student.loss = "mean"  # or "balanced", which ImageNet's weights may need
    config.student.scales = (0.5, 0.75, 1.0, 1.25, 1.5)
    config.student.crop_px = (321, 321)
    config.student.batch_size = 10  # as 5 x 2, see train.accumulate_steps
    config.student.total_steps = 20_000
    config.student.optim = ConfigDict()
    config.student.optim.name = "sgd"
    config.student.optim.learning_rate = 2.5e-5  # of COCO's weights; ImageNet's: 2e-4
    config.student.optim.schedule = "poly"
    config.student.optim.power = 0.9
    config.student.optim.hold_steps = 10
    config.student.optim.warmup_steps = 0  # for batches of many images
    config.student.optim.momentum = 0.9
    config.student.optim.weight_decay = 5e-4
    config.student.optim.clip_norm = 0.0  # no limit
    # The classifiers' learning rate, times the backbone's; their biases' is twice that.
    config.student.head_learning_rate_factor = 10.0
    config.student.ratios = (1.0,)  # test-time scales beside the network's own three
    config.student.flip = False

    config.train = loops.train(accumulate_steps=2)
    config.evaluate = loops.evaluate(published_metric="mIoU_of_labelled")
    config.run = loops.run()  # max_buckets: for each bound of class counts
    config.run.crops_at_once = 8  # of the stage `tags`
    config.run.write_npy = False  # also cams_npy/<id>.npy, the published layout at full size
    return config


def tagclip() -> ConfigDict:
    """Nothing annotated: TagCLIP names the classes of val, CLIP-ES and the CRF find them."""
    config = get_config()
    config.stages = ("data", "tags", "text", "cams", "evaluate_cams", "masks", "evaluate_masks")
    config.labels.source = "tags"
    config.dataset.train_split = config.dataset.mask_split = "val"
    config.cams.thresholds = (1.0,)
    config.masks.confidence_threshold = 0.0
    return config
