"""A network on pictures of any size: batches by size, all devices, one compilation per shape."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from clipseg_jax.core.checks import check_whole
from clipseg_jax.core.mesh import make_mesh, replicate, shard_batch
from clipseg_jax.inference import (
    InferenceConfig,
    make_scores_fn,
    make_segment_fn,
    network_pixels,
    network_shapes,
    network_size,
    network_sizes,
)
from clipseg_jax.segmentation import ClassScores, Segmentation
from clipseg_jax.segmenter_images import read_batch
from clipseg_jax.task import Task
from input_pipeline.batches.buckets import PlannedBatch, plan_batches
from input_pipeline.datasets.images import BadImage
from input_pipeline.pictures import Picture, is_one_picture, picture_list, picture_size

ALONE_PX = 2**25  # pixels of an image from which on it makes a batch of its own
AT_ONCE = 64  # images of an iterator that are read before the first of them is segmented


# (model, normalised images (b, h, w, 3), sizes (b, 2)) -> dense features (b, gh, gw, e)
Features = Callable[[Any, jax.Array, jax.Array], jax.Array]


class Functions(NamedTuple):
    """The jitted functions of networks of one structure; see `inference`."""

    segment: Any
    scores: Any
    features: Any


def compiled(task: Task, cfg: InferenceConfig, features: Features) -> tuple[nnx.State, Functions]:
    """A task's state, and its functions, which other states of the same structure may share."""
    state, segment = make_segment_fn(task, cfg, np.uint8)
    _, scores = make_scores_fn(task, cfg)
    graph = nnx.graphdef(task.model)

    def dense(
        state: nnx.State, images: jax.Array, sizes: jax.Array, network: jax.Array, shapes: Any
    ) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, state)
        pixels = network_pixels(images, sizes, network[:, 0], shapes[0], cfg)
        return features(model, pixels, network[:, 0]), task.grid_size(network[:, 0])

    return state, Functions(
        jax.jit(segment, static_argnums=4),
        jax.jit(scores, static_argnums=(4, 5)),
        jax.jit(dense, static_argnums=4),
    )


def devices_and_batch(devices: int | None, batch_size: int | None) -> tuple[Mesh, int]:
    """The devices, and images per batch: a multiple of their number.

    `devices` None: all. `batch_size` None: 4, or on CPUs one per device.

    Raises:
      ValueError: no positive whole numbers, or more devices than there are.
    """
    if batch_size is not None:
        check_whole("batch_size", batch_size)
    if devices is not None:
        check_whole("devices", devices)
    mesh = make_mesh(devices)
    if batch_size is None:
        batch_size = 1 if mesh.devices.flat[0].platform == "cpu" else 4
    return mesh, _round_up(batch_size, mesh)


