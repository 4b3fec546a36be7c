"""The sampling weights, and both ways to contract with them."""
import copy
import hashlib
import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import sampling_weights_by_definition

from bmn import sampling
from bmn.errors import UserError
from bmn.network import boundary_matching
from bmn.network.boundary_matching import BoundaryMatching
from bmn.sampling import sampling_weights

RANDOM_OPTIONS = [(2, 1, 2, 0.5), (3, 2, 1, 0.0), (5, 4, 3, 0.5), (7, 3, 2, 1.7), (9, 5, 1, 0.31), (12, 2, 5, 0.05),
                  (13, 7, 4, 1.0), (16, 1, 9, 0.25)]
CONTRACTIONS = ["bags", "dense"]


def whole(tscale, num_sample, num_sample_perbin, ratio):
    """The weights as the reference holds them: float32 [T, N, T, T], indices t, n, start, end."""
    proposal, n, t, weight = sampling_weights(tscale, num_sample, num_sample_perbin, ratio)
    start, end = np.triu_indices(tscale)
    weights = np.zeros((tscale, num_sample, tscale, tscale), np.float32)
    weights[t, n, start[proposal], end[proposal]] = weight
    return weights


@pytest.mark.parametrize("name", ["model_t20_mask", "model_t24_mask", "model_t100_mask"])
def test_weights_equal_the_reference_bit_for_bit(golden, name):
    figures = golden(name + ".npz")
    opt = json.loads(str(figures["options"]))
    weights = whole(opt["temporal_scale"], opt["num_sample"], opt["num_sample_perbin"], opt["prop_boundary_ratio"])
    assert hashlib.sha256(weights.tobytes()).hexdigest() == str(figures["sha256"])
    assert (weights != 0).sum() == int(figures["nonzeros"])


@pytest.mark.parametrize("options", RANDOM_OPTIONS)
def test_weights_follow_the_definition_bit_for_bit(options):
    np.testing.assert_array_equal(whole(*options), sampling_weights_by_definition(*options))
    proposal, n, t, weight = sampling_weights(*options)
    tscale, num_sample = options[:2]
    assert (np.diff((proposal * num_sample + n) * tscale + t) > 0).all() and (weight != 0).all()


def test_chunks_of_proposals_give_the_same_weights(monkeypatch):
    whole_at_once = sampling_weights(9, 3, 2, 0.5)
    monkeypatch.setattr(sampling, "CHUNK", 7)
    for one, other in zip(sampling_weights(9, 3, 2, 0.5), whole_at_once):
        np.testing.assert_array_equal(one, other)


def test_a_single_point_is_refused():
    with pytest.raises(UserError, match="--num_sample 1 with --num_sample_perbin 1"):
        sampling_weights(10, 1, 1, 0.5)


def table_and_bias(options, dtype, batch=(2,), channels=6):
    generator = torch.Generator().manual_seed(7)
    table = torch.randn(*batch, options[0] * options[1], channels, generator=generator, dtype=torch.float64)
    return table.to(dtype), torch.randn(channels, generator=generator, dtype=torch.float64).to(dtype)


def oracle(options, table, bias):
    """[B, P + 1, O] in float64, from the weights of the definition."""
    start, end = np.triu_indices(options[0])
    weights = sampling_weights_by_definition(*options)[:, :, start, end].astype(np.float64)     # [T, N, P]
    rows = np.einsum("tnp,btno->bpo", weights,
                     table.double().numpy().reshape((len(table), options[0], options[1], -1)))
    rows = np.concatenate([rows, np.zeros_like(rows[:, :1])], 1)
    return rows + bias.double().numpy()


