"""Eight fake CPU devices, full float32 products, and a compile cache shared by all test runs."""

import ctypes
import gc
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# A shell that starts the tests in the background has them ignore Ctrl-C, which some of them send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if sys.platform == "linux":
    # Arrays of a megabyte and more go back to the system when they are freed; left to itself,
    # glibc soon keeps those of up to 32 MB, in pieces, and a test process grows to many gigabytes.
    ctypes.CDLL(None).mallopt(-3, 2**20)  # M_MMAP_THRESHOLD

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(autouse=True)
def freed_memory(request):
    """Models refer to themselves in cycles; full-size ones must not wait for the collector."""
    yield
    if {"parity", "weights_convert", "models", "methods"} & set(request.node.path.parts):
        gc.collect()


@pytest.fixture(autouse=True, scope="module")
def freed_programs():
    """Compiled programs hold memory until the process ends; the next module needs others."""
    yield
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":  # what was freed goes back to the system, for the other worker
        ctypes.CDLL(None).malloc_trim(0)


def pytest_collection_finish():
    """What thousands of tests and their modules are made of stays; to go through it takes 0.5 s."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also the tests marked `long`")
    parser.addoption(
        "--goldens",
        type=Path,
        default=ROOT / "tests" / "golden",
        help="folder with one folder of cases (<case>.json, <case>.npz) for each system",
    )


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: `make test-long`"))
