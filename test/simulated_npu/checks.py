"""The simulated NPU itself, and the project's parts on it. test/unit/machine/test_simulated_npu.py runs this in a
process of its own, because a device cannot be removed from PyTorch again."""
import copy
import multiprocessing
import os

from bmn.machine import device  # isort: skip
import pytest
import torch
import torch_npu
from torch import nn

from bmn.machine import amp
from bmn.options import with_defaults
from models import BMN

OPTIONS = {"temporal_scale": 12, "feat_dim": 8, "num_sample": 4, "num_sample_perbin": 2}


@pytest.fixture(scope="module")
def runtime():
    with device.setup(with_defaults({"device": "auto"})) as one:
        yield one


def npu(*values):
    return torch.tensor(values, device="npu")


# ---- the device ----------------------------------------------------------------------------------------------------

def test_the_simulated_npu_is_chosen(runtime):
    assert runtime.kind == "npu" and runtime.device == torch.device("npu:0")
    assert device.choose("npu") == ("npu", "") and device.npu_problem() is None
    with pytest.raises(device.UserError, match=r"card 1 .* is not there: 1 npu is visible"):
        device.setup(with_defaults({"device": "npu", "DeviceID": "1"}))


def test_bags_and_sparse_tensors_are_refused():
    table, indices = torch.ones(3, 2, device="npu"), torch.zeros(1, 2, dtype=torch.long, device="npu")
    with pytest.raises(NotImplementedError, match="embedding_bag"):
        nn.functional.embedding_bag(indices, table, mode="sum")
    for sparse in (torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr()):
        with pytest.raises(NotImplementedError, match="Sparse"):
            torch.sparse.mm(sparse.to("npu"), table)
    with pytest.raises(NotImplementedError, match="sparse"):
        table.to_sparse()


def test_float64_is_refused():
    for make in (lambda: torch.zeros(2, dtype=torch.float64, device="npu"), lambda: torch.zeros(2).double().npu(),
                 lambda: torch.zeros(2).double().to("npu")):
        with pytest.raises(RuntimeError, match="no float64"):
            make()
    with pytest.warns(UserWarning, match="float is used instead"):
        assert torch.zeros(2, device="npu").double().dtype == torch.float32
    assert torch.zeros(2, device="npu").cpu().double().dtype == torch.float64


def test_devices_do_not_mix():
    for mix in (lambda: npu(1.0, 2.0) + torch.ones(2), lambda: torch.ones(2) + npu(1.0, 2.0),
                lambda: npu(1.0, 2.0).add_(torch.ones(2)), lambda: nn.Linear(2, 2)(npu(1.0, 2.0)),
                lambda: torch.add(npu(1.0), npu(2.0), out=torch.ones(1))):
        with pytest.raises(RuntimeError, match="same device"):
            mix()
    assert (npu(1.0, 2.0) + torch.tensor(1.0)).tolist() == [2, 3]         # a number may come from anywhere
    assert npu(5, 6, 7)[torch.tensor([2, 0])].tolist() == [7, 5]          # and so may indices


def test_operators_compute_what_a_cpu_computes():
    torch.manual_seed(1)
    on_cpu = torch.randn(3, 4)
    on_npu = on_cpu.npu()
    view = on_npu[1:].t()
    view.mul_(2)
    expected = on_cpu.clone()
    expected[1:] *= 2
    assert view.device.type == "npu" and torch.equal(on_npu.cpu(), expected)
    assert on_npu.add_(1) is on_npu and torch.equal(on_npu.cpu(), expected + 1)
    out = torch.empty(0, device="npu")
    torch.mm(on_npu, on_npu.t(), out=out)
    assert torch.equal(out.cpu(), (expected + 1) @ (expected + 1).t())
    values, indices = on_npu.max(dim=1)
    assert torch.equal(values.cpu(), (expected + 1).max(dim=1)[0]) and indices.device.type == "npu"
    grown = npu(1.0, 2.0).resize_(2, 2)
    assert grown.shape == (2, 2) and grown.stride() == (2, 1) and grown[0].tolist() == [1, 2]
    assert grown.resize_(1, 2).tolist() == [[1, 2]]
    assert torch_npu.operators.calls["aten::max.dim"] or torch_npu.operators.calls["aten::max"]


def test_a_forked_process_cannot_use_it():
    def use():
        try:
            torch.ones(2, device="npu")
        except RuntimeError as error:
            os._exit("forked" in str(error))
        os._exit(0)
    child = multiprocessing.get_context("fork").Process(target=use)
    child.start()
    child.join()
    assert child.exitcode == 1


