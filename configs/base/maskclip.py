"""Every default of MaskCLIP: spec maskclip, sections 3 to 8 and 10, unless said otherwise."""

from ml_collections import ConfigDict, config_dict

from configs.base import loops


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.method = "maskclip"
    # Stages run in this order; name some of them to run only those.
    config.stages = ("data", "text", "evaluate")

    config.clip = ConfigDict()
    # A name such as ViT-B/16, an OpenAI .pt, a Hugging Face folder, or what weights_convert made.
    config.clip.weights = config_dict.placeholder(str)
    config.clip.dtype = "float32"  # or "bfloat16" for the matrix products
    # What an OpenCLIP file without its JSON does not say; None: as the file, else OpenAI's.
    config.clip.trained_activation = config_dict.placeholder(str)  # "gelu" or "quick_gelu"
    config.clip.heads = config_dict.placeholder(tuple)  # of both towers: (12, 8)
    # The published ViT differs from OpenAI's in these; ResNets have no such choice.
    config.clip.activation = "gelu"  # OpenAI: "quick_gelu"
    config.clip.norm_eps = 1e-6  # OpenAI: 1e-5
    config.clip.position_keep_count = True
    # Pixel values. ImageNet's, also for CLIP: what the published numbers used.
    config.clip.mean = (123.675, 116.28, 103.53)
    config.clip.std = (58.395, 57.12, 57.375)

    config.dataset = ConfigDict()
    config.dataset.name = config_dict.placeholder(str)
    config.dataset.root = config_dict.placeholder(str)
    config.dataset.split = "val"
    config.dataset.class_names = ()  # for name "folder" only; otherwise from the record
    config.dataset.reduce_zero_label = False  # same: 0 in the files is no class, 1 the first

    # Robustness test: a kind of input_pipeline/batches/corruptions.py at level 1 to 5.
    config.dataset.corruption = config_dict.placeholder(str)
    config.dataset.corruption_level = 1

    # All of them, by the stage: --config.stages=data,text,robustness
    config.robustness = loops.robustness()

    config.text = ConfigDict()
    config.text.templates = "maskclip_85"
    config.text.background_words = ()  # more rows, all of which mean label 0

    config.maskclip = ConfigDict()
    # Both refinements are off in the published table; its switched-on values are 0.5 and 1.0.
    config.maskclip.pd_threshold = 0.0
    config.maskclip.ks_threshold = 0.0
    config.maskclip.ks_axis = "tokens"  # the paper describes "channels"
    config.maskclip.attn_pooling = False

    config.inference = loops.inference()  # published: no refinement
    config.inference.scale_px = (2048, 512)  # long and short side at most
    config.inference.keep_ratio = True
    config.inference.mode = "whole"  # or "slide"
    config.inference.crop_px = (512, 512)
    config.inference.stride_px = (341, 341)
    config.inference.ratios = (1.0,)  # published augmented test: 0.5 to 1.75 in steps of 0.25
    config.inference.flip = False
    config.inference.background_threshold = 0.0  # probability; 0: no such rule
    config.inference.temperature = 100.0

    config.evaluate = loops.evaluate()
    config.run = loops.run()
    return config