class Runner:
    """A network with its classes on pictures of any size."""

    def __init__(
        self,
        state: nnx.State,
        functions: Functions,
        cfg: InferenceConfig,
        names: Sequence[str],
        *,
        mesh: Mesh,
        batch_size: int,
        threshold: float = 0.0,
    ):
        """`names`: of the labels, "background" first. The other arguments: see above.

        `threshold`: pixels whose best probability is lower are background. It is applied here, not
        on the device, so that another one is not compiled again.
        """
        self.names, self.cfg, self.threshold = tuple(names), cfg, threshold
        self.functions, self._mesh, self._batch_size = functions, mesh, batch_size
        self.state = replicate(mesh, state)

    def __call__(
        self, images: Iterable[Picture] | Picture
    ) -> Iterator[tuple[int, Segmentation | BadImage]]:
        """Yields (index, result) for every image, batched by size, so not in order.

        Args:
          images: see `input_pipeline.pictures`; one, or any iterable. An iterator, such as a
            generator, is read 64 images at a time, anything else to its end first.

        Yields:
          The index of an image and its segmentation; for one that cannot be used, the error.

        Raises:
          ValueError: something that is no image.
        """

        def run(*inputs: Any) -> list[Any]:
            return list(zip(*jax.device_get(self.functions.segment(*inputs)), strict=True))

        def result(maps: tuple[np.ndarray, np.ndarray], size: tuple[int, int]) -> Segmentation:
            labels, best = (each[: size[0], : size[1]] for each in maps)
            if self.threshold:
                labels = np.where(best < np.float32(self.threshold), np.uint8(0), labels)
            return Segmentation(labels, best, self.names)

        return self._results(images, run, result)

    def scores(
        self, images: Iterable[Picture] | Picture, longest_px: int | None
    ) -> Iterator[tuple[int, ClassScores | BadImage]]:
        """As a call, with the probabilities of all classes.

        `longest_px`: of the maps' longer sides; None: the images' own.
        """
        if longest_px is not None:
            check_whole("longest_px", longest_px)

        def run(*inputs: Any) -> list[Any]:
            return list(jax.device_get(self.functions.scores(*inputs, longest_px)))

        def result(maps: np.ndarray, size: tuple[int, int]) -> ClassScores:
            h, w = shrunk(size, longest_px)
            return ClassScores(maps[:h, :w], self.names, size)

        return self._results(images, run, result)

    def features(
        self, images: Iterable[Picture] | Picture
    ) -> Iterator[tuple[int, np.ndarray | BadImage]]:
        """As a call, with dense features (gh, gw, e) float32 of whole images."""

        def run(*inputs: Any) -> list[Any]:
            return list(zip(*jax.device_get(self.functions.features(*inputs)), strict=True))

        def result(maps: tuple[np.ndarray, np.ndarray], size: tuple[int, int]) -> np.ndarray:
            h, w = maps[1]
            return maps[0][:h, :w]

        return self._results(images, run, result)

    def _results(self, images: Any, run: Callable, result: Callable) -> Iterator[tuple[int, Any]]:
        """What `__call__` returns.

        `run`: the arguments of `inference.SegmentFn` -> what each row of the batch gives, on the
        host; `result`: that of a row and the image's size -> what is yielded.
        """
        if not isinstance(images, Iterator) or is_one_picture(images):
            return self._of_list(picture_list(images), run, result)  # checked at once
        return self._of_iterator(images, run, result)

    def _of_iterator(
        self, images: Iterator, run: Callable, result: Callable
    ) -> Iterator[tuple[int, Any]]:
        done = 0
        while chunk := list(itertools.islice(images, AT_ONCE)):
            pictures = picture_list(chunk, first=done)
            for index, each in self._of_list(pictures, run, result, first=done):
                yield done + index, each
            done += len(chunk)

    def _of_list(
        self, pictures: Sequence[Picture], run: Callable, result: Callable, first: int = 0
    ) -> Iterator[tuple[int, Any]]:
        """`first`: the number of the first one in errors."""
        sizes: dict[int, tuple[int, int]] = {}  # of the readable ones, by index
        for i, picture in enumerate(pictures):
            try:
                size = picture_size(picture)
                network_sizes(size, self.cfg)
            except ValueError as error:
                if isinstance(picture, np.ndarray):
                    yield i, BadImage(f"image {first + i}: {error}")
                elif isinstance(error, BadImage):
                    yield i, error
                else:
                    yield i, BadImage(f"{picture}: {error}")
                continue
            sizes[i] = size
        large = [i for i, (h, w) in sizes.items() if h * w > ALONE_PX]
        usual = [i for i, (h, w) in sizes.items() if h * w <= ALONE_PX]
        at_network = functools.partial(network_size, cfg=self.cfg)
        rows = min(self._batch_size, _round_up(len(usual), self._mesh))
        for i in large:  # on one device, so that memory is that of one image
            (batch,) = plan_batches([sizes[i]], 1, network_size=at_network)
            one = _one_device(self._mesh)
            yield from self._of_batch(batch, one, pictures, [i], sizes, run, result)
        for batch in plan_batches([sizes[i] for i in usual], max(rows, 1), network_size=at_network):
            yield from self._of_batch(batch, self._mesh, pictures, usual, sizes, run, result)

    def _of_batch(
        self,
        batch: PlannedBatch,
        mesh: Mesh,
        pictures: Sequence[Picture],
        indices: Sequence[int],
        sizes: Mapping[int, tuple[int, int]],
        run: Callable,
        result: Callable,
    ) -> Iterator[tuple[int, Any]]:
        """Results of a batch, whose indices are positions in `indices`, those of its pictures."""
        chosen = [indices[i] for i in batch.indices]
        pixels, failed = read_batch(batch, pictures, chosen, sizes)
        at_network = [network_sizes(sizes[i], self.cfg) for i in chosen]
        arrays = shard_batch(
            mesh,
            {
                "images": pixels,
                "sizes": np.asarray([sizes[i] for i in chosen], np.int32),
                "network": np.asarray(at_network, np.int32),
            },
        )
        del pixels
        state = self.state if mesh is self._mesh else replicate(mesh, self.state)
        shapes = network_shapes(batch.network_hw, self.cfg)
        with jax.set_mesh(mesh):
            maps = run(state, arrays["images"], arrays["sizes"], arrays["network"], shapes)
        del arrays  # a large picture's; the caller may need as much again
        for row, index in enumerate(chosen):
            if batch.valid[row]:
                yield index, failed[row] if row in failed else result(maps[row], sizes[index])


def shrunk(size: tuple[int, int], longest_px: int | None) -> tuple[int, int]:
    """(height, width) of an image's maps; rounds as `labels.sizes_within` does on the device."""
    long = max(size)
    if longest_px is None or long <= longest_px:
        return size
    h, w = (max((2 * longest_px * side + long) // (2 * long), 1) for side in size)
    return h, w


def _round_up(count: int, mesh: Mesh) -> int:
    """`count` rounded up to a multiple of the number of devices."""
    return -(-count // mesh.size) * mesh.size


def _one_device(mesh: Mesh) -> Mesh:
    return mesh if mesh.size == 1 else make_mesh(1)