def test_autocast_follows_the_lists_of_torch_npu():
    layer, data = nn.Conv1d(2, 2, 1).npu(), torch.ones(1, 2, 3, device="npu")
    with torch.npu.amp.autocast():
        low = layer(data)
        assert low.dtype == torch.float16 and low.log().dtype == torch.float32 and low.sum().dtype == torch.float32
        with pytest.raises(RuntimeError, match="unsafe to autocast"):
            nn.functional.binary_cross_entropy(low.sigmoid(), low.sigmoid())
    assert layer(data).dtype == torch.float32


def test_tensors_are_saved_and_loaded(tmp_path):
    path = str(tmp_path / "weights")
    layer = nn.Linear(3, 2).npu()
    torch.save(layer.state_dict(), path)
    assert torch.load(path)["weight"].device.type == "npu"
    on_cpu = torch.load(path, map_location="cpu", weights_only=True)
    assert on_cpu["weight"].device.type == "cpu" and torch.equal(on_cpu["weight"], layer.weight.detach().cpu())
    torch.save(on_cpu, path)
    assert torch.equal(torch.load(path, map_location="npu")["weight"], layer.weight.detach())


# ---- the project on it ---------------------------------------------------------------------------------------------

def step(network, data, where, precision):
    """Outputs of the network and its gradients after one step, on the CPU."""
    network, optimizer = precision.prepare(network, torch.optim.Adam(network.parameters(), lr=0.01))
    with precision.autocast():
        outputs = network(data.to(where), valid_only=True)
    precision.step(sum((output.float() ** 2).mean() for output in outputs), optimizer)
    return ([output.detach().float().cpu() for output in outputs],
            {name: weight.detach().cpu() for name, weight in network.named_parameters()})


def both(runtime, level, on_cpu_level):
    torch.manual_seed(2)
    network, data = BMN(dict(OPTIONS, bm_contraction="dense")), torch.randn(2, 8, 12)
    cpu = device.Runtime("cpu", torch.device("cpu"), runtime)
    there = step(copy.deepcopy(network).to(runtime.device), data, runtime.device, amp.choose(runtime.kind, level, 128))
    return there, step(network, data, cpu.device, amp.choose(cpu.kind, on_cpu_level, 128))


def test_a_float32_step_equals_that_of_a_cpu_to_the_bit(runtime):
    before = sum(torch_npu.operators.calls.values())
    (outputs, weights), (outputs_cpu, weights_cpu) = both(runtime, "O0", "O0")
    assert all(map(torch.equal, outputs, outputs_cpu))
    assert all(torch.equal(weights[name], weights_cpu[name]) for name in weights)
    assert sum(torch_npu.operators.calls.values()) > before + 100, "it ran on the device"
    assert not torch.npu.conv.allow_hf32, "O0 is float32, not something shorter"


def test_a_float16_step_is_close_to_float32(runtime):
    (outputs, weights), (outputs_cpu, _) = both(runtime, "O1", "O0")
    error = max(float((one - other).abs().max()) for one, other in zip(outputs, outputs_cpu))
    assert 0 < error < 5e-3 and all(torch.isfinite(weight).all() for weight in weights.values())


def test_a_step_that_overflows_is_left_out(runtime):
    for scale, afterwards in ((128, 128), (-1, 2.0 ** 15)):
        precision = amp.choose(runtime.kind, "O1", scale)
        layer, optimizer = precision.prepare(*_layer(runtime))
        weights = layer.weight.detach().clone()
        precision.step((layer(torch.ones(1, 2, device="npu")) * float("inf")).sum(), optimizer)
        assert precision.skipped == 1 and torch.equal(layer.weight, weights)
        assert precision.state_dict()["scaler"]["scale"] == afterwards
        precision.step(layer(torch.ones(1, 2, device="npu")).sum(), optimizer)
        assert precision.skipped == 1 and not torch.equal(layer.weight, weights)


def _layer(runtime):
    layer = nn.Linear(2, 2).to(runtime.device)
    return layer, torch.optim.Adam(layer.parameters())


def test_random_state_and_memory(runtime, tmp_path):
    state = runtime.random_state()
    assert set(state) == {"cpu", "npu"}
    drawn = torch.rand(3, device=runtime.device)
    runtime.set_random_state(state)
    assert torch.equal(torch.rand(3, device=runtime.device), drawn)
    runtime.reset_peak_memory()
    assert runtime.peak_memory_mb() == 0
    runtime.synchronize()


def test_trace(runtime, tmp_path):
    with runtime.profiler(str(tmp_path)) as profiler:
        for _ in range(6):
            torch.ones(2, device="npu").sum()
            profiler.step()
    trace, = tmp_path.iterdir()
    assert "aten::sum" in trace.read_text()
