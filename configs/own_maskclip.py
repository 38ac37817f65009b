"""MaskCLIP on your own images: your words, no label, nothing trained.

    python -m clipseg_jax.main --config=configs/own_maskclip.py --config.dataset.root=my_data \\
        --workdir=workdir/mine

`own_maskclip.py:naclip` reads the CLIP by NACLIP instead, which published tables put far ahead of
MaskCLIP with ViTs; or sclip, clearclip, scclip, resclip. Masks are fitted to edges by PAMR.
my_data/images are segmented, the classes are in my_data/classes.txt (docs/own_images.md).

Hardware: any device. Hours: seconds for each image on a CPU. Paper: none on your images. Ours: the
demo world, docs/results.md.
"""

from ml_collections import ConfigDict

from configs.base import maskclip, own, readouts

_SIZES = ("clip.mean", "clip.std", "inference.scale_px")


def get_config(read_out: str = "maskclip") -> ConfigDict:
    """`read_out`: "maskclip" takes any CLIP, the others of configs/base/readouts.py a ViT.

    Raises:
      ValueError: there is no such read-out, or it needs a second network.
    """
    if read_out == "maskclip":
        config = maskclip.get_config()
        # As the CLIP was trained; the published ViT differs from it in these.
        config.clip.position_keep_count = False
        own.of_own_images(config, "clip.activation", "clip.norm_eps", *_SIZES)
    elif read_out == "proxyclip":
        raise ValueError("proxyclip needs a DINO; take configs/voc21_readout.py:proxyclip")
    else:
        config = readouts.get_config(read_out)
        config.clip.pad_to_patch = True  # dropping the last rows, as published, shifts masks
        own.of_own_images(config, *_SIZES, "inference.crop_px", "inference.stride_px")
    config.inference.refine = "pamr"
    config.inference.refine_px = 1024  # larger photos are refined at this longest side
    return config
