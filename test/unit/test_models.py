"""The network compared with the reference's figures and with a plain version of its definition."""
import copy
import json
import pickle

import numpy as np
import pytest
import torch
from formulas import wave, wave_parameters
from oracles import network_by_definition
from torch.nn import functional as F

from bmn.errors import UserError
from bmn.sampling import whole_mask
from models import BMN

SMALL = {"temporal_scale": 7, "num_sample": 3, "num_sample_perbin": 2, "prop_boundary_ratio": 0.5, "feat_dim": 8}
ROUTES = ["bags", "dense", "bags on the map"]
LAYERS = {      # name: shape of its weight, with the default options
    "x_1d_b.0": (256, 100, 3), "x_1d_b.2": (256, 64, 3), "x_1d_s.0": (256, 64, 3), "x_1d_s.2": (1, 256, 1),
    "x_1d_e.0": (256, 64, 3), "x_1d_e.2": (1, 256, 1), "x_1d_p.0": (256, 256, 3), "x_3d_p.0": (512, 256, 32, 1, 1),
    "x_2d_p.0": (128, 512, 1, 1), "x_2d_p.2": (128, 128, 3, 3), "x_2d_p.4": (128, 128, 3, 3),
    "x_2d_p.6": (2, 128, 1, 1)}


def network(opt, dtype=torch.float64, route="auto", seed=0):
    """The network of ``opt`` by one of the ROUTES: for a CPU; an NPU or exported graph; CUDA in float32."""
    torch.manual_seed(seed)
    model = BMN(dict(opt, bm_contraction=route.split()[0])).to(dtype)
    if route == "bags on the map":
        model._skips_cells = lambda table: False
    return model


def golden_network(figures, dtype, route="auto"):
    """The network and input that the golden figures belong to."""
    opt = json.loads(str(figures["options"]))
    model = network(opt, torch.float32, route)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in wave_parameters(shapes).items()})
    x = wave((int(figures["batch"]), opt["feat_dim"], opt["temporal_scale"]), 100)
    return model.to(dtype), torch.from_numpy(x).to(dtype)


def objective(outputs):
    """The golden objective: a fixed random projection of the three outputs, valid cells only."""
    valid = [torch.triu(outputs[0]), outputs[1], outputs[2]]
    return sum((out * torch.from_numpy(wave(out.shape, 200 + i)).to(out)).sum() for i, out in enumerate(valid))


def by_definition(model, opt, x):
    return network_by_definition(dict(model.named_parameters()), opt, x)


def gradients(model, loss):
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters()))))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", ["model_t20", "model_t24", "model_t100"])
def test_float64_equals_the_reference(golden, name, route):
    figures = golden(name + ".npz")
    if name == "model_t100" and route == "bags on the map":
        pytest.skip("the small networks are enough")
    model, x = golden_network(figures, torch.float64, route)
    outputs = model(x)
    compare_with_golden(figures, model, outputs, 2e-7, 1e-6, 1e-6)
    assert objective(outputs).item() == pytest.approx(float(figures["objective"]), rel=1e-9)


@pytest.mark.parametrize("route", ROUTES[:2])
# In model_t24 two units lie within 3e-8 of zero. If rounding changes the sign of one, an entry moves by 4 %.
@pytest.mark.parametrize("name,norm,entry", [("model_t20", 1e-3, 1e-2), ("model_t24", 3e-3, 5e-2),
                                             ("model_t100", 1e-3, 1e-2)])
def test_float32_equals_the_reference_up_to_rounding(golden, name, norm, entry, route):
    figures = golden(name + ".npz")
    model, x = golden_network(figures, torch.float32, route)
    compare_with_golden(figures, model, model(x), 2e-6, norm, entry)


