"""Every test here runs once for each case in its module's folder of goldens."""

import pytest

from tests.parity import cases


def pytest_generate_tests(metafunc):
    """Finds the cases of `FOLDER`; `ONLY`, `NOT_HERE`, `SLOW`, `LONG` go by a stem's start."""
    if "path" not in metafunc.fixturenames:  # a test of a whole folder
        return
    module = metafunc.module
    left_out, slow = getattr(module, "NOT_HERE", ()), getattr(module, "SLOW", ())
    only = getattr(module, "ONLY", ("",))
    found = cases.find(metafunc.config.getoption("goldens"), module.FOLDER)
    long = getattr(module, "LONG", ())

    def marks(stem):
        which = [pytest.mark.slow] * stem.startswith(slow)
        return which + [pytest.mark.long] * stem.startswith(long)

    chosen = [
        pytest.param(path, id=path.stem, marks=marks(path.stem))
        for path in found
        if path.stem.startswith(only) and not path.stem.startswith(left_out)
    ]
    metafunc.parametrize("path", chosen)


@pytest.fixture
def goldens(request):
    """The folder of goldens."""
    return request.config.getoption("goldens")
