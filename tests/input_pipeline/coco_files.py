"""A small COCO folder of generated objects, for the tests of image labels, lists and masks."""

import json

import numpy as np
from PIL import Image

from input_pipeline.datasets.class_sets import class_set, coco_stuff_171_labels

SIZE = (24, 40)  # height, width


def category(label):
    """COCO's number of a class 0..79."""
    return int(np.flatnonzero(coco_stuff_171_labels()[:90] == label)[0]) + 1


def box(top, left, height, width):
    """A polygon that covers whole pixels."""
    right, bottom = left + width, top + height
    return [[left, top, right, top, right, bottom, left, bottom]]


def thing(label, outline, area=1.0, **more):
    return {"category_id": category(label), "segmentation": outline, "area": area, **more}


def instances(objects):
    """The content of an instances_*.json; `objects`: file name -> its objects."""
    names = class_set("stuff").names
    annotations = [
        {"id": 100 + 10 * number + i, "image_id": number, "iscrowd": 0, **each}
        for number, things in enumerate(objects.values())
        for i, each in enumerate(things)
    ]
    return {
        "info": {"year": 2014},
        "images": [
            {"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
            for number, name in enumerate(objects)
        ],
        "annotations": annotations,
        "categories": [{"id": category(i), "name": names[i]} for i in range(80)],
    }


def write(root, objects, folder, year=2014):
    """Images in `folder`, and their annotations."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    for name in objects:
        Image.fromarray(noise).save(root / folder / name)
    split = "train" if "train" in folder else "val"
    path = root / "annotations" / f"instances_{split}{year}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(instances(objects)))
    return path
