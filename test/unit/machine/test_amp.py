"""Mixed precision: what each device gets, that steps are right, and that overflows are skipped and counted."""
import functools
import os
import sys
import types

import pytest
import torch

from bmn.errors import UserError
from bmn.machine import amp
from bmn.machine.device import TORCH


def network():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    return model, torch.optim.Adam(model.parameters(), lr=0.1)


def train(precision, factors=(1.0, 2.0)):
    """Make a step for each factor on the loss. Returns the weights."""
    model, optimizer = precision.prepare(*network())
    for factor in factors:
        with precision.autocast():
            output = model(torch.ones(4, 3))
        precision.step((output.float() ** 2).sum() * factor, optimizer)
    return model.weight.detach()


def plain(factors=(1.0, 2.0)):
    model, optimizer = network()
    for factor in factors:
        optimizer.zero_grad()
        ((model(torch.ones(4, 3)) ** 2).sum() * factor).backward()
        optimizer.step()
    return model.weight.detach()


def test_o0_is_plain_float32():
    precision = amp.choose("cpu", "O0", 128)
    assert torch.equal(train(precision), plain())
    assert precision.description == "float32" and precision.skipped == 0


def test_o1_on_a_cpu_with_bfloat16(monkeypatch):
    monkeypatch.setattr(amp, "bfloat16_problem", lambda: None)
    precision = amp.choose("cpu", "O1", 128)
    assert precision.description == "bfloat16 autocast"
    if TORCH < (2, 1):
        return          # this PyTorch cannot run the autocast that was chosen
    with precision.autocast():
        assert network()[0](torch.ones(4, 3)).dtype == torch.bfloat16
    assert torch.allclose(train(precision), plain(), atol=0.02)


def test_o1_on_a_cpu_without_bfloat16(monkeypatch):
    monkeypatch.setattr(amp, "bfloat16_problem", lambda: "this processor has no such instructions")
    precision = amp.choose("cpu", "O1", 128)
    assert precision.description == ("float32, because O1 needs bfloat16 on a CPU and this processor has no such "
                                     "instructions")
    assert torch.equal(train(precision), plain())


@pytest.mark.skipif(TORCH < (2, 1), reason="PyTorch before 2.1 has no full autocast for CPUs")
@pytest.mark.parametrize("flags, has", [("fpu sse avx512f avx512_bf16", True), ("amx_bf16 amx_tile", True),
                                        ("fp asimd bf16 i8mm", True), ("fpu sse avx2 avx512f", False)])
def test_bfloat16_is_looked_up_in_cpuinfo(tmp_path, flags, has):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nflags\t\t: %s\n" % flags)
    assert (amp.bfloat16_problem(str(path)) is None) is has
    assert amp.bfloat16_problem(str(tmp_path / "none")) == "the processor does not say whether it has it"


def test_o0_on_a_card_shortens_no_product(monkeypatch):
    npu = types.SimpleNamespace(conv=types.SimpleNamespace(allow_hf32=True),
                                matmul=types.SimpleNamespace(allow_hf32=True))
    monkeypatch.setattr(torch, "npu", npu, raising=False)
    amp.choose("npu", "O0", 128)
    assert npu.conv.allow_hf32 is npu.matmul.allow_hf32 is False
    amp.choose("cuda", "O0", 128)
    if TORCH >= (1, 7):         # there is no such arithmetic before
        assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is False


@pytest.mark.parametrize("version, has", [((1, 8), False), ((2, 0), False), ((2, 1), True), ((2, 13), True)])
def test_bfloat16_needs_pytorch_2_1(monkeypatch, tmp_path, version, has):
    (tmp_path / "cpuinfo").write_text("flags : amx_bf16\n")
    monkeypatch.setattr(amp, "TORCH", version)
    problem = amp.bfloat16_problem(str(tmp_path / "cpuinfo"))
    assert problem == (None if has else "PyTorch %s has no full autocast for CPUs" % torch.__version__)


def test_o2_is_not_for_cpus():
    with pytest.raises(UserError, match="--opt_level O2 needs apex on an NPU or a CUDA device: give O1 or O0"):
        amp.choose("cpu", "O2", 128)


