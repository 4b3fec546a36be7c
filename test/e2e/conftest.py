"""Real processes on a small data set in the real layout."""
import contextlib
import os
import signal
import socket
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SMALL = ("--temporal_scale", "16", "--feat_dim", "8")


def free_port():
    """The number of a port that nobody uses, as text."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def torchrun(processes):
    """The arguments of Python that start ``processes`` processes of the script that follows.

    Not --standalone, which hangs on a machine that cannot look up its own name.
    """
    return ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_addr", "127.0.0.1",
            "--master_port", free_port()]


class Workshop:
    """A folder with data, where main.py and the tools are run as a user would run them.

    Attributes:
        folder: the working directory (pathlib.Path), with data/ in the default places.
    """

    def __init__(self, folder):
        self.folder = folder

    def run(self, script, *args, **environment):
        """Run a Python script of the project; returns the finished process with its output as text."""
        return subprocess.run([sys.executable, os.path.join(ROOT, script)] + [str(arg) for arg in args],
                              cwd=str(self.folder), env=self.environment(**environment), capture_output=True, text=True,
                              errors="surrogateescape", timeout=600, check=False)

    def main(self, *args, **environment):
        """Run main.py on the small configuration; an option in ``args`` replaces ours."""
        return self.run("main.py", "--device", "cpu", *SMALL, "--num_workers", "0", *args, **environment)

    @staticmethod
    def environment(**more):
        return dict(os.environ, OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1", **more)

    def text(self, path):
        return (self.folder / path).read_text()


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch, tmp_path):
    """After a test, also one that fails, no process is left that it has started, or that one of those has started."""
    mark = "BMN_TEST=%s" % tmp_path
    monkeypatch.setenv(*mark.split("=", 1))
    yield
    for pid in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else ()):
        with contextlib.suppress(OSError), open("/proc/%s/environ" % pid, "rb") as environ:
            if os.fsencode(mark) in environ.read().split(b"\0"):
                os.kill(int(pid), signal.SIGKILL)


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory):
    """A folder with data/ of 40 small videos: 24 for training, 12 for validation. Tests must not change it."""
    workshop = Workshop(tmp_path_factory.mktemp("sample"))
    made = workshop.run("tools/make_sample_data.py", "--output", "data", "--videos", 40, *SMALL)
    assert made.returncode == 0, made.stderr
    return workshop.folder / "data"


@pytest.fixture
def workshop(tmp_path, sample_data):
    """An empty working directory whose data/ is the shared sample."""
    (tmp_path / "data").symlink_to(sample_data)
    return Workshop(tmp_path)
