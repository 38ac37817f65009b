"""Folder layouts, splits and numbers of images of the datasets, as published.

Sources: MaskCLIP's (mmsegmentation's) dataset classes, and the lists of ReCLIP, DeepLab, CLIP-ES,
TagCLIP, WeCLIP and WTCLIP.
"""

from __future__ import annotations

from input_pipeline.datasets.class_sets import coco_stuff_171_labels
from input_pipeline.datasets.layout import Annotations, Layout, Part, Split


def _scan(
    images: str,
    labels: str,
    train: tuple[str, int],
    val: tuple[str, int],
    stems: str | None = None,
) -> tuple[tuple[str, Split], ...]:
    """Splits train and val that are whole folders.

    Args:
      images, labels: paths with `{}` for the folder of the split.
      train, val: folder and number of images of the split.
      stems: path of a list that is used if it exists, also with `{}`.
    """
    splits = []
    for split, (name, count) in (("train", train), ("val", val)):
        lists = () if stems is None else (stems.format(name),)
        part = Part(images.format(name), labels.format(name), lists, may_scan=True)
        splits.append((split, Split((part,), count)))
    return tuple(splits)


def _listed(labels: str | None, *lists: str) -> Part:
    return Part("JPEGImages", labels, tuple(f"{name}.txt" for name in lists))


# Of the detection annotations all objects count, difficult and truncated ones included.
_XML = Annotations(xml="Annotations")
_VOC_TRAIN = _listed("SegmentationClass", "ImageSets/Segmentation/train")
_VOC_SBD_ONLY = _listed("SegmentationClassAug", "ImageSets/Segmentation/aug")
_VOC_VAL = _listed("SegmentationClass", "ImageSets/Segmentation/val")
VOC12 = Layout(
    (
        ("train", Split((_VOC_TRAIN,), 1464, annotations=_XML)),
        ("trainaug", Split((_VOC_TRAIN, _VOC_SBD_ONLY), 10582, annotations=_XML)),
        ("val", Split((_VOC_VAL,), 1449, annotations=_XML)),
    ),
    ("VOCdevkit/VOC2012",),
)


def _voc_aug(name: str, count: int) -> tuple[str, Split]:
    """A split with all labels in one folder, as in DeepLab's and CLIP-ES's lists."""
    lists = (f"{folder}/{name}" for folder in ("Segmentation", "SegmentationAug"))
    part = _listed("SegmentationClassAug", *(f"ImageSets/{each}" for each in lists))
    return name, Split((part,), count, annotations=_XML)


VOC_AUG = Layout(
    (
        _voc_aug("train", 1464),
        _voc_aug("train_aug", 10582),
        _voc_aug("trainval", 2913),
        _voc_aug("val", 1449),
    ),
    ("VOCdevkit/VOC2012",),
    remedy="python -m input_pipeline.prepare voc_aug --root DIR --write makes lists and labels.",
)
VOC07 = Layout(
    tuple(
        (name, Split((_listed(None, f"ImageSets/Main/{name}"),), count, annotations=_XML))
        for name, count in (("train", 2501), ("val", 2510), ("trainval", 5011), ("test", 4952))
    ),
    ("VOCdevkit/VOC2007",),
)
_CONTEXT_TRAIN = _listed("SegmentationClassContext", "ImageSets/SegmentationContext/train")
_CONTEXT_VAL = _listed("SegmentationClassContext", "ImageSets/SegmentationContext/val")
# Two lists are in use: the Detail API's (MaskCLIP), and one with fewer images (ReCLIP).
CONTEXT = Layout(
    (
        ("train", Split((_CONTEXT_TRAIN,), 4998, (4996,))),
        ("val", Split((_CONTEXT_VAL,), 5105, (5104,))),
    ),
    ("VOCdevkit/VOC2010",),
)


