"""Choosing a device: every way in which one can be absent, which card a rank gets, and what a Runtime does."""
import os
import subprocess
import sys
import types

import pytest
import torch

from bmn.errors import UserError
from bmn.machine import device
from bmn.machine.device import TORCH, card, choose, npu_problem
from bmn.machine.processes import Member
from bmn.options import with_defaults

HCCL_MISSING = "libhccl.so: cannot open shared object file: No such file or directory"
BROKEN = {      # content of torch_npu.py -> what the user must read
    "raise ImportError(%r)" % HCCL_MISSING: ("CANN", "libhccl.so", "set_env.sh"),
    "raise ImportError('/x/libtorch_npu.so: undefined symbol: _ZN2at4_ops')": ("another PyTorch", torch.__version__),
    "import sys; sys.exit()": ("CANN", "set_env.sh"),
    "import no_such_module_anywhere": ("no_such_module_anywhere",),
    "raise RuntimeError('first\\nsecond')": ("(first)",),
    "raise RuntimeError()": ("RuntimeError",),
}


@pytest.fixture
def install(monkeypatch, tmp_path):
    """install(text): from now on ``import torch_npu`` runs that text."""
    def put(text):
        (tmp_path / "torch_npu.py").write_text(text)
        monkeypatch.delitem(sys.modules, "torch_npu", raising=False)
        monkeypatch.syspath_prepend(str(tmp_path))
    yield put
    sys.modules.pop("torch_npu", None)


def has_npus(monkeypatch, count, available=True):
    monkeypatch.setattr(torch, "npu", types.SimpleNamespace(is_available=lambda: available,
                                                            device_count=lambda: count), raising=False)


@pytest.mark.parametrize("text", list(BROKEN))
def test_a_broken_torch_npu_is_reported_in_one_sentence(install, text):
    install(text)
    problem = npu_problem()
    assert "\n" not in problem and all(word in problem for word in BROKEN[text])
    with pytest.raises(UserError, match="--device npu: "):
        choose("npu")
    kind, why = choose("auto")
    assert kind in ("cuda", "cpu") and "no npu: " + problem in why


def test_a_missing_torch_npu_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_npu", None)         # as if it were not installed
    monkeypatch.delitem(sys.modules, "torch_npu")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "simulated_npu" not in path])
    monkeypatch.delattr(torch, "npu", raising=False)
    assert npu_problem() == "torch_npu is not installed"


def test_ascends_pytorch_1_5_needs_no_torch_npu(monkeypatch):
    has_npus(monkeypatch, 8)
    assert npu_problem() is None and choose("auto") == ("npu", "")


def test_a_missing_npu_is_reported(install, monkeypatch):
    install("")
    has_npus(monkeypatch, 0)
    assert npu_problem() == "torch_npu sees no device"
    has_npus(monkeypatch, 1, available=False)
    assert npu_problem() == "torch_npu sees no device"
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "9")
    assert npu_problem() == "torch_npu sees no device (ASCEND_RT_VISIBLE_DEVICES=9)"
    has_npus(monkeypatch, 1)
    assert npu_problem() is None


@pytest.mark.skipif(TORCH < (2, 5), reason="PyTorch before 2.5 loads no backend by itself")
def test_a_broken_torch_npu_does_not_kill_import_torch(tmp_path, root):
    (tmp_path / "torch_npu.py").write_text("raise ImportError(%r)" % HCCL_MISSING)
    about = tmp_path / "torch_npu-2.13.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 2.13.0\n")
    (about / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(tmp_path), root]))
    environment.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)

    def python(text):
        return subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True,
                              check=False)
    assert "Failed to load the backend extension" in python("import torch").stderr        # what bmn prevents
    kind = python("from bmn.machine import device; print(device.choose('auto'))")
    assert kind.returncode == 0 and "libhccl.so" in kind.stdout, kind.stderr


def test_a_missing_cuda_is_reported(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match="--device cuda: this PyTorch is built without CUDA; give --device auto or cpu"):
        choose("cuda")
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device.cuda_problem() == "PyTorch sees no CUDA device (CUDA_VISIBLE_DEVICES=)"


