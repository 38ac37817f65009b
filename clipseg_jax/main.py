"""Runs a recipe: python -m clipseg_jax.main --config=configs/voc_maskclip.py --workdir=DIR

A recipe is a list of named stages. Each leaves its result and a small record in the work directory;
run again, finished stages are skipped and an interrupted one goes on. `--config.stages=evaluate,`
picks some. Any value of the config can be set the same way.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from clipseg_jax.core import processes
from clipseg_jax.core.command import exit_code
from clipseg_jax.core.files import check_writable, write_json
from clipseg_jax.methods.clip_es import recipe as clip_es
from clipseg_jax.methods.clip_rc import recipe as clip_rc
from clipseg_jax.methods.maskclip import recipe as maskclip
from clipseg_jax.methods.maskclip_plus import recipe as maskclip_plus
from clipseg_jax.methods.reclip import recipe as reclip
from clipseg_jax.methods.weclip import recipe as weclip

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe.", lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of all results. Default: workdir/<name of the config file>."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes; which, Slurm, a TPU pod or Open MPI tells."
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, of several.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many there are, with --coordinator.")
_PROCESS = flags.DEFINE_integer("process", None, "Which this is, from 0, with --coordinator.")

# A method's stages: name -> function(config, workdir), in the order of `config.stages`.
Stage = Callable[[ConfigDict, Path], dict]
METHODS: dict[str, Mapping[str, Stage]] = {
    "maskclip": maskclip.STAGES,
    "maskclip_plus": maskclip_plus.STAGES,
    "reclip": reclip.STAGES,
    "clip_es": clip_es.STAGES,
    "weclip": weclip.STAGES,
    "clip_rc": clip_rc.STAGES,
}

# Values that change how fast or how much is done, and in what files it is kept, but not what a
# stage computes.
_FREE = {
    "stages", "tags.batch_size", "train.devices", "train.fsdp", "train.log_every_steps",
    "train.checkpoint_every_steps", "train.keep_checkpoints", "evaluate.batch_size",
    "evaluate.devices", "evaluate.max_buckets", "evaluate.predictions", "evaluate.palette",
    "evaluate.published_metric",
    "cams.batch_size", "cams.devices", "cams.max_buckets", "masks.batch_size", "masks.devices",
    "masks.max_buckets",
}  # fmt: skip


def run(config: ConfigDict, workdir: Path) -> dict[str, dict]:
    """Runs the config's stages; returns each stage's record, also of those skipped.

    Raises:
      ValueError: unknown method or stage, or a work directory that holds another recipe's results.
    """
    if config.method not in METHODS:
        raise ValueError(f"unknown method {config.method!r}; choose one of {sorted(METHODS)}")
    stages = METHODS[config.method]
    if unknown := [name for name in config.stages if name not in stages]:
        raise ValueError(f"unknown stages {unknown}; {config.method} has {list(stages)}")
    main_process = jax.process_index() == 0
    if main_process:
        check_writable(workdir)
        _remember(config, workdir)
    processes.barrier("start")
    records = {}
    for name in config.stages:
        done = workdir / f"{name}.done.json"
        if processes.broadcast_from_main(done.exists()):
            records[name] = json.loads(done.read_text("utf-8"))
            shown = ", ".join(f"{k} {v}" for k, v in records[name].items() if k != "prompts")
            if main_process:
                print(f"stage {name}: done before ({shown}); delete {done} to repeat it")
            continue
        if main_process:
            print(f"stage {name}", flush=True)
        started = time.time()
        record = stages[name](config, workdir)
        records[name] = record | {"seconds": round(time.time() - started, 1)}
        if main_process:
            write_json(done, records[name])
        processes.barrier(name)
    return records


def _flat(config: dict, prefix: str = "") -> dict[str, object]:
    out: dict[str, object] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        out |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return out


def _remember(config: ConfigDict, workdir: Path) -> None:
    """Writes the resolved config, or checks that the work directory holds the same recipe."""
    path = workdir / "config.json"
    now = json.loads(json.dumps(config.to_dict()))
    if path.exists() and any(workdir.glob("*.done.json")):
        before, after = _flat(json.loads(path.read_text("utf-8"))), _flat(now)
        changed = sorted(
            key
            for key in before.keys() | after.keys()
            if key not in _FREE and before.get(key) != after.get(key)
        )
        if changed:
            listed = "; ".join(f"{k}: {before.get(k)!r} -> {after.get(k)!r}" for k in changed)
            raise ValueError(
                f"{workdir} holds results of another configuration ({listed}); choose another "
                "--workdir, or delete it"
            )
    write_json(path, now)


def _config_name() -> str:
    """ "voc_maskclip" of --config=configs/voc_maskclip.py; a config string becomes part of it."""
    path, _, string = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return "_".join(filter(None, [Path(path).stem, string.replace("/", "_")]))


def main(argv: list[str]) -> int:
    """Entry point of absl; user errors end in one line."""
    if len(argv) > 1:
        print(f"error: unexpected arguments {argv[1:]}", file=sys.stderr)
        return 2
    workdir = _WORKDIR.value or f"workdir/{_config_name()}"

    def work() -> None:
        told = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        if _DISTRIBUTED.value or any(value is not None for value in told):
            processes.initialize(*told)
        processes.exit_if_peer_lost(lambda: run(_CONFIG.value, Path(workdir)))

    return exit_code(work)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    logging.set_verbosity(logging.WARNING)
    app.run(main)
