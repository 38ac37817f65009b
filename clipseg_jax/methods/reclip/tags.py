"""Which classes an image shows, guessed by the plain CLIP: ReCLIP's second step.

Spec reclip, section 7. The CLIP is unmodified; the caller reads the images. Crops of many images
share batches of one size, so that devices never wait for the last window of an image.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike

from clipseg_jax.core.checks import check_choice, check_number, check_whole
from clipseg_jax.core.files import write_atomic
from clipseg_jax.core.mesh import batch_sharding, make_mesh, on_mesh, replicate
from clipseg_jax.models.clip import (
    CLIP,
    ModifiedResNet,
    VisionTransformer,
    l2_normalize,
    with_class_token,
)
from clipseg_jax.models.clip.preprocess import resize_and_crop
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD, normalize
from clipseg_jax.ops.pillow import pillow_bicubic
from input_pipeline.text_lists import numbered_lines


@dataclasses.dataclass(frozen=True)
class TagsConfig:
    """How class logits become tags. "whole" is ReCLIP's way, "windows" ReCLIP++'s."""

    method: Literal["whole", "windows"] = "windows"
    threshold: float = 23.0  # "whole": least logit (cosine x 100) of a class
    k: int = 2  # so many classes where none reaches the threshold, or the votes
    crop_px: int = 512  # "windows": of the training crop; windows are a sixth of it
    min_votes: int = 1  # "windows": so many must have a class on top

    def __post_init__(self) -> None:
        check_choice("method", self.method, ("whole", "windows"))
        if self.method == "whole":
            check_number("threshold", self.threshold)
            check_whole("k", self.k)
        check_whole(
            "crop_px", self.crop_px, least=12
        )  # windows are a sixth of it, in steps of half
        check_whole("min_votes", self.min_votes)


def window_px(crop_px: int) -> int:
    """The side of the windows of a training that crops `crop_px` pixels."""
    return crop_px // 6


def windows(height: int, width: int, crop_px: int) -> np.ndarray:
    """Boxes (n, 4) = (top, left, bottom, right) of square windows, row by row.

    The last rows and columns stay uncovered, and an image no larger than a window has none.
    """
    side, step = window_px(crop_px), crop_px // 12
    corners = [
        (top, left)
        for top in range(0, height - side, step)
        for left in range(0, width - side, step)
    ]
    boxes = np.asarray(corners, np.int64).reshape(-1, 2)
    return np.concatenate([boxes, boxes + side], axis=1)


def whole_image_tags(logits: np.ndarray, threshold: float, k: int) -> list[int]:
    """Classes whose logit (c,) is at least `threshold`, ascending; if none, the `k` best."""
    classes = np.flatnonzero(logits >= threshold)
    if not classes.size:
        classes = np.argsort(-logits, kind="stable")[:k]
    return [int(i) for i in classes]


def vote_tags(winners: Sequence[int] | np.ndarray, min_votes: int = 1, k: int = 0) -> list[int]:
    """Classes that win at least `min_votes` windows, in order of their first vote.

    If there are none, the first `k` with a vote.
    """
    votes = collections.Counter(int(winner) for winner in winners)
    elected = [winner for winner, count in votes.items() if count >= min_votes]
    return elected or list(votes)[:k]


def crop_logits(visual: VisionTransformer | ModifiedResNet, mesh: Mesh) -> Any:
    """The jitted step: (state, scaled rows (c, e), uint8 crops (b, side, side, 3)) -> (b, c)."""
    graph, image_px = nnx.graphdef(visual), visual.cfg.image_px

    def logits(state: nnx.State, rows: Array, crops: Array) -> Array:
        pixels = normalize(pillow_bicubic(crops, image_px), CLIP_MEAN, CLIP_STD)
        features = l2_normalize(nnx.merge(graph, state)(pixels)[0].astype(jnp.float32))
        return jnp.matmul(features, rows.T, precision="highest")

    return jax.jit(on_mesh(mesh, logits))


class Classifier:
    """Class logits of square crops by a plain CLIP, on the devices of this process."""

    def __init__(
        self,
        clip: CLIP,
        text_embeddings: ArrayLike,
        batch_size: int = 64,
        devices: int | None = None,
    ):
        """`text_embeddings` (c, e) unit rows; on the first `devices`, None: on all of them.

        `batch_size` grows to a multiple of their number.
        """
        self._mesh = make_mesh(devices, local=True)
        self.batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        self.image_px = clip.cfg.vision.image_px
        visual = with_class_token(clip.visual, "the tagger")
        scale = jnp.exp(clip.logit_scale[...])
        rows = scale * jnp.asarray(text_embeddings, jnp.float32)
        self._fixed = replicate(self._mesh, (nnx.state(visual), rows))
        self._logits = crop_logits(visual, self._mesh)

    def submit(self, crops: Sequence[np.ndarray]) -> Array:
        """At most a batch of crops uint8 (side, side, 3) -> logits (batch_size, c), dispatched."""
        batch = np.zeros((self.batch_size, *crops[0].shape), np.uint8)
        batch[: len(crops)] = crops
        return self._logits(*self._fixed, jax.device_put(batch, batch_sharding(self._mesh)))

    def stream(self, crops: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Logits (n, c) of all crops in order, a batch at a time; the next one runs already."""
        waiting: collections.deque[tuple[Array, int]] = collections.deque()
        batch: list[np.ndarray] = []
        for crop in crops:
            batch.append(crop)
            if len(batch) == self.batch_size:
                waiting.append((self.submit(batch), len(batch)))
                batch = []
                if len(waiting) > 1:
                    logits, count = waiting.popleft()
                    yield np.asarray(logits)[:count]
        if batch:
            waiting.append((self.submit(batch), len(batch)))
        for logits, count in waiting:
            yield np.asarray(logits)[:count]


