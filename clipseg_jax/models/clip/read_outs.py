"""Ways to read the last block of CLIP's ViT at every position: one value for each paper.

Sources: MaskCLIP (Zhou et al. 2022), SCLIP (Wang et al. 2024), NACLIP (Hajimiri et al. 2025),
ClearCLIP (Lan et al. 2024), SC-CLIP (Bai et al. 2025), ResCLIP (Yang et al. 2025). Spec readouts,
sections 1, 3 to 5 and 13.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

from clipseg_jax.core.checks import check_choice, check_number

# The projections whose products are the attention scores. "norm" has no similarity: the map of
# neighbours alone, times the mean of |q_i| |k_j| / sqrt(d) over heads and pairs (an ablation).
Scores = Literal["qk", "qq", "kk", "norm"]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """SC-CLIP's steps around the last block (spec readouts, section 4).

    Blocks are counted from 1 and are those of 12; in deeper or shallower towers, of which nothing
    is published, they are in proportion.
    """

    similarity: int = 9  # block whose outputs tell which patches are alike
    aggregate: int = 4  # block whose outputs tell over which patches the result is averaged
    fused: tuple[int, int] = (4, 10)  # first and last of the blocks of the second pass
    threshold: float = 0.4  # cosine from which on patches are averaged
    sharpen: float = 3.0  # factor of cosines above their mean, before the softmax
    class_share: float = 0.3  # of the class token, added to every patch
    neighbours: int = 30  # of a patch, in the outlier score
    outliers: float = 0.05  # share of patches that count as outliers

    def fused_indices(self, layers: int) -> range:
        """Indices of the blocks of the second pass in a tower of `layers` blocks."""
        first, last = (block_index(block, layers) for block in self.fused)
        return range(first, last + 1)

    def indices(self, layers: int) -> set[int]:
        """Indices of all blocks that are read in a tower of `layers` blocks."""
        single = (block_index(block, layers) for block in (self.similarity, self.aggregate))
        return {*single, *self.fused_indices(layers)}


@dataclasses.dataclass(frozen=True)
class ReadOut:
    """How the last block of a ViT attends (spec readouts, section 13).

    Raises:
      ValueError: a value that would have no effect, or no meaning.
    """

    # The attention map is the mean of one softmax for each, times `gain`; (): each token attends to
    # itself.
    scores: tuple[Scores, ...] = ()
    gain: float = 1.0  # sum of a row of the map
    # Standard deviation in patches of a Gaussian of the distance of two patches, which is added to
    # their scores; 0: off.
    neighbours: float = 0.0
    # Share of the ordinary attention of `cross_blocks` (counted as in `Calibration`) in the map.
    cross: float = 0.0
    cross_blocks: tuple[int, ...] = ()
    residual: bool = True  # add the input of the block
    mlp: bool = True  # apply the perceptron of the block
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        for name in self.scores:
            check_choice("scores", name, get_args(Scores))
        check_number("gain", self.gain, 0, above=True)
        check_number("neighbours", self.neighbours, 0)
        check_number("cross", self.cross, 0, 1)
        if self.cross and not self.cross_blocks:
            raise ValueError(f"cross is {self.cross} of no block; give cross_blocks, or cross=0")
        if not self.attends and (self.neighbours or self.cross):
            raise ValueError(
                "neighbours and cross belong to an attention of scores alone; give scores and no "
                "calibration, or leave both 0"
            )
        if self.calibration is not None and (self.residual or self.mlp):
            raise ValueError("a calibration has neither residual nor mlp; set both to False")

    @property
    def attends(self) -> bool:
        """Whether the scores alone make the map, so that what changes scores has an effect."""
        return bool(self.scores) and self.calibration is None

    def cross_indices(self, layers: int) -> list[int]:
        """Indices of `cross_blocks` in a tower of `layers` blocks."""
        return sorted({block_index(block, layers) for block in self.cross_blocks})


VALUE = ReadOut()  # of MaskCLIP and TagCLIP
CLIP_BLOCK = ReadOut(("qk",))  # of CLIP itself
_ATTENTION = ReadOut(residual=False, mlp=False)

READ_OUTS: Mapping[str, ReadOut] = {
    "value": VALUE,
    "clip": CLIP_BLOCK,
    "sclip": ReadOut(("qq", "kk"), gain=2.0),
    "naclip": dataclasses.replace(_ATTENTION, scores=("kk",), neighbours=5.0),
    "clearclip": dataclasses.replace(_ATTENTION, scores=("qq",)),
    "scclip": dataclasses.replace(_ATTENTION, scores=("kk",), calibration=Calibration()),
    # Residual cross-correlation alone; its costly feedback: `methods/readouts/feedback.py`.
    "resclip": dataclasses.replace(
        _ATTENTION,
        scores=("kk",),
        gain=2.0,
        neighbours=5.0,
        cross=0.3,
        cross_blocks=(6, 7, 8, 9),
    ),
}


def read_out(name: str) -> ReadOut:
    """The read-out of a paper.

    Raises:
      ValueError: an unknown name; the message lists all.
    """
    check_choice("read-out", name, tuple(READ_OUTS))
    return READ_OUTS[name]


def block_index(block: int, layers: int) -> int:
    """The block, counted from 0, of a tower of `layers` that is block `block` of 12, from 1.

    The last block is never one of them: its attention is what a read-out replaces.
    """
    return min(max(round(block * layers / 12), 1), layers - 1) - 1