def compare_with_golden(figures, model, outputs, output, norm, entry):
    for name, found in zip(("confidence_map", "start", "end"), outputs):
        np.testing.assert_allclose(found.detach().numpy(), figures[name], rtol=0, atol=output, err_msg=name)
    for name, gradient in gradients(model, objective(outputs)).items():
        values, wanted = gradient.numpy().ravel().astype(np.float64), figures["grad/" + name]
        assert np.linalg.norm(values) == pytest.approx(float(figures["gradnorm/" + name]), rel=norm)
        np.testing.assert_allclose(values[np.linspace(0, values.size - 1, 64).astype(int)], wanted, rtol=0,
                                   atol=entry * abs(wanted).max(), err_msg=name)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("batch,changes", [
    (2, {}), (1, {"temporal_scale": 2, "num_sample": 1}), (3, {"temporal_scale": 5, "prop_boundary_ratio": 1.4}),
    (2, {"temporal_scale": 11, "num_sample_perbin": 1, "feat_dim": 4}), (1, {"prop_boundary_ratio": 0}),
    (2, {"layout": "mmaction2"}), (1, {"layout": "reference2019", "temporal_scale": 12}),
    (1, {"layout": "opentad", "temporal_scale": 2}), (2, {"layout": "opentad", "temporal_scale": 13}),
    (2, {"max_duration": 3}), (1, {"temporal_scale": 14, "max_duration": 1}), (2, {"max_duration": 7}),
    (2, {"layout": "opentad", "max_duration": 4}), (1, {"layout": "opentad", "temporal_scale": 14, "max_duration": 9}),
    (1, {"layout": "mmaction2", "max_duration": 1})])
def test_forward_equals_the_definition(batch, changes, route):
    opt = dict(SMALL, **changes)
    model = network(opt, route=route)
    x = torch.randn(batch, opt["feat_dim"], opt["temporal_scale"], dtype=torch.float64)
    found, wanted = model(x), by_definition(model, opt, x)
    for one, other in zip(found, wanted):
        assert one.shape == other.shape
        np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), rtol=0, atol=1e-13)
    factors = [torch.randn_like(one) for one in found]          # below the diagonal too
    found, wanted = (gradients(model, sum((one * factor).sum() for one, factor in zip(outputs, factors)))
                     for outputs in (found, wanted))
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-11 * gradient.norm(), name


@pytest.mark.parametrize("layout", ["reference", "mmaction2"])
@pytest.mark.parametrize("route", ROUTES)
def test_valid_only_leaves_out_the_cells_below_the_diagonal(route, layout):
    model, x = network(dict(SMALL, layout=layout), route=route), torch.randn(2, 8, 7, dtype=torch.float64)
    full, valid = model(x), model(x, valid_only=True)
    np.testing.assert_allclose(valid[0].detach().numpy(), torch.triu(full[0]).detach().numpy(), rtol=0, atol=1e-14)
    assert (torch.tril(valid[0], -1) == 0).all() and (torch.tril(full[0], -1)[..., 1:, 0] > 0).all()
    assert torch.equal(full[1], valid[1]) and torch.equal(full[2], valid[2])
    wanted, found = (gradients(model, objective(outputs)) for outputs in (full, valid))
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-12 * gradient.norm(), name


def test_an_input_gets_its_gradient():
    model, x = network(SMALL), torch.randn(2, 8, 7, dtype=torch.float64, requires_grad=True)
    found, = torch.autograd.grad(objective(model(x)), x)
    wanted, = torch.autograd.grad(objective(by_definition(model, SMALL, x)), x)
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=0, atol=1e-12)