# ---- apex ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def apex(monkeypatch):
    """The stand-in for apex, on a PyTorch that passes for 1.5 and has no other mixed precision."""
    forget(monkeypatch, "apex", "apex.amp")
    monkeypatch.syspath_prepend(os.path.join(os.path.dirname(__file__), "..", "..", "apex_stand_in"))
    monkeypatch.setattr(amp, "TORCH", (1, 5))
    monkeypatch.setattr(torch, "npu", types.SimpleNamespace(), raising=False)
    from apex import amp as stand_in
    return stand_in


def forget(monkeypatch, *names):
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)        # so that monkeypatch forgets what the test imports
        monkeypatch.delitem(sys.modules, name)


def test_apex_is_called_as_designed(apex):
    precision = amp.choose("npu", "O1", 128)
    assert precision.description == "apex O1, loss scale 128"
    assert torch.allclose(train(precision), plain(), rtol=1e-6)
    assert apex.calls == [("initialize", "O1", 128.0, True)] + 2 * [("scale_loss", 128.0), ("gradients", False)]
    assert precision.skipped == 0


@pytest.mark.parametrize("version, wanted", [((1, 5), "apex O1"), ((1, 13), "apex O1"), ((2, 0), "float16 autocast"),
                                             ((2, 1), "float16 autocast")])
def test_an_npu_uses_apex_before_pytorch_2(apex, monkeypatch, version, wanted):
    """... where its PyTorch comes with Ascend's own, although torch_npu has an autocast too."""
    monkeypatch.setattr(amp, "TORCH", version)
    monkeypatch.setattr(amp, "_native", lambda kind: (None, types.SimpleNamespace))
    assert amp.choose("npu", "O1", 128).description == wanted + ", loss scale 128"


def test_apex_leaves_out_a_step_that_overflows(apex):
    precision = amp.choose("npu", "O1", -1)
    weights = train(precision, factors=(1.0, float("inf"), float("inf"), 2.0))
    assert torch.allclose(weights, plain(), rtol=1e-6) and precision.skipped == 2
    assert apex.calls[0] == ("initialize", "O1", "dynamic", True)
    state = precision.state_dict()
    assert state["skipped"] == 2 and state["apex"]["loss_scaler0"]["loss_scale"] == 2.0 ** 14
    again = amp.choose("npu", "O1", -1)
    again.load_state_dict(state)
    assert again.skipped == 2 and apex.calls[-1] == ("load_state_dict", state["apex"])


def test_apex_for_inference(apex):
    precision = amp.choose("npu", "O1", 128)
    model, optimizer = precision.prepare(network()[0])
    assert optimizer is None and isinstance(model, torch.nn.Linear)
    precision.prepare(network()[0])
    assert len(apex.calls) == 1, "O1 changes torch itself: once is enough"
    precision = amp.choose("cuda", "O2", 128)
    precision.prepare(*network())
    precision.prepare(network()[0])
    # O2 changes each model; NVIDIA's apex has no combine_grad
    assert apex.calls[1:] == 2 * [("initialize", "O2", 128.0, None)]


def test_apex_of_pypi_is_another_program(monkeypatch, tmp_path):
    forget(monkeypatch, "apex", "apex.amp")
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(amp, "TORCH", (1, 5))
    monkeypatch.setattr(torch, "npu", types.SimpleNamespace(), raising=False)
    with pytest.raises(UserError, match=r"--opt_level O1 needs Ascend's apex here, but the installed package 'apex' is "
                                        r"another program of that name .* give --opt_level O0"):
        amp.choose("npu", "O1", 128)
    (tmp_path / "apex" / "__init__.py").write_text("raise AttributeError('built for another torch')")
    forget(monkeypatch, "apex")
    assert amp.find_apex() == (None, "apex cannot be imported (built for another torch); PyPI's package of that name "
                                     "is another program")
    (tmp_path / "apex" / "__init__.py").write_text("import a_web_framework_that_is_not_here")     # as PyPI's has
    forget(monkeypatch, "apex")
    assert amp.find_apex() == (None, "the installed package 'apex' lacks the package a_web_framework_that_is_not_here; "
                                     "PyPI's apex is another program")