def tag_images(
    images: Iterable[tuple[int, np.ndarray | None]], classifier: Classifier, cfg: TagsConfig
) -> Iterator[tuple[int, list[int]]]:
    """(index, uint8 RGB image (h, w, 3)) pairs -> (index, class ids), in the same order.

    None for an image that can't be read: it has no class.
    An image comes out a few batches after it went in; a caller that stores what came out can resume
    after it.
    """
    counts: collections.deque[tuple[int, int]] = collections.deque()  # images in flight

    def crops() -> Iterator[np.ndarray]:
        for index, image in images:
            if image is None:
                cut = []
            elif cfg.method == "whole":
                cut = [resize_and_crop(image, classifier.image_px)]
            else:
                boxes = windows(image.shape[0], image.shape[1], cfg.crop_px)
                cut = [image[top:bottom, left:right] for top, left, bottom, right in boxes]
            counts.append((index, len(cut)))
            yield from cut

    def decide(logits: list[np.ndarray]) -> list[int]:
        if not logits:
            return []
        if cfg.method == "whole":
            return whole_image_tags(logits[0], cfg.threshold, cfg.k)
        return vote_tags([int(np.argmax(row)) for row in logits], cfg.min_votes, cfg.k)

    rows: list[np.ndarray] = []

    def finished() -> Iterator[tuple[int, list[int]]]:
        while counts and counts[0][1] <= len(rows):
            index, count = counts.popleft()
            yield index, decide(rows[:count])
            del rows[:count]

    for logits in classifier.stream(crops()):
        rows += list(logits)
        yield from finished()
    yield from finished()  # images without windows at the end


def tags_line(tags: Sequence[int]) -> str:
    """One image's line of a tags file, as the published files have it."""
    return json.dumps([int(tag) for tag in tags]) + "\n"


def write_tags(path: str | Path, tags: Iterable[Sequence[int]]) -> Path:
    """Writes a line for each image, in the order of the dataset's training list; atomically."""
    text = "".join(map(tags_line, tags))
    return write_atomic(path, lambda file: file.write(text.encode("utf-8")))


def read_tags(path: str | Path, classes: int, images: int | None = None) -> list[tuple[int, ...]]:
    """Each image's class ids, ascending, from our files or the published ones.

    Raises:
      ValueError: a line that is not a list of ids in 0..`classes` - 1, or not `images` lines; says
        which line. Or see `numbered_lines`.
    """
    tags: list[tuple[int, ...]] = []
    for number, line in numbered_lines(path):
        if number > len(tags) + 1:
            raise ValueError(f"{path}, line {len(tags) + 1}: '' is not a list of ids")
        try:
            ids = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number}: {line[:60]!r} is not a list of ids"
            ) from error
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise ValueError(f"{path}, line {number}: {line[:60]!r} is not a list of ids")
        if wrong := [i for i in ids if not 0 <= i < classes]:
            raise ValueError(
                f"{path}, line {number}: class {wrong[0]} is not in 0..{classes - 1}; the file "
                "belongs to another class list"
            )
        tags.append(tuple(sorted(set(ids))))
    if images is not None and len(tags) != images:
        raise ValueError(
            f"{path} has {len(tags)} lines for {images} training images; it belongs to another "
            "list of images, or was not finished"
        )
    return tags


def tag_matrix(tags: Sequence[Sequence[int]], classes: int) -> np.ndarray:
    """(n, classes) bool, what the loss takes."""
    matrix = np.zeros((len(tags), classes), bool)
    for row, ids in zip(matrix, tags, strict=True):
        row[list(ids)] = True
    return matrix