def half_precision(dtype):
    """Whether this PyTorch has autocast to ``dtype`` on a CPU."""
    try:
        with torch.autocast("cpu", dtype):
            F.conv2d(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype,bound", [(torch.bfloat16, 4e-3), (torch.float16, 1e-3)])
def test_autocast_is_as_accurate_as_the_definition_under_autocast(golden, dtype, bound, route):
    if not half_precision(dtype):
        pytest.skip("no autocast to %s on a CPU here" % dtype)
    figures = golden("model_t20.npz")
    model, x = golden_network(figures, torch.float32, route)
    exact = by_definition(model, json.loads(str(figures["options"])), x)
    with torch.autocast("cpu", dtype):
        ours = model(x)
    with torch.autocast("cpu", dtype):      # PyTorch 2.4 keeps half-precision weights, without gradients, until here
        theirs = by_definition(model, json.loads(str(figures["options"])), x)
    for one, other in zip(ours, exact):
        assert one.dtype == torch.float32               # as probabilities always are
        assert (one - other).abs().max() < bound
    exact, ours, theirs = (gradients(model, objective(outputs)) for outputs in (exact, ours, theirs))
    our_error, their_error = (sum((found[name] - exact[name]).pow(2).sum() for name in exact).sqrt()
                              for found in (ours, theirs))
    assert our_error < 1.3 * their_error
    for name, wanted in exact.items():
        assert ours[name].dtype == torch.float32
        assert (ours[name] - wanted).norm() < 1.5 * (theirs[name] - wanted).norm() + bound * wanted.norm(), name


def test_probabilities_are_float32_under_autocast():
    """bfloat16 rounds 0.999 to 1: the logarithm of 1 - p and its gradient are lost."""
    if not half_precision(torch.bfloat16):
        pytest.skip("no autocast to bfloat16 on a CPU here")
    model = network(SMALL, torch.float32)
    for head in (model.x_1d_s[2], model.x_1d_e[2], model.x_2d_p[6]):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.constant_(head.bias, 7.0)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(torch.randn(1, 8, 7))
    for output in outputs:
        assert output.dtype == torch.float32
        assert torch.allclose(output, torch.sigmoid(torch.tensor(7.0))) and (output < 1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_can_be_cast_to_half_precision(dtype):
    if not half_precision(dtype):
        pytest.skip("no arithmetic in %s on a CPU here" % dtype)
    model, x = network(SMALL, torch.float32), torch.randn(2, 8, 7)
    with torch.no_grad():
        wanted = model(x)
        for one, other in zip(model.to(dtype)(x.to(dtype)), wanted):
            assert (one - other).abs().max() < 1e-2


def test_state_dict_has_the_names_and_shapes_of_the_reference():
    model = BMN({})
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == {
        name + part: shape if part == ".weight" else shape[:1]
        for name, shape in LAYERS.items() for part in (".weight", ".bias")}
    assert not list(model.buffers())        # nothing for parallel training to broadcast
    reference_options = {"temporal_scale": 100, "feat_dim": 400, "num_sample": 32, "num_sample_perbin": 3,
                         "prop_boundary_ratio": 0.5}
    assert BMN(reference_options).load_state_dict(model.state_dict(), strict=True)


def test_a_sample_mask_is_checked_and_dropped():
    model, other = network(SMALL), network(SMALL, seed=1)
    state = dict(other.state_dict(), sample_mask=torch.zeros(7, 3 * 7 * 7))
    model.load_state_dict(state)
    assert "sample_mask" in state           # the caller's dict is left alone
    for one, wanted in zip(model.parameters(), other.parameters()):
        assert torch.equal(one, wanted)
    with pytest.raises(RuntimeError, match=r"sample_mask.*--temporal_scale.*--num_sample"):
        model.load_state_dict(dict(state, sample_mask=torch.zeros(7, 4 * 7 * 7)))
    holder = torch.nn.ModuleDict({"inner": model})          # a network within a network
    holder.load_state_dict({"inner." + name: value for name, value in state.items()})
    with pytest.raises(RuntimeError, match="stray"):
        model.load_state_dict(dict(state, stray=torch.zeros(1)))
    own = whole_mask(7, 3, 2, 0.5, "reference").reshape(7, -1)
    model.load_state_dict(dict(state, sample_mask=torch.from_numpy(own), bm_mask=torch.ones(7, 7)))
    for name, shown in (("layout", "layout mmaction2"), ("num_sample_perbin", "num_sample_perbin 4"),
                        ("prop_boundary_ratio", "prop_boundary_ratio 0.25")):
        changes = dict(num_sample_perbin=2, prop_boundary_ratio=0.5, layout="reference")
        changes[name] = {"layout": "mmaction2", "num_sample_perbin": 4, "prop_boundary_ratio": 0.25}[name]
        mask = torch.from_numpy(whole_mask(7, 3, *changes.values())).view(7, -1)
        with pytest.raises(RuntimeError, match="made with --" + shown):
            model.load_state_dict(dict(state, sample_mask=mask))
    del state["x_2d_p.6.bias"]
    with pytest.raises(RuntimeError, match=r"x_2d_p\.6\.bias"):
        model.load_state_dict(state)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_compute_the_same(copied):
    model, x = network(SMALL), torch.randn(2, 8, 7, dtype=torch.float64)
    wanted = model(x)
    twin = copied(model)
    for one, other in zip(twin(x), wanted):
        assert torch.equal(one, other)
    assert not {id(parameter) for parameter in model.parameters()} & {id(parameter) for parameter in twin.parameters()}
    twin.load_state_dict(dict(model.state_dict(), sample_mask=torch.zeros(7, 3 * 7 * 7)))


@pytest.mark.parametrize("shape", [(2, 8, 6), (2, 9, 7), (8, 7), (2, 8, 7, 1)])
def test_features_of_another_shape_are_refused(shape):
    with pytest.raises(UserError, match=r"--feat_dim and --temporal_scale") as caught:
        network(SMALL)(torch.zeros(shape, dtype=torch.float64))
    assert str(list(shape)) in str(caught.value) and "[videos, 8, 7]" in str(caught.value)


def test_features_that_do_not_split_into_groups_are_refused():
    with pytest.raises(UserError, match=r"--feat_dim 10 .*prepare_features.* to 12"):
        BMN(dict(SMALL, feat_dim=10))


@pytest.mark.parametrize("layout", ["reference", "opentad"])
def test_a_longest_duration_of_all_positions_is_none(layout):
    with pytest.raises(UserError, match="--max_duration 8 is above the 7 positions"):
        BMN(dict(SMALL, layout=layout, max_duration=8))
    x = torch.randn(2, 8, 7, dtype=torch.float64)
    for valid_only in (False, True):
        outputs = [network(dict(SMALL, layout=layout, max_duration=duration))(x, valid_only) for duration in (7, 0)]
        assert all(map(torch.equal, *outputs))


@pytest.mark.parametrize("layout", ["reference", "opentad"])
def test_what_is_too_long_is_not_computed(layout):
    model = BMN(dict(temporal_scale=32, feat_dim=8, num_sample=3, num_sample_perbin=2, layout=layout, max_duration=8))
    kept = 8 * 32 - 8 * 7 // 2
    assert model.boundary_matching.proposals == kept
    assert int(model.boundary_matching.cell.max()) < (kept + 1) * 32 * 3
    # the cells of the last convolution, and an unused one at either end of each of their lines
    assert model.cells[True].second.rows == kept + 2 * (8 if layout == "opentad" else 32)


@pytest.mark.parametrize("layout", [{}, {"max_duration": 3}, {"layout": "opentad", "max_duration": 4}])
@pytest.mark.parametrize("strict", [False, True])
def test_export(strict, layout):
    if not hasattr(torch, "export") or not hasattr(torch, "compiler") or not hasattr(torch.compiler, "is_exporting"):
        pytest.skip("this PyTorch has no torch.export")
    model, x = network(dict(SMALL, **layout), torch.float32), torch.randn(2, 8, 7)
    batch = {0: torch.export.Dim("batch", min=1, max=16)}
    program = torch.export.export(model, (x,), dynamic_shapes=(batch,), strict=strict)
    assert "embedding_bag" not in str(program.graph)
    x = torch.randn(5, 8, 7)
    for one, other in zip(program.module()(x), model(x)):
        np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")         # newer PyTorch warns of traces, which remain
@pytest.mark.parametrize("layout", [{}, {"layout": "mmaction2"}, {"max_duration": 3},
                                    {"layout": "opentad", "max_duration": 4}])
def test_trace(layout):
    model, x = network(dict(SMALL, **layout), torch.float32), torch.randn(2, 8, 7)
    traced = torch.jit.trace(model, (x,))
    x = torch.randn(2, 8, 7)
    for one, other in zip(traced(x), model(x)):
        np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), rtol=0, atol=1e-6)
