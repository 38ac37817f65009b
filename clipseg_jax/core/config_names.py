"""Names of config values in earlier versions, and what they are called now."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# Values whose names changed, by their full names.
_VALUES = {
    "maskclip.pd_thresh": "maskclip.pd_threshold",
    "maskclip.ks_thresh": "maskclip.ks_threshold",
    "inference.background_thresh": "inference.background_threshold",
    "cams.balance_rounds": "cams.sinkhorn_iterations",
    "cams.spread_steps": "cams.propagation_steps",
    "masks.confidence": "masks.confidence_threshold",
    "clip_rc.rounds": "clip_rc.decoder_blocks",
    "student.trained": "student.trained_weights",
    "student.backbone": "student.init_weights",
    "student.weights": "student.init_weights",
    "student.head_rate": "student.head_learning_rate_factor",
    "fit.trained": "head.trained_weights",
    "fit.validate_every_steps": "head.evaluate_every_steps",
    "fit.use": "head.checkpoint",
    "learn.weights": "clip_rc.trained_weights",
    "learn.start": "clip_rc.init_weights",
    "rectify.weights": "rectifier.trained_weights",
    "rectify.use": "rectifier.checkpoint",
    "rectify.epochs": "rectifier.total_epochs",
    "distill.weights": "student.trained_weights",
    "distill.backbone": "student.init_weights",
    "distill.use": "student.checkpoint",
    "distill.epochs": "student.total_epochs",
    "clip_rc.remat": "run.remat",
    "cams.write_npy": "run.write_npy",
    "tags.batch_size": "run.crops_at_once",
    "tags.crops_at_once": "run.crops_at_once",
    # One length for each trained network; the shortest counted.
    "train.steps": "NETWORK.total_steps",
}
_VALUES |= {f"{section}.devices": "run.devices" for section in ("train", "evaluate")}
_VALUES |= {
    f"{section}.{name}": f"run.{name}"
    for section in ("cams", "masks")
    for name in ("devices", "batch_size", "max_buckets")
}
_VALUES |= {
    f"train.{name}": f"run.{name}"
    for name in ("fsdp", "log_every_steps", "checkpoint_every_steps", "keep_checkpoints")
}
_VALUES |= {
    f"evaluate.{name}": f"run.{name}"
    for name in ("batch_size", "max_buckets", "pictures", "opacity", "predictions", "palette")
}
# Sections whose other values kept their names.
_SECTIONS = {
    "fit": "head",
    "learn": "clip_rc",
    "task": "clip_rc",
    "rectify": "rectifier",
    "distill": "student",
}
_RATES = {
    "rate": "learning_rate",
    "end_rate": "end_learning_rate",
    "least_rate": "min_learning_rate",
}


def new_name(name: str) -> str:
    """What the config value `name`, such as "fit.total_steps", is called now."""
    if name in _VALUES:
        return _VALUES[name]
    section, _, rest = name.partition(".")
    if rest:
        rest = re.sub(r"^optim\.(\w+)$", lambda m: f"optim.{_RATES.get(m[1], m[1])}", rest)
        return f"{_SECTIONS.get(section, section)}.{rest}"
    return name


def with_new_names(values: Mapping[str, object]) -> dict[str, object]:
    """Flat values of an earlier version under the names of this one; free ones are left out."""
    named = {new_name(name): value for name, value in values.items()}
    return {name: value for name, value in named.items() if not is_free(name)}


def is_free(name: str) -> bool:
    """Whether the value changes no result: all in `run`, and which stages run."""
    return name == "stages" or name.startswith("run.")


def check_arguments(arguments: Iterable[str], names: Iterable[str] = ()) -> None:
    """Refuses old names on a command line.

    Args:
      arguments: the command line.
      names: the full names of the recipe's values, of which NETWORK in a new name chooses.

    Raises:
      ValueError: an old name; the message has the new one.
    """
    for argument in arguments:
        match = re.match(r"--?config\.([\w.]+)", argument)
        if match and (new := new_name(match[1])) != match[1]:
            pattern = re.compile(re.escape(new).replace("NETWORK", r"\w+"))
            now = [name for name in names if pattern.fullmatch(name)] or [new]
            shown = " or ".join(f"--config.{name}" for name in now)
            raise ValueError(f"--config.{match[1]} is called {shown} now")