def test_auto_takes_the_first_device_that_is_there(monkeypatch, install):
    install(next(iter(BROKEN)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    kind, why = choose("auto")
    assert kind == "cuda" and why.startswith("no npu: ") and ";" not in why
    assert choose("cpu") == ("cpu", "")


def member(local_rank=0, world_size=1):
    return types.SimpleNamespace(rank=local_rank, local_rank=local_rank, world_size=world_size)


def test_each_rank_gets_its_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert card("cuda", "0", member()) == torch.device("cuda", 0)
    assert card("cuda", "3", member()).index == 3
    assert [card("cuda", "0", member(k, 8)).index for k in range(8)] == list(range(8))
    assert [card("cuda", "4,5, 6,7", member(k, 4)).index for k in range(4)] == [4, 5, 6, 7]
    assert [card("cuda", "0,0", member(k, 2)).index for k in range(2)] == [0, 0]
    assert card("cpu", "whatever", member(5, 8)) == torch.device("cpu")


def test_a_card_that_is_not_there_is_named(monkeypatch):
    has_npus(monkeypatch, 2)
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "4,5")
    with pytest.raises(UserError, match=r"card 2 \(--DeviceID 0, local rank 2\) is not there: 2 npu are visible "
                                        r"\(ASCEND_RT_VISIBLE_DEVICES=4,5\)"):
        card("npu", "0", member(2, 3))
    with pytest.raises(UserError, match="--DeviceID 1 leaves local rank 1 without a card"):
        card("npu", "1", member(1, 2))
    with pytest.raises(UserError, match="--DeviceID npu:0: give the number"):
        card("npu", "npu:0", member())


@pytest.fixture
def runtime():
    with device.setup(with_defaults({"device": "cpu"})) as one:
        yield one


def test_a_single_process_exchanges_with_itself(runtime, capsys):
    assert (runtime.kind, runtime.rank, runtime.world_size, runtime.is_main) == ("cpu", 0, 1, True)
    value = {"a": [1, 2]}
    assert runtime.gather(value) == [value] and runtime.broadcast(value) is value
    assert runtime.all_reduce_sum(torch.ones(2)).tolist() == [1, 1]
    runtime.barrier()
    runtime.synchronize()
    runtime.log("once")
    assert capsys.readouterr().out.endswith("once\n")
    assert runtime.local_batch_size(7) == 7
    model = torch.nn.Linear(2, 2)
    assert runtime.wrap(model) is model


def test_peak_memory_is_in_mebibytes(runtime):
    before = runtime.peak_memory_mb()
    runtime.reset_peak_memory()
    torch.ones(64 * 2 ** 18).sum()
    assert before > 20 and runtime.peak_memory_mb() < 100000


def test_peak_memory_of_a_card_is_in_mebibytes(monkeypatch):
    card = types.SimpleNamespace(max_memory_allocated=lambda one: 3 * 2 ** 20, reset_peak_memory_stats=[].append)
    monkeypatch.setattr(torch, "npu", card, raising=False)
    assert device.Runtime("npu", torch.device("cpu"), member()).peak_memory_mb() == 3.0


def test_random_state_is_restored(runtime, tmp_path):
    device.seed_everything(3)
    state = runtime.random_state()
    drawn = torch.rand(3)
    torch.save(state, str(tmp_path / "state"))
    state = torch.load(str(tmp_path / "state"), **({"weights_only": True} if TORCH >= (1, 13) else {}))
    runtime.set_random_state(dict(state, npu=torch.zeros(1)))       # from a run on another device
    assert torch.equal(torch.rand(3), drawn)
    device.seed_everything(3)
    assert torch.equal(torch.rand(3), drawn)


def test_a_batch_that_cannot_be_divided_is_refused():
    three = device.Runtime("cpu", torch.device("cpu"), Member({"is_distributed": 1, "world_size": 3, "local_rank": 1}))
    assert three.local_batch_size(12) == 4
    with pytest.raises(UserError, match=r"--batch_size 16 cannot be divided evenly among 3 .* a multiple of 3"):
        three.local_batch_size(16)