def test_a_missing_apex_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "apex", None)
    monkeypatch.setattr(amp, "TORCH", (1, 5))
    with pytest.raises(UserError, match="--opt_level O1 needs NVIDIA's apex here, but apex is not installed"):
        amp.choose("cuda", "O1", 128)
    monkeypatch.setattr(amp, "_native", lambda kind: ("autocast", "scaler"))
    with pytest.raises(UserError, match=r"--opt_level O2 needs NVIDIA's apex .* or give --opt_level O1"):
        amp.choose("cuda", "O2", 128)


def test_an_npu_without_apex_uses_the_autocast_of_torch_npu(monkeypatch):
    """PyTorch 1.8 with torch_npu: its autocast takes no dtype."""
    made = []
    scaler = types.SimpleNamespace
    module = types.SimpleNamespace(autocast=lambda enabled=True: made.append(enabled), GradScaler=scaler)
    monkeypatch.setattr(torch, "npu", types.SimpleNamespace(amp=module), raising=False)
    monkeypatch.setitem(sys.modules, "apex", None)
    monkeypatch.setattr(amp, "TORCH", (1, 8))
    precision = amp.choose("npu", "O1", 128)
    precision.autocast()
    assert made == [True] and precision.scaler == scaler(init_scale=128.0, dynamic=False)
    assert precision.description == "float16 autocast, loss scale 128, because apex is not installed"


# ---- PyTorch's scaler, which runs on a CPU too ---------------------------------------------------------------------

@pytest.fixture
def scaler_on_cpu(monkeypatch):
    if TORCH < (2, 3):
        pytest.skip("PyTorch before 2.3 scales losses on cards only")
    monkeypatch.setattr(amp, "_native", lambda kind: (amp.contextlib.nullcontext,
                                                      functools.partial(torch.amp.GradScaler, "cpu")))


def test_a_static_scale_stays(scaler_on_cpu):
    precision = amp.choose("cuda", "O1", 128)
    assert precision.description == "float16 autocast, loss scale 128"
    weights = train(precision, factors=(1.0, float("inf"), 2.0))
    assert torch.allclose(weights, plain(), rtol=1e-6)
    assert precision.skipped == 1 and precision.scaler.get_scale() == 128


def test_a_dynamic_scale_falls_when_a_gradient_overflows(scaler_on_cpu):
    precision = amp.choose("cuda", "O1", -1)
    assert "dynamic loss scale" in precision.description
    train(precision, factors=(1.0, float("nan"), 2.0))
    assert precision.skipped == 1 and precision.scaler.get_scale() == 2.0 ** 15
    state = precision.state_dict()
    again = amp.choose("cuda", "O1", -1)
    again.load_state_dict(state)
    assert again.skipped == 1 and again.scaler.state_dict()["scale"] == 2.0 ** 15
    given = amp.choose("cuda", "O1", 128)
    given.load_state_dict(state)
    assert given.scaler.get_scale() == 128, "--loss_scale is what the user says now"
    again.load_state_dict({"kind": "apex", "apex": {}, "skipped": 4})
    assert again.skipped == 4 and again.scaler.state_dict()["scale"] == 2.0 ** 15, "apex's scaling does not fit here"
    elsewhere = amp.choose("cpu", "O0", 128)
    elsewhere.load_state_dict(state)
    assert elsewhere.skipped == 1


@pytest.mark.skipif(TORCH < (1, 6), reason="this PyTorch has no mixed precision of its own")
def test_a_card_gets_the_autocast_and_the_scaler_of_its_pytorch(monkeypatch):
    for version in ((1, 6), (1, 8), (2, 4)):
        if version > TORCH:
            continue
        monkeypatch.setattr(amp, "TORCH", version)
        autocast, scaler = amp._native("cuda")
        assert hasattr(scaler, "unscale_") and not hasattr(autocast, "unscale_")
    monkeypatch.setattr(amp, "TORCH", (1, 5))
    assert amp._native("cuda") is None
