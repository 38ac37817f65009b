"""Folders, splits and numbers of pictures of the datasets, as published.

They are those of MaskCLIP's (mmsegmentation's) dataset classes, of ReCLIP's lists, and of the lists
of DeepLab, CLIP-ES, TagCLIP, WeCLIP and WTCLIP.
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
    """Splits that are whole folders; `{}` in the paths stands for the split's own folder.

    `stems` is a list that may be there instead.
    """
    splits = []
    for split, (name, count) in (("train", train), ("val", val)):
        lists = () if stems is None else (stems.format(name),)
        part = Part(images.format(name), labels.format(name), lists, may_scan=True)
        splits.append((split, Split((part,), count)))
    return tuple(splits)


def _listed(labels: str | None, *lists: str) -> Part:
    return Part("JPEGImages", labels, tuple(f"{name}.txt" for name in lists))


# Of the detection annotations every object counts, difficult and truncated ones too.
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
    """All labels in one folder, as DeepLab's and CLIP-ES's lists have it."""
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
# Two lists are in use: the API's (MaskCLIP), and one without three pictures (ReCLIP).
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
    """COCO's objects; only pictures with one are listed. `published`: folder of CLIP-ES's lists.

    `weclip`: its folders will do as well, whose label maps have the pictures' numbers for names.
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
        (f"COCO{year}",),
        remedy=f"python -m input_pipeline.prepare coco{year % 100} --root DIR --write makes lists "
        "and labels from the annotations.",
    )


_STUFF = ("images/{}", "annotations/{}", ("train2017", 118287), ("val2017", 5000))
COCO_STUFF = Layout(_scan(*_STUFF), ("coco_stuff164k",), label_suffix="_labelTrainIds.png")
# TagCLIP's selection of val can't be derived; its list has ids of the 182 classes.
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
ADE = Layout(
    _scan("images/{}", "annotations/{}", ("training", 20210), ("validation", 2000)),
    ("ade/ADEChallengeData2016", "ADEChallengeData2016"),
)
# train.txt and val.txt, of lines like aachen/aachen_000000_000019, are ReCLIP's.
CITYSCAPES = Layout(
    _scan("leftImg8bit/{}", "gtFine/{}", ("train", 2975), ("val", 500), "{}.txt"),
    ("cityscapes", "Cityscapes"),
    image_suffix="_leftImg8bit.png",
    label_suffix="_gtFine_labelTrainIds.png",
)
COCO14 = _coco(2014, "coco14", ("train", 82081), ("val", 40137), weclip=True)
# Camouflaged animals (R2C7K's Camo/train): masks of class ids, whose making isn't published.
COD = Layout(
    tuple(
        (name, Split((_listed("SegmentationClassAug", f"ImageSets/Segmentation/{name}", name),)))
        for name in ("train", "val")
    ),
    ("Camo/train",),
    remedy="The masks hold class ids: 0 background, 1 to 64 in the published order, 255 ignored; "
    "the lists name the pictures, one stem a line.",
)
COCO17 = _coco(2017, "imageset/coco2017", ("train", 117266), ("val", 4952))