def _coco(
    year: int,
    published: str,
    train: tuple[str, int],
    val: tuple[str, int],
    *,
    weclip: bool = False,
) -> Layout:
    """COCO's objects; only images with an object are listed.

    Args:
      published: folder of CLIP-ES's lists.
      train, val: name of CLIP-ES's list, and number of images of the split.
      weclip: accept WeCLIP's folders, whose label maps are named by the images' numbers.
    """
    splits = []
    for split, (name, count) in (("train", train), ("val", val)):
        folder = f"{split}{year}"
        part = Part(
            folder,
            "SegmentationClass",
            (f"ImageSets/{folder}.txt", f"{published}/{name}.txt"),
            elsewhere=(
                *(f"images/{folder}", f"JPEGImages/{folder}"),
                *[f"JPEGImages/{split}"] * weclip,
                "JPEGImages",
            ),
            labels_elsewhere=((f"SegmentationClass/{split}", f"COCO_{folder}_"),) * weclip,
        )
        source = Annotations(instances=f"annotations/instances_{folder}.json", listed=True)
        splits.append((split, Split((part,), count, annotations=source)))
    return Layout(
        tuple(splits),
        (f"COCO{year}", f"coco{year}"),
        remedy=f"python -m input_pipeline.prepare coco{year % 100} --root DIR --write makes lists "
        "and labels from the annotations.",
    )


_STUFF = ("images/{}", "annotations/{}", ("train2017", 118287), ("val2017", 5000))
COCO_STUFF = Layout(_scan(*_STUFF), ("coco_stuff164k",), label_suffix="_labelTrainIds.png")
# TagCLIP's selection of val cannot be derived; its list has ids 0..181 of the raw classes.
_TAGCLIP_VAL = Split(
    (Part("images/val2017", "annotations/val2017", ("imageset/cocostuff/val.txt",)),),
    4172,
    annotations=Annotations(
        listed=True, classes="stuff", ids=tuple(coco_stuff_171_labels().tolist())
    ),
)
COCO_STUFF_27 = Layout(
    (*_scan(*_STUFF), ("tagclip_val", _TAGCLIP_VAL)),
    ("coco_stuff164k",),
    label_suffix="_27labelTrainIds.png",
    remedy="python -m input_pipeline.prepare coco_stuff_27 --root DIR --write makes the labels; "
    "imageset/cocostuff/val.txt is TagCLIP's.",
)
# COCO's 80 objects as the read-outs of CLIP are scored on them: of val alone, no pixel ignored.
COCO_OBJECT = Layout(
    (("val", Split((Part("images/val2017", "annotations/val2017"),), 5000)),),
    ("coco_stuff164k",),
    label_suffix="_instanceTrainIds.png",
    remedy="python -m input_pipeline.prepare coco_object --root DIR --write makes the labels.",
)
ADE = Layout(
    _scan("images/{}", "annotations/{}", ("training", 20210), ("validation", 2000)),
    ("ade/ADEChallengeData2016", "ADEChallengeData2016"),
)
# train.txt and val.txt with lines like aachen/aachen_000000_000019 are ReCLIP's.
CITYSCAPES = Layout(
    _scan("leftImg8bit/{}", "gtFine/{}", ("train", 2975), ("val", 500), "{}.txt"),
    ("cityscapes", "Cityscapes"),
    image_suffix="_leftImg8bit.png",
    label_suffix="_gtFine_labelTrainIds.png",
)
COCO14 = _coco(2014, "coco14", ("train", 82081), ("val", 40137), weclip=True)
# Camouflaged animals (R2C7K's Camo/train): masks of class ids; how they are made is not published.
COD = Layout(
    tuple(
        (name, Split((_listed("SegmentationClassAug", f"ImageSets/Segmentation/{name}", name),)))
        for name in ("train", "val")
    ),
    ("Camo/train",),
    remedy="The masks hold class ids: 0 background, 1 to 64 in the published order, 255 ignored; "
    "the lists name the images, one stem a line.",
)
COCO17 = _coco(2017, "imageset/coco2017", ("train", 117266), ("val", 4952))
