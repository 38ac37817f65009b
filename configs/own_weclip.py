"""WeCLIP on your own images, trained on which classes each of them shows.

    python -m clipseg_jax.main --config=configs/own_weclip.py --config.dataset.root=my_data \\
        --workdir=workdir/mine

my_data/tags.txt, or my_data/train/tags.txt, says what each image shows, in lines
`photo1: cat, dog`; without it the label maps in my_data/train/labels do. The classes are in
my_data/classes.txt, the first is `background`. docs/own_images.md has the whole folder.

Hardware: any number of devices that divides the batch of 8. Hours: not measured on a GPU; two CPU
cores take one image of the batch a second (ViT-B/16). Paper: none on your images. Ours: the demo
world, docs/own_images.md.
"""

from ml_collections import ConfigDict

from configs.base import own, weclip


def get_config() -> ConfigDict:
    config = own.of_own_images(
        weclip.get_config("weclip"),
        *("clip.mean", "clip.std", "dataset.longest_px", "inference.scale_px"),
        *("cams.temperature", "cams.early_blocks", "cams.late_blocks"),
        *("head.crop_px", "head.affinity_radius"),
    )
    # Published: 30,000 steps of 4 on 10,582 images. The head alone is trained, which learns fast:
    # 8,000 crops are 4 rounds of 2,000 images, or 400 of 20.
    config.head.batch_size = 8
    config.head.total_steps = 1000
    config.head.late_step = 500  # the learned affinity refines the labels from half-way on
    # A validation needs label maps; --config.head.evaluate_every_steps=200 with those of train.
    config.head.evaluate_every_steps = 0
    return config
