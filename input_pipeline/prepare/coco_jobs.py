"""Label maps and lists that are made from COCO's instances_*.json."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from input_pipeline.datasets.catalog import Dataset
from input_pipeline.datasets.coco import read_instances
from input_pipeline.datasets.images import BadFile
from input_pipeline.datasets.layout import files_below
from input_pipeline.prepare.conversions import Job, write_list


def coco_jobs(record: Dataset, root: Path, splits: Iterable[str]) -> list[Job]:
    """Jobs for `draw` of the splits whose instances_*.json exists; also writes missing lists.

    Lists have CLIP-ES's form, `<stem> <class> <class> ...` with classes from 0, and name the images
    that have an object.

    Raises:
      BadFile: instances_*.json is damaged, or an image's name has blanks.
      CannotWrite: a list cannot be written.
    """
    jobs = []
    for split in splits:
        (part,), source = record.layout.split(split).parts, record.layout.split(split).annotations
        assert source is not None
        assert source.instances is not None
        if not (root / source.instances).is_file():
            continue
        images = [each for each in read_instances(root / source.instances).values() if each.objects]
        if record.layout.list_of(root, part) == part.lists[0]:  # no other list exists
            for each in images:
                if len(each.name.split()) != 1:
                    raise BadFile(
                        f"{root / source.instances}: file name {each.name!r} has blanks, so that "
                        f"no list can name it; rename the image"
                    )
            lines = (" ".join(map(str, (each.name, *each.labels))) for each in images)
            write_list(root / part.lists[0], lines)
        folder, prefix = record.layout.labels_of(root, part)
        existing = files_below(root / folder)
        for each in images:
            file = each.name.removeprefix(prefix) + record.layout.label_suffix
            jobs.append(Job(each, root / folder / file, file in existing))
    return jobs
