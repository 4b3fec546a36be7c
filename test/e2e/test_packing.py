"""Packing features by real processes: a killed one, two at once, a full disk, and a folder that is read-only."""
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import small_data

from bmn.data.packed_features import PackedFeatures, header_of

COUNT, T, C = 240, 20, 400
NAMES = ["v_%03d" % number for number in range(COUNT)]
OPEN = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from bmn.errors import run_as_program
from bmn.data.features import open_features
opt = json.loads(sys.argv[2])
run_as_program(lambda: print("AT", open_features(opt, ["v_%%03d" %% number for number in range(%d)]).path))
""" % COUNT
SLOWLY = """
import os, time
from bmn.data import features
read = features.FolderFeatures.read
def read_slowly(*args):
    while not os.path.exists(%r):
        time.sleep(0.05)
    time.sleep(float(open(%r).read() or 0))
    return read(*args)
features.FolderFeatures.read = read_slowly
"""


@pytest.fixture
def opt(tmp_path):
    opt = small_data.make(tmp_path, NAMES, (), 2, C)
    folder = os.path.join(opt["data_path"], "csv_mean_%d" % T)
    for name in NAMES:
        small_data.write_csv(os.path.join(folder, name + ".csv"), small_data.table(name, T, C))
    return dict(opt, temporal_scale=T)


def start(root, opt, gate=os.devnull, **how):
    """A process that opens the features; it reads no file before ``gate`` exists, which may say how long each takes."""
    script = OPEN.replace("opt =", SLOWLY % (gate, gate) + "\nopt =", 1)
    return subprocess.Popen([sys.executable, "-c", script, root, json.dumps(opt)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **how)


def finished(process):
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


def packed_path(opt):
    return os.path.join(opt["data_path"], "csv_mean_%d.float32.safetensors" % T)


def temporaries(opt):
    return [name for name in os.listdir(opt["data_path"]) if name.endswith(".tmp")]


def assert_packed_right(opt, path=None):
    packed = PackedFeatures(path or packed_path(opt), T, C)
    for name in NAMES:
        np.testing.assert_array_equal(packed.read(name), small_data.table(name, T, C).T.astype(np.float32))


def until(condition, seconds=300):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(0.02)


def children(pid):
    with open("/proc/%d/task/%d/children" % (pid, pid)) as handle:
        return [int(child) for child in handle.read().split()]


def alive(pid):
    try:
        with open("/proc/%d/stat" % pid) as handle:
            return handle.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_packing_starts_again_after_a_kill(root, opt, tmp_path):
    (tmp_path / "gate").write_text("5")         # ten minutes for each of two helpers
    process = start(root, opt, str(tmp_path / "gate"))
    until(lambda: temporaries(opt) and len(children(process.pid)) > 1)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()          # communicate() would wait for the helpers, which have its pipes
    until(lambda: not any(map(alive, workers)))             # its helpers end with it
    process.communicate()
    assert not os.path.exists(packed_path(opt)) and temporaries(opt)
    finished(start(root, opt))
    assert_packed_right(opt)
    assert not temporaries(opt)


def test_of_two_at_once_one_packs_and_the_other_waits(root, opt, tmp_path):
    first = start(root, opt, str(tmp_path / "gate"))
    until(lambda: temporaries(opt))
    second = start(root, opt)
    assert "waiting for it" in second.stdout.readline()
    (tmp_path / "gate").touch()
    outputs = [finished(process) for process in (first, second)]
    assert [output.count("packing the features") for output in outputs] == [1, 0]
    assert_packed_right(opt)


def test_a_full_disk_is_reported(root, opt):
    """Files may not grow beyond 1 MB, as on a full disk; the packed file would have 8."""
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    process = start(root, opt, preexec_fn=limited)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "trying" in out and "Traceback" not in err
    assert err.startswith("error: ") and "File too large" in err and "--feature_cache" in err and err.count("\n") == 1
    assert not os.path.exists(packed_path(opt)) and not temporaries(opt)
    assert "v_000" in open_without_cache(opt)


def open_without_cache(opt):
    from bmn.data.features import open_features
    return open_features(dict(opt, feature_cache="off"), NAMES)


def as_anybody():
    """Give up the right of root to write anywhere, for the program that is about to start."""
    if os.getuid() == 0:
        libc = ctypes.CDLL(None)
        for capability in (1, 2):           # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            libc.prctl(24, capability)      # PR_CAPBSET_DROP


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses prctl")
def test_the_output_folder_is_used_when_the_data_folder_is_read_only(root, opt, tmp_path):
    os.chmod(opt["data_path"], 0o555)
    try:
        out = finished(start(root, opt, preexec_fn=as_anybody))
    finally:
        os.chmod(opt["data_path"], 0o755)
    assert "Permission denied, trying %s" % (tmp_path / "output") in out
    path = out.split("AT ")[1].strip()
    assert path.startswith(str(tmp_path / "output" / "feature_cache"))
    assert_packed_right(opt, path)


def test_memory_stays_flat(root, tmp_path):
    """A packed file of 400 MB is read four times; no more than a window of it ever counts as memory."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("reads /proc/self/status")
    sources = {"v_%04d" % number: [0, 0] for number in range(2500)}
    with open(str(tmp_path / "big.safetensors"), "wb") as handle:
        handle.write(header_of(sources, 100, 400, "float32"))
        handle.truncate(handle.tell() + 2500 * 160000)          # zeros that take no room
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from bmn.data.packed_features import PackedFeatures

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1024

packed = PackedFeatures(sys.argv[2], 100, 400)
sizes = [resident()]
for epoch in range(4):
    for number in range(2500):
        packed.read("v_%04d" % number)
        if number % 250 == 0:
            sizes.append(resident())
print(max(sizes) - sizes[0], max(sizes[20:]) - max(sizes[:20]))
"""
    out = subprocess.check_output([sys.executable, "-c", script, root, str(tmp_path / "big.safetensors")])
    growth, later = map(float, out.split())
    assert growth < 60 and later < 5