@pytest.mark.parametrize("contraction", CONTRACTIONS)
@pytest.mark.parametrize("options", RANDOM_OPTIONS)
def test_contraction_equals_the_definition(options, contraction):
    matching = BoundaryMatching(*options, contraction=contraction)
    table, bias = table_and_bias(options, torch.float64)
    found = matching(table, bias)
    np.testing.assert_allclose(found.numpy(), oracle(options, table, bias), rtol=0, atol=1e-13)
    assert torch.equal(found[0], matching(table[0], bias)) or contraction == "dense"
    np.testing.assert_allclose(found[1].numpy(), matching(table[1], bias).numpy(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("contraction", CONTRACTIONS)
@pytest.mark.parametrize("dtype,bound", [(torch.float32, 2e-6), (torch.bfloat16, 4e-2), (torch.float16, 5e-3)])
def test_shorter_types_round_within_bounds(dtype, bound, contraction):
    options = (12, 4, 3, 0.5)
    table, bias = table_and_bias(options, dtype)
    matching = BoundaryMatching(*options, contraction=contraction)
    if contraction == "bags" and not boundary_matching._has_bags("cpu", dtype):
        assert not BoundaryMatching(*options).uses_bags(table)
        return
    try:
        found = matching(table, bias)
    except RuntimeError:                    # an old PyTorch cannot multiply such matrices on a CPU
        pytest.skip("no products of %s here" % dtype)
    assert found.dtype == dtype
    wanted = oracle(options, table, bias)
    assert abs(found.double().numpy() - wanted).max() < bound * abs(wanted).max()


@pytest.mark.parametrize("contraction", CONTRACTIONS)
@pytest.mark.parametrize("options", [(2, 1, 2, 0.5), (4, 3, 2, 0.5), (5, 2, 3, 1.3)])
def test_gradients_are_the_derivatives(options, contraction):
    matching = BoundaryMatching(*options, contraction=contraction)
    table, bias = (tensor.requires_grad_() for tensor in table_and_bias(options, torch.float64, channels=2))
    assert torch.autograd.gradcheck(matching, (table, bias))


def test_a_strided_gradient_is_accepted():
    # a gradient that comes back through a transposition is not contiguous
    options = (5, 2, 3, 0.5)
    table, bias = table_and_bias(options, torch.float64, batch=())
    gradients = []
    for contraction in CONTRACTIONS:
        table = table.detach().requires_grad_()
        rows = BoundaryMatching(*options, contraction=contraction)(table, bias)
        (rows.t() * torch.arange(rows.numel(), dtype=rows.dtype).view(rows.shape[1], -1)).sum().backward()
        gradients.append(table.grad)
    np.testing.assert_allclose(*[gradient.numpy() for gradient in gradients], rtol=0, atol=1e-10)


def test_device_and_type_choose_the_contraction(monkeypatch):
    def chosen(kind, dtype, contraction="auto"):
        return BoundaryMatching(3, 2, 2, 0.5, contraction).uses_bags(
            SimpleNamespace(device=SimpleNamespace(type=kind), dtype=dtype))
    monkeypatch.setattr(boundary_matching, "_has_bags", lambda kind, dtype: True)
    assert chosen("cpu", torch.float32) and chosen("cpu", torch.bfloat16) and chosen("cuda", torch.float32)
    assert not chosen("cuda", torch.float16) and not chosen("cuda", torch.bfloat16)
    monkeypatch.setattr(boundary_matching, "DENSE_AT_MOST", 35)        # the weights are 6 * 6
    assert chosen("cuda", torch.float16)
    assert not chosen("npu", torch.float32) and not chosen("meta", torch.float32)
    assert chosen("npu", torch.float32, "bags") and not chosen("cpu", torch.float32, "dense")
    monkeypatch.setattr(boundary_matching, "_has_bags", lambda kind, dtype: False)
    assert not chosen("cpu", torch.float32)
    assert boundary_matching._has_bags("cpu", torch.float32) is False
    monkeypatch.undo()
    assert boundary_matching._has_bags("cpu", torch.float32) is True
    assert boundary_matching._has_bags("cpu", torch.int16) is False


@pytest.mark.parametrize("tscale,dense", [(100, True), (200, True), (400, False)])
def test_large_maps_take_bags_in_16_bit_too(tscale, dense):
    """2 ** 24 weights at the defaults are a small product for tensor cores; the 2 ** 30 of T = 400 fill the memory."""
    matching = BoundaryMatching(2, 1, 2, 0.5)
    matching.rows, matching.proposals = 32 * tscale, tscale * (tscale + 1) // 2
    table = SimpleNamespace(device=SimpleNamespace(type="cuda"), dtype=torch.float16)
    assert matching.uses_bags(table) != dense


@pytest.mark.filterwarnings("ignore")         # newer PyTorch warns of traces, which remain
def test_a_trace_takes_the_dense_product():
    options = (4, 2, 2, 0.5)
    matching, (table, bias) = BoundaryMatching(*options), table_and_bias(options, torch.float32)
    assert matching.uses_bags(table)
    traced = torch.jit.trace(lambda rows: matching(rows, bias), (table,))
    assert "embedding_bag" not in str(traced.graph) and "scatter" in str(traced.graph)
    np.testing.assert_allclose(traced(table + 1).numpy(), matching(table + 1, bias).numpy(), rtol=0, atol=1e-5)


def test_copies_carry_no_constants_and_compute_the_same():
    options = (6, 2, 2, 0.5)
    matching, (table, bias) = BoundaryMatching(*options, contraction="dense"), table_and_bias(options, torch.float64)
    wanted = matching(table, bias)
    assert len(pickle.dumps(matching)) < 300
    for copied in (copy.deepcopy(matching), pickle.loads(pickle.dumps(matching))):
        assert copied.contraction == "dense" and not copied._constants.built
        assert torch.equal(copied(table, bias), wanted)


@pytest.mark.parametrize("contraction", CONTRACTIONS)
def test_constants_made_in_inference_serve_training(contraction):
    if not hasattr(torch, "inference_mode"):
        pytest.skip("this PyTorch has no inference_mode")
    options = (4, 2, 2, 0.5)
    matching = BoundaryMatching(*options, contraction=contraction)
    table, bias = table_and_bias(options, torch.float64)
    with torch.inference_mode():
        matching(table, bias)
    table.requires_grad_()
    matching(table, bias).sum().backward()
    assert table.grad.abs().sum() > 0


@pytest.mark.parametrize("chunk", [1, 7, 54, 55, 56])
def test_the_weights_do_not_depend_on_how_many_are_computed_at_once(monkeypatch, chunk):
    whole = sampling.sampling_weights(10, 4, 3, 0.5)
    monkeypatch.setattr(sampling, "CHUNK", chunk)
    for found, wanted in zip(sampling.sampling_weights(10, 4, 3, 0.5), whole):
        np.testing.assert_array_equal(found, wanted)


def test_a_ratio_that_leaves_no_point_is_refused():
    with pytest.raises(UserError, match="--prop_boundary_ratio 16 with 2 points leaves no point"):
        sampling.sampling_weights(2, 1, 2, 16.0)


@pytest.mark.parametrize("taken", [True, False])
def test_bags_have_the_shortest_indices_that_pytorch_takes(monkeypatch, taken):
    monkeypatch.setattr(boundary_matching, "_has_bags",
                        lambda kind, dtype, index=torch.int64: taken or index == torch.int64)
    for index, offset, _ in BoundaryMatching(5, 2, 1, 0.5, "bags").bags(torch.zeros(1)):
        assert index.dtype == offset.dtype == (torch.int32 if taken else torch.int64)
