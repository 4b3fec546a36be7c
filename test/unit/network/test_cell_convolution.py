"""The 3x3 convolutions on the cells that are not constant, compared with those on the whole map."""
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bmn.network import cell_convolution
from bmn.network.cell_convolution import CellConvolutions
from bmn.sampling import proposals

SCALES = [1, 2, 3, 4, 5, 6, 7, 8, 11, 16]
MAPS = ([(scale, "reference", 0) for scale in SCALES] + [(scale, "mmaction2", 0) for scale in SCALES]
        + [(scale, "opentad", scale * part // 8) for scale in (5, 8, 11, 16) for part in (2, 5, 7)]
        + [(scale, "reference", scale * part // 8) for scale in (5, 8, 11, 16) for part in (2, 5, 7)])


def make(tscale, max_duration=0, channels=3):
    """Rows of the proposals and of the cells that are none, and two convolutions' weights and biases."""
    generator = torch.Generator().manual_seed(tscale)
    shapes = [(len(proposals(tscale, max_duration)[0]) + 1, channels), (channels, channels, 3, 3), (channels,),
              (channels, channels, 3, 3), (channels,)]
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def by_cell(tscale, layout, max_duration, valid_only, rows, *layers):
    cells = CellConvolutions(tscale, valid_only, layout, max_duration)
    rows = cells.second(cells.first(rows, *layers[:2]), *layers[2:])
    return rows[cells.row].view(tscale, tscale, -1)


def by_map(tscale, layout, max_duration, rows, *layers):
    """The definition, [T, T] at [start, end]: a map whose cells without a proposal all hold the last row."""
    lines = max_duration if max_duration and layout != "reference" else tscale
    cell = torch.full((lines, tscale), len(rows) - 1, dtype=torch.int64)
    for row, (start, end) in enumerate(zip(*proposals(tscale, max_duration))):
        cell[(start, end) if layout == "reference" else (end - start, start)] = row
    cells = rows[cell].permute(2, 0, 1)[None]
    for weight, bias in (layers[:2], layers[2:]):
        cells = F.relu(F.conv2d(cells, weight, bias, padding=1))
    cells = cells[0].permute(1, 2, 0)
    if layout == "reference":
        return cells
    # What lies beyond the proposals of a map of durations goes to the pairs with start > end.
    return torch.stack([torch.stack([cells[(end - start) % tscale, start] if (end - start) % tscale < len(cells)
                                     else cells[0, 0] for end in range(tscale)]) for start in range(tscale)])


@pytest.mark.parametrize("tile", [cell_convolution.TILE, 12])
@pytest.mark.parametrize("valid_only", [False, True])
@pytest.mark.parametrize("tscale,layout,max_duration", MAPS)
def test_cells_and_gradients_equal_those_of_the_map(monkeypatch, tscale, layout, max_duration, valid_only, tile):
    monkeypatch.setattr(cell_convolution, "TILE", tile)
    inputs = make(tscale, max_duration)
    found = by_cell(tscale, layout, max_duration, valid_only, *inputs)
    wanted = by_map(tscale, layout, max_duration, *inputs)
    looked_at = torch.zeros(tscale, tscale, 1, dtype=torch.float64)
    looked_at[proposals(tscale, max_duration)] = 1
    looked_at = (looked_at if valid_only or max_duration else torch.ones_like(looked_at)).expand(wanted.shape)
    np.testing.assert_allclose((found * looked_at).detach().numpy(), (wanted * looked_at).detach().numpy(), atol=1e-12)
    factors = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * looked_at
    gradients = [torch.autograd.grad((result * factors).sum(), inputs) for result in (found, wanted)]
    for one, other in zip(*gradients):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-11)


@pytest.mark.parametrize("tile", [1, 30, 400])
def test_tiles_are_whole_runs_and_small(monkeypatch, tile):
    monkeypatch.setattr(cell_convolution, "TILE", tile)
    convolution = CellConvolutions(30, False).first
    assert [one.rows.start for one in convolution.tiles] == [0] + [one.rows.stop for one in convolution.tiles[:-1]]
    assert convolution.tiles[-1].rows.stop == convolution.rows
    assert all(0 < one.size <= tile + 30 + 2 for one in convolution.tiles)
    assert len(convolution.tiles) <= convolution.rows // tile + 1


def test_gradients_are_the_derivatives():
    cells = CellConvolutions(4, False)
    rows, weight, bias = make(4, channels=2)[:3]
    assert torch.autograd.gradcheck(cells.first, (rows, weight, bias))


@pytest.mark.parametrize("layout", ["reference", "mmaction2"])
@pytest.mark.parametrize("valid_only,most", [(True, 0.56), (False, 0.60)])
def test_little_more_than_half_of_the_map_is_computed(valid_only, most, layout):
    cells = CellConvolutions(100, valid_only, layout)
    assert 5050 < cells.second.rows < cells.first.rows < most * 100 * 100
    if valid_only:
        assert cells.second.rows == 5050 + 2 * 100


def test_gradients_stay_float32_under_autocast():
    if not hasattr(torch, "autocast"):
        pytest.skip("no autocast here")
    cells = CellConvolutions(6, False)
    rows, weight, bias = (tensor.detach().float().requires_grad_() for tensor in make(6)[:3])
    try:
        with torch.autocast("cpu", torch.bfloat16):
            result = cells.first(rows, weight, bias)
    except RuntimeError:
        pytest.skip("no autocast on a CPU here")
    result.float().pow(2).sum().backward()
    assert result.dtype == torch.bfloat16
    low = [tensor.grad.clone() for tensor in (rows, weight, bias)]
    for tensor in (rows, weight, bias):
        assert tensor.grad.dtype == torch.float32
        tensor.grad = None
    cells.first(rows, weight, bias).pow(2).sum().backward()
    for one, tensor in zip(low, (rows, weight, bias)):
        assert (one - tensor.grad).norm() < 0.03 * tensor.grad.norm()
