"""Every default of the read-outs of CLIP: spec readouts, sections 2 to 8 and 12.

A config string names the method. What it does on each dataset: configs/base/readout_protocols.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict, config_dict

from configs.base import loops
from configs.base.readout_protocols import METHODS, SAME_AS, protocol

CHOICES = (*SAME_AS, *METHODS)
DEFAULT = "scclip"  # the best of those that need CLIP alone


def dataset_config(dataset: str, method: str) -> ConfigDict:
    """A method of `CHOICES` with its published protocol on a dataset of `readout_protocols`.

    Raises:
      ValueError: there is no such method.
    """
    config = get_config(method)
    config.update_from_flattened_dict(protocol(dataset, method))
    return config


def get_config(method: str) -> ConfigDict:
    """A method of `CHOICES` with the sizes and the logit scale that most of them share.

    Raises:
      ValueError: there is no such method.
    """
    if method not in CHOICES:
        raise ValueError(f"no read-out {method!r}; choose one of {', '.join(CHOICES)}")
    config = ConfigDict()
    config.method = "readouts"
    # Stages run in this order; name some of them to run only those.
    config.stages = ("data", "text", "evaluate")

    config.clip = ConfigDict()
    # A name such as ViT-B/16, an OpenAI .pt, a Hugging Face folder, or what weights_convert made.
    config.clip.weights = config_dict.placeholder(str)
    config.clip.dtype = "float32"  # or "bfloat16" for the matrix products; published: float16
    # What an OpenCLIP file without its JSON does not say; None: as the file, else OpenAI's.
    config.clip.activation = config_dict.placeholder(str)  # "gelu" or "quick_gelu"
    config.clip.heads = config_dict.placeholder(tuple)  # of both towers: (12, 8)
    config.clip.position_keep_count = True  # no resize to another grid of as many patches
    config.clip.position_offset = 0.1  # quirk 1: resized as if to a grid larger by this
    config.clip.pad_to_patch = False  # rows and columns beyond the last whole patch are dropped
    # Pixel values: CLIP's, rounded as published.
    config.clip.mean = (122.771, 116.746, 104.094)
    config.clip.std = (68.501, 66.632, 70.323)

    config.dino = ConfigDict()  # proxyclip alone
    # A name such as dino_vitb8, the authors' .pth, or a Hugging Face directory.
    config.dino.weights = config_dict.placeholder(str)
    config.dino.dtype = "float32"  # or "bfloat16" for the matrix products

    config.dataset = ConfigDict()
    config.dataset.name = config_dict.placeholder(str)
    config.dataset.root = config_dict.placeholder(str)
    config.dataset.split = "val"
    config.dataset.class_names = ()  # for name "folder" only; otherwise from the record
    config.dataset.reduce_zero_label = False  # same: 0 in the files is no class, 1 the first
    config.dataset.corruption = config_dict.placeholder(str)  # see configs/base/maskclip.py
    config.dataset.corruption_level = 1

    # All of them, by the stage: --config.stages=data,text,robustness
    config.robustness = loops.robustness()

    config.text = ConfigDict()
    config.text.templates = "imagenet_80"
    # Published names of the classes, each a text row; "": the dataset's prompts.
    config.text.names = ""
    config.text.background_words = ()  # more rows, all of which mean label 0

    config.read_out = ConfigDict()
    # "proxyclip", or one of clipseg_jax/models/clip/read_outs.py.
    config.read_out.name = method
    # Share of the attention of earlier blocks; None: the read-out's own. ResCLIP has one for each
    # dataset.
    config.read_out.cross = config_dict.placeholder(float)
    config.read_out.feedback = ConfigDict()  # section 5, SFR
    # A second pass that follows a first segmentation: 1.2 times the time, with 171 names 2.3 times.
    config.read_out.feedback.enabled = method == "resclip"
    config.read_out.feedback.threshold = 0.25  # less probable pixels of the first one are row 0
    config.read_out.feedback.gain = 1.8  # of the scores of the second pass
    config.read_out.feedback.share = 0.7  # of the feedback in these scores
    config.read_out.proxy = ConfigDict()  # section 12, proxyclip alone
    # A patch attends to those that are more alike than this times the mean.
    config.read_out.proxy.beta = 1.2
    config.read_out.proxy.gamma = 3.0  # of what is above that, before the softmax

    # NACLIP's headline row has refine "pamr" (section 7).
    config.inference = loops.inference()
    config.inference.scale_px = (2048, 336)  # long and short side at most
    config.inference.keep_ratio = True  # False: (width, height) exactly
    config.inference.mode = "slide"  # windows; "whole": the image at once
    config.inference.crop_px = (224, 224)  # height and width of a window
    config.inference.stride_px = (112, 112)  # between windows
    # Windows are padded on all sides to a multiple of this; 0: they are not. ClearCLIP's is the
    # patch: 14 for a ViT-L/14.
    config.inference.pad_to_px = 0
    config.inference.temperature = 40.0  # the logit scale: of cosines, before their softmax
    config.inference.background_threshold = 0.0  # less probable pixels are label 0; 0: no such rule
    # Classes on no more than this share of the pixels that show any are replaced by each pixel's
    # next best; 0: no such rule.
    config.inference.area_threshold = 0.0

    config.evaluate = loops.evaluate()
    config.run = loops.run()
    return config
