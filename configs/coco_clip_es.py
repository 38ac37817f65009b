"""CLIP-ES on COCO 2014 (80 classes and background): masks from image labels, then DeepLabV2.

    python -m clipseg_jax.main --config=configs/coco_clip_es.py \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/coco2014 \\
        --config.student.init_weights=resnet101_imagenet.pth

82,081 training and 40,137 validation images (`python -m input_pipeline.prepare coco14 --root DIR`
makes their label maps from the annotated instances). Published mIoU of the student on val, with
ImageNet's weights: 45.4. The published code has no settings for this student; VOC's are used.

Hardware: any number of devices; the student's two parts of a batch of 10 use up to 5. Hours: not
measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import clip_es


def get_config() -> ConfigDict:
    config = clip_es.get_config()
    config.dataset.name = "coco14_81"
    config.dataset.root = "data/coco2014"
    config.dataset.train_split = config.dataset.mask_split = "train"
    config.text.words = "coco"
    config.cams.box_threshold = 0.7
    config.student.optim.learning_rate = 2e-4
    return config
