"""Learning-rate schedules, parameter groups and optimisers, configured by plain values."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters whose dotted path contains a match of the regular expression `pattern`.

    Of several matching groups the first applies.
    """

    pattern: str
    rate: float = 1.0  # times the schedule's
    weight_decay: float | None = None  # None: the optimiser's


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """An optimiser and its learning rate. Defaults are ReCLIP's (spec reclip, section 13)."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    power: float = 0.9  # of the poly schedule
    end_learning_rate: float = 0.0  # what the poly schedule falls to
    min_learning_rate: float = 0.0  # the rate never falls below it
    # The schedule's own length; 0: the run's. The 2025 state of ReCLIP stops earlier than it ends.
    schedule_steps: int = 0
    # The rate changes once every so many steps (published: once an epoch); 1: at each.
    hold_steps: int = 1
    warmup_steps: int = 0
    warmup_ratio: float = 1e-6  # rate at step 0, as a share of the schedule's
    # False: the schedule's rate, scaled. True: `learning_rate` itself, scaled; the schedule
    # counts only after the warm-up, though it has run since step 0 (WeCLIP).
    warmup_alone: bool = False
    momentum: float = 0.9  # SGD
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW
    eps: float = 1e-8
    weight_decay: float = 5e-4
    clip_norm: float = 0.0  # largest global norm of a gradient; 0: no limit
    groups: tuple[Group, ...] = ()


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
        now = (cfg.learning_rate - end) * factor + end
        now = jnp.maximum(now, cfg.min_learning_rate)
        if cfg.warmup_steps:
            done = jnp.minimum(step / cfg.warmup_steps, 1.0)
            warm = cfg.warmup_ratio + (1.0 - cfg.warmup_ratio) * done
            if cfg.warmup_alone:
                return jnp.where(step < cfg.warmup_steps, cfg.learning_rate * warm, now)
            now = now * warm
        return now

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
