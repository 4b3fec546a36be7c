"""What all tests use: the modules on the path, the golden figures of the reference, and a random generator."""
import os
import sys

import numpy as np
import pytest

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")       # as bmn.machine.device, which programs import before torch
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHARED = os.environ.get("BMN_SHARED", os.path.join(os.path.dirname(ROOT), "shared"))
FOLDERS = (ROOT, os.path.join(ROOT, "tools"), os.path.dirname(os.path.abspath(__file__)))
for _folder in FOLDERS:
    if _folder not in sys.path:
        sys.path.insert(0, _folder)


def pytest_configure(config):
    """A warning about our own code is an error: what is deprecated today does not run tomorrow."""
    ours = [name[:-len(".py")] for folder in FOLDERS for name in sorted(os.listdir(folder)) if name.endswith(".py")]
    config.addinivalue_line("filterwarnings", r"error:::(bmn|test_\w+|%s)(\.|$)" % "|".join(ours))
    config.addinivalue_line("filterwarnings", "ignore::ResourceWarning")
    # Where we fork beside threads (the guard of bmn/machine/peers.py, fuzz.py), it is by choice.
    config.addinivalue_line("filterwarnings", "ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(scope="session")
def root():
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared():
    """The folder of golden figures and real annotations. A test that needs it is skipped where it is missing.

    Under BMN_REQUIRE_GOLDEN=1 (the project's CI) a missing folder is a failure, not a skip.
    """
    if not os.path.isdir(os.path.join(SHARED, "golden")):
        if os.environ.get("BMN_REQUIRE_GOLDEN") == "1":
            pytest.fail("no golden figures at %s (BMN_SHARED)" % SHARED)
        pytest.skip("needs the reference's figures: no folder %s (BMN_SHARED gives another)" % SHARED)
    return SHARED


@pytest.fixture(scope="session")
def golden(shared):
    """golden("model_t100.npz") -> the arrays of that file."""
    def load(name):
        return np.load(os.path.join(shared, "golden", name), allow_pickle=False)
    return load


@pytest.fixture
def rng():
    """A seeded random generator: a failing random case fails again."""
    return np.random.RandomState(20190722)      # the day the paper came out
