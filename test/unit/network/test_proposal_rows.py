"""The BM layer by blocks of channels, and the products beneath it, compared with plain operations."""
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bmn.network import products
from bmn.network import proposal_rows as of_proposals
from bmn.network.boundary_matching import BoundaryMatching
from bmn.network.products import product
from bmn.network.proposal_rows import BLOCK, PIECE, proposal_rows

OPTIONS = [((5, 3, 2, 0.5), "reference", 0), ((7, 2, 3, 1.2), "mmaction2", 0), ((8, 2, 2, 0.5), "opentad", 5)]


def plain(features, sampled, reduction, matching):
    weight = sampled.weight.flatten(2).permute(2, 0, 1).reshape(-1, features.shape[2])
    tables = F.linear(features, weight).view(len(features), -1, sampled.out_channels)
    rows = F.relu(matching(tables, sampled.bias))
    return F.relu(F.linear(rows, reduction.weight.flatten(1), reduction.bias))


@pytest.mark.parametrize("outputs,piece", [(6, PIECE), (2 * BLOCK, PIECE), (2 * BLOCK, 5)])
@pytest.mark.parametrize("options,layout,max_duration", OPTIONS)
def test_rows_and_gradients_equal_those_of_plain_operations(monkeypatch, options, layout, max_duration, outputs, piece):
    monkeypatch.setattr(of_proposals, "PIECE", piece)
    torch.manual_seed(1)
    matching = BoundaryMatching(*options, layout=layout, max_duration=max_duration)
    sampled, reduction = nn.Conv3d(4, outputs, (options[1], 1, 1)).double(), nn.Conv2d(outputs, 3, 1).double()
    features = torch.randn(2, 4, options[0], dtype=torch.float64).transpose(1, 2).requires_grad_()
    inputs = [features, *sampled.parameters(), *reduction.parameters()]
    found, wanted = torch.stack(proposal_rows(features, sampled, reduction, matching)), plain(
        features, sampled, reduction, matching)
    np.testing.assert_allclose(found.detach().numpy(), wanted.detach().numpy(), rtol=0, atol=1e-13)
    factors = torch.randn(wanted.shape, dtype=torch.float64)
    for one, other in zip(*(torch.autograd.grad((rows * factors).sum(), inputs) for rows in (found, wanted))):
        assert one.shape == other.shape
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=0, atol=1e-12)
    with torch.no_grad():
        for one, other in zip(proposal_rows(features, sampled, reduction, matching), found):
            np.testing.assert_allclose(one.numpy(), other.detach().numpy(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("dtype,bound", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_products_of_matrices_and_their_transpositions(monkeypatch, dtype, bound, onednn):
    if not onednn:
        monkeypatch.setattr(products, "_has_onednn", lambda dtype: False)
    torch.manual_seed(2)
    for rows in (torch.randn(7, 5, dtype=dtype), torch.randn(5, 7, dtype=dtype).t()):
        for weight in (torch.randn(3, 5, dtype=dtype), torch.randn(5, 3, dtype=dtype).t()):
            for bias in (None, torch.randn(3, dtype=dtype)):
                wanted = rows.double() @ weight.double().t() + (0 if bias is None else bias.double())
                np.testing.assert_allclose(product(rows, weight, bias).double().numpy(), wanted.numpy(), atol=bound)


def test_what_is_not_a_number_stays_so():
    matrix = torch.full((2, 2), float("nan"))
    assert torch.isnan(torch.relu_(product(matrix, matrix, matrix[0]))).all()
