"""What a recipe ran with: runs.jsonl, a line for each start in a work directory."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from clipseg_jax.core import processes
from clipseg_jax.core.json_lines import read_lines, write_lines

RUNS = "runs.jsonl"
_KEPT = 100  # the newest
_PACKAGES = (
    *("clipseg_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow"),
    *("opencv-python-headless", "tensorflow-cpu", "tensorflow"),
)


def append_run(workdir: Path, recipe: str) -> None:
    """Adds this start of `recipe`, such as "voc_reclippp:2025"; "": one without a name."""
    earlier = read_lines(workdir / RUNS, started=str)
    write_lines(workdir / RUNS, [*earlier[-_KEPT + 1 :], _this_run(recipe)])


def _this_run(recipe: str) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC)
    return {
        "started": now.isoformat(timespec="seconds"),
        "recipe": recipe,
        "devices": processes.describe(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {_processor()}",
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _processor() -> str:
    """The machine's processor and its cores, as far as the system says."""
    name = platform.processor()
    with contextlib.suppress(OSError):  # but on Linux
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
        name = found[1].strip() if found else name
    return ", ".join(filter(None, (name, f"{os.cpu_count()} cores")))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
