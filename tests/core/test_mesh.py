"""Meshes over the slices of a TPU cluster, with devices that are not there."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
import pytest

from clipseg_jax.core import mesh


@dataclass(frozen=True)
class Chip:
    """What a mesh asks of a v5e chip: four a host, four hosts of 2 x 2 a slice."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0

    @property
    def process_index(self) -> int:
        return self.id // 4


def chips(slices, side=4):
    size = side * side
    return [
        Chip(number, number // size, (number % side, number % size // side, 0))
        for number in range(slices * size)
    ]


def grid(devices, fsdp):
    return mesh._across_slices(devices, mesh._slices(devices), fsdp)


@pytest.mark.parametrize("fsdp", [1, 4, 16])
def test_data_runs_across_slices_and_fsdp_within(fsdp):
    devices = chips(3)
    laid = grid([*reversed(devices)], fsdp)
    assert laid.shape == (48 // fsdp, fsdp)
    assert {*laid.flat} == {*devices}
    for row in laid:
        assert len({chip.slice_index for chip in row}) == 1
    # A slice is a block of rows, in the order of the slices.
    assert [row[0].slice_index for row in laid] == sorted(row[0].slice_index for row in laid)


def test_what_does_not_fit_slices():
    with pytest.raises(ValueError, match=r"fsdp 32 does not divide the 16 devices of a slice \(2"):
        mesh.make_mesh(fsdp=32, among=chips(2))
    with pytest.raises(ValueError, match="24 devices are 16 of slice 0, 8 of slice 1; use equally"):
        mesh.make_mesh(24, among=chips(2))
    with pytest.raises(ValueError, match="33 devices requested, 32 available"):
        mesh.make_mesh(33, among=chips(2))


def test_nodes_of_gpus_are_no_slices():
    gpus = [Chip(number, number // 4, (0, 0, 0), "gpu", "H100") for number in range(8)]
    assert len(mesh._slices(gpus)) == 1


def test_among_given_devices():
    given = jax.devices()[2:6]
    made = mesh.make_mesh(fsdp=2, among=given)
    assert made.shape == {"data": 2, "fsdp": 2}
    np.testing.assert_array_equal(made.devices, np.array(given).reshape(2, 2))
    assert mesh.make_mesh(2, among=given).devices.flatten().tolist() == given[:2]
