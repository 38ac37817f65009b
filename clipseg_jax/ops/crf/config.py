"""Parameters of dense CRFs, and the values that published programs use."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

Compatibility = float | tuple[float, ...] | tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class CRFConfig:
    """Parameters of a dense CRF, named as in Kraehenbuehl and Koltun 2011 (in pydensecrf: [name]).

    The pairwise term is the sum of two normalised Gaussian kernels over pixels i, j with positions
    p (pixels) and colours I (pixel values), each times its compatibility:

        smoothness  exp(-|p_i - p_j|^2 / 2 theta_gamma^2)                                   w2
        appearance  exp(-|p_i - p_j|^2 / 2 theta_alpha^2 - |I_i - I_j|^2 / 2 theta_beta^2)  w1

    A compatibility w is a number (Potts model: positive values attract similar pixels to one
    label), a vector over labels or a matrix between labels, which is symmetrised. Vectors and
    matrices multiply the filtered marginals unchanged, so negative entries attract, as in
    pydensecrf. Spec densecrf, sections 3, 6 and 7.

    Raises:
      ValueError: a value outside its range; the message names it.
    """

    theta_gamma: float | tuple[float, float] = 3.0  # pixels; (x, y) or one number [Gaussian sxy]
    w2: Compatibility = 3.0  # [Gaussian compat]
    theta_alpha: float | tuple[float, float] = 80.0  # pixels [bilateral sxy]
    theta_beta: float | tuple[float, float, float] = 13.0  # pixel values, per channel [srgb]
    w1: Compatibility = 10.0  # [bilateral compat]
    iterations: int = 10  # mean-field updates; there is no stopping criterion
    # "lattice" is approximate and used by all published results; "exact" costs O(pixels^2).
    filter: Literal["lattice", "exact"] = "lattice"
    # The side of each kernel that is divided by its sums; symmetric: both, by their square root
    # [normalization].
    normalisation: Literal["symmetric", "before", "after", "none"] = "symmetric"
    # Positions as (row, column) [create_pairwise_*] rather than (x, y) [DenseCRF2D]. The lattice
    # is not symmetric in its axes: 0.05 to 0.15 % of a photo's labels differ.
    rows_first: bool = False

    def __post_init__(self) -> None:
        for name, length in (("theta_gamma", 2), ("theta_alpha", 2), ("theta_beta", 3)):
            value = np.asarray(getattr(self, name), float)
            if value.shape not in ((), (length,)) or not np.all(value > 0):
                raise ValueError(
                    f"{name} {getattr(self, name)} must be a positive number or {length} of them"
                )
        for name in ("w1", "w2"):
            shape = np.shape(getattr(self, name))
            if len(shape) > 2 or (len(shape) == 2 and shape[0] != shape[1]):
                raise ValueError(f"{name} of shape {shape} must be a number, (c,) or (c, c)")
        if self.iterations < 0:
            raise ValueError(f"iterations {self.iterations} must be at least 0")
        if self.filter not in ("lattice", "exact"):
            raise ValueError(f'filter {self.filter!r} must be "lattice" or "exact"')
        if self.normalisation not in ("symmetric", "before", "after", "none"):
            raise ValueError(
                f'normalisation {self.normalisation!r} must be "symmetric", "before", "after" or '
                '"none"'
            )

    def replace(self, **changes: object) -> CRFConfig:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def at_scale(self, factor: float) -> CRFConfig:
        """For images downsampled by `factor`: theta_gamma and theta_alpha divided by it."""
        gamma, alpha = (np.asarray(t, float) / factor for t in (self.theta_gamma, self.theta_alpha))
        return self.replace(theta_gamma=_plain(gamma), theta_alpha=_plain(alpha))


def _plain(value: np.ndarray) -> float | tuple[float, ...]:
    listed = value.tolist()
    return tuple(listed) if isinstance(listed, list) else listed


# Spec densecrf, section 8. For the image and unary that belong to each see there and `unary.py`.
CLIP_ES = CRFConfig(theta_gamma=1, w2=3, theta_alpha=67, theta_beta=3, w1=4)  # TagCLIP masks too
DEEPLAB = CLIP_ES  # deeplab-pytorch
WECLIP_TEST = CRFConfig(theta_gamma=3, w2=3, theta_alpha=64, theta_beta=5, w1=4)
WECLIP = CRFConfig(theta_gamma=3, w2=3, theta_alpha=80, theta_beta=13, w1=10)
WECLIP_LABEL = CRFConfig(theta_gamma=3, w2=3, theta_alpha=50, theta_beta=5, w1=10)
UPSTREAM = WECLIP.replace(iterations=5)  # pydensecrf's example
