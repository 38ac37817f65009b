"""Learning-rate schedules, parameter groups and optimisers, configured by plain values."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from clipseg_jax.core.checks import check_number, check_whole


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters whose dotted path contains a match of the regular expression `pattern`.

    Of several matching groups the first applies.
    """

    pattern: str
    rate: float = 1.0  # factor of the schedule's learning rate
    weight_decay: float | None = None  # None: that of the optimiser

    def __post_init__(self) -> None:
        check_number("rate", self.rate, 0)
        if self.weight_decay is not None:
            check_number("weight_decay", self.weight_decay, 0)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """An optimiser and its learning-rate schedule; defaults of ReCLIP (spec reclip, section 13)."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    power: float = 0.9  # of the poly schedule
    end_learning_rate: float = 0.0  # last value of the poly schedule
    min_learning_rate: float = 0.0  # lower bound
    # Length of the schedule; 0: that of the run. ReCLIP's 2025 revision stops before its end.
    schedule_steps: int = 0
    # Steps between changes of the learning rate; 1: it changes at each. Published: one epoch.
    hold_steps: int = 1
    warmup_steps: int = 0
    warmup_ratio: float = 1e-6  # factor at step 0; grows linearly to 1
    # During warm-up the factor scales the schedule, or if True `learning_rate` itself (WeCLIP). In
    # both cases the schedule starts at step 0.
    warmup_alone: bool = False
    momentum: float = 0.9  # SGD
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW
    eps: float = 1e-8
    weight_decay: float = 5e-4
    clip_norm: float = 0.0  # largest global norm of a gradient; 0: no limit
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        rates = ("learning_rate", "end_learning_rate", "min_learning_rate", "warmup_ratio")
        for name in (*rates, "power", "weight_decay", "clip_norm", "eps"):
            check_number(name, getattr(self, name), 0)
        for name in ("schedule_steps", "warmup_steps"):
            check_whole(name, getattr(self, name), least=0)
        check_whole("hold_steps", self.hold_steps)
        for name, decay in (("momentum", self.momentum), *(("betas", beta) for beta in self.betas)):
            check_number(name, decay, 0, 1)


def scaled_learning_rate(rate: float, batch: int, new_batch: int, optimiser: str) -> float:
    """The learning rate for another batch than the one that `rate` was chosen for.

    SGD's grows with the batch, as one step then takes the place of several: ReCLIP's authors do so
    (Goyal et al. 2017). AdamW's grows with its square root: it divides by the gradient's size, of
    whose noise a mean of more images has less (Malladi et al. 2022).
    """
    factor = new_batch / batch
    return rate * (factor if optimiser == "sgd" else factor**0.5)


def learning_rate(cfg: OptimConfig, total_steps: int) -> optax.Schedule:
    """The schedule: number of completed updates -> learning rate.

    Raises:
      ValueError: an unknown schedule.
    """
    if cfg.schedule not in ("poly", "cosine", "constant"):
        raise ValueError(f"unknown schedule {cfg.schedule!r}; choose poly, cosine or constant")
    length = cfg.schedule_steps or total_steps
    end = cfg.end_learning_rate if cfg.schedule == "poly" else 0.0

    def schedule(step: Any) -> Any:
        held = (step // cfg.hold_steps) * cfg.hold_steps
        share = jnp.clip(held / length, 0.0, 1.0)
        if cfg.schedule == "poly":
            # 1 - share would lose precision towards the end.
            factor = jnp.clip((length - held) / length, 0.0, 1.0) ** cfg.power
        elif cfg.schedule == "cosine":
            factor = 0.5 * (1.0 + jnp.cos(jnp.pi * share))
        else:
            factor = jnp.ones_like(share)
        value = (cfg.learning_rate - end) * factor + end
        value = jnp.maximum(value, cfg.min_learning_rate)
        if cfg.warmup_steps:
            done = jnp.minimum(step / cfg.warmup_steps, 1.0)
            warm = cfg.warmup_ratio + (1.0 - cfg.warmup_ratio) * done
            if cfg.warmup_alone:
                return jnp.where(step < cfg.warmup_steps, cfg.learning_rate * warm, value)
            value = value * warm
        return value

    return schedule


def optimizer(cfg: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """SGD or AdamW with PyTorch's semantics.

    SGD adds the weight decay to the gradient, without dampening; AdamW decouples it. Groups differ
    in learning rate and weight decay; gradients are clipped by their norm over all groups.

    Raises:
      ValueError: an unknown optimiser or schedule.
    """
    if cfg.name not in ("sgd", "adamw"):
        raise ValueError(f"unknown optimiser {cfg.name!r}; choose sgd or adamw")
    schedule = learning_rate(cfg, total_steps)

    def one(group: Group) -> optax.GradientTransformation:
        decay = cfg.weight_decay if group.weight_decay is None else group.weight_decay
        if cfg.name == "sgd":
            steps = [optax.add_decayed_weights(decay), optax.trace(cfg.momentum)]
        else:
            steps = [
                optax.scale_by_adam(*cfg.betas, eps=cfg.eps),
                optax.add_decayed_weights(decay),
            ]
        return optax.chain(
            *steps, optax.scale_by_learning_rate(lambda step: group.rate * schedule(step))
        )

    groups = (*cfg.groups, Group(""))
    parts = {str(i): one(group) for i, group in enumerate(groups)}

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: _group(path, groups), params)

    grouped = optax.partition(parts, labels) if cfg.groups else parts["0"]
    clip = [optax.clip_by_global_norm(cfg.clip_norm)] if cfg.clip_norm else []
    return optax.chain(*clip, grouped)


def _group(path: tuple, groups: tuple[Group, ...]) -> str:
    dotted = ".".join(str(getattr(part, "key", part)) for part in path)
    return str(next(i for i, group in enumerate(groups) if re.search(group.pattern, dotted)))
