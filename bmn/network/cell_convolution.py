"""From rows of proposals to the confidence map: its two 3x3 convolutions without the cells that are all the same.

The map at T = 5, indices start and end:

              end 0 1 2 3 4
    start 0       p p p p p       p: a proposal, start <= end; it has a row of its own.
          1       . p p p p       .: nothing to sample; one row stands for all of these cells.
          2       . . p p p
          3       . . . p p
          4       . . . . p

All cells below the diagonal enter the convolutions with equal values. After one 3x3 convolution those within two
diagonals of a proposal, or next to the border, differ; after two, those within four diagonals, or two cells in from
the border. The others are still equal. So only the proposals and this fringe are computed, T(T+1)/2 cells and a little
instead of T * T, which makes a training step 30 % shorter (docs/performance.md). They are kept as rows of a matrix. A
convolution first puts the rows of three cells above each other side by side (three times the numbers, where im2col
needs nine times), and is then a one-dimensional one along rows of cells, at the speed of the library's own.
"""
import numpy as np
import torch
from torch.nn import functional as F

from bmn.network.boundary_matching import DeviceConstants, exporting


class WholeMap:
    """Puts rows of proposals into their cells of a T x T map."""

    def __init__(self, tscale: int):
        self.tscale, self._constants = tscale, DeviceConstants()
        self.source = torch.from_numpy(_proposal_rows(tscale).ravel())
        below = self.source == tscale * (tscale + 1) // 2
        self.row = self.source.clone()
        self.row[below] += torch.arange(int(below.sum()))

    def __reduce__(self):
        return type(self), (self.tscale,)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """[B, P + 1, C], the last row that of the cells with start > end -> [B, C, T, T], channels last."""
        if exporting():         # fewer kinds of operators: a converter must know them all
            cells = rows.index_select(1, self.source.to(rows.device))
        else:
            row = self._constants("row", rows.device, None, lambda device, dtype: self.row.to(device))
            # Each of these cells gets a row of its own: the gradient sums over them without collisions in memory.
            below = rows[:, -1:].expand(-1, self.tscale ** 2 - rows.shape[1] + 1, -1)
            cells = torch.cat([rows[:, :-1], below], 1).index_select(1, row)
        return cells.view(-1, self.tscale, self.tscale, rows.shape[2]).permute(0, 3, 1, 2)


class CellConvolutions:
    """Which cells of the T x T map the two 3x3 convolutions compute, and from which rows.

    Args:
        tscale: T.
        valid_only: only cells with start <= end are wanted.

    Attributes:
        first, second: the convolutions: (rows, weight, bias) -> rows.
        row: int64 [T*T], the row after ``second`` that belongs to each cell of the map.
    """

    def __init__(self, tscale: int, valid_only: bool):
        self.options = tscale, valid_only
        start, end = np.indices((tscale, tscale))
        source = _proposal_rows(tscale)
        if valid_only:
            wanted = start <= end
            equal_cell = start, end
        else:
            # Two convolutions reach four diagonals below the main one, and two cells in from the border. Below that
            # a cell equals the one in the corner with the same distance, up to 2, from the last row and first column.
            wanted = (start <= end + 4) | ((start >= tscale - 3) & (end < 3))
            equal_cell = tuple(np.where(start <= end + 4, [start, end],
                                        [np.maximum(start, tscale - 3), np.minimum(end, 2)]))
        self.first = _CellConvolution(_neighbourhood(wanted), source, tscale * (tscale + 1) // 2 + 1)
        self.second = _CellConvolution(wanted, self.first.row, self.first.rows)
        # Cells that are not wanted get row 0; models.py sets them to 0 afterwards.
        self.row = torch.from_numpy(np.maximum(self.second.row[equal_cell], 0).ravel())

    def __reduce__(self):
        return type(self), self.options         # copied and pickled as its options, and built again


class _CellConvolution:
    """One convolution: from rows of the previous layer to rows of this one.

    The wanted cells of a row of the map form runs. Each run gets an unused row before and after it, so that the
    one-dimensional convolution does not mix neighbouring runs.

    Args:
        wanted: bool [T, T], the cells to compute.
        source: int [T, T], the row of the previous layer that belongs to each cell.
        sources: number of those rows.
    """

    def __init__(self, wanted, source, sources):
        tscale = len(wanted)
        start, end = _runs(wanted)
        own = (end >= 0) & (end < tscale)
        own[own] = wanted[start[own], end[own]]
        self.rows, self.row = len(start), np.full((tscale, tscale), -1)     # -1: not computed
        self.row[start[own], end[own]] = np.flatnonzero(own)
        above = start[:, None] + (-1, 0, 1)                                 # [rows, 3], the kernel's three rows
        inside = (above >= 0) & (above < tscale) & (end >= 0)[:, None] & (end < tscale)[:, None]
        source_row = np.zeros(above.shape, np.int64)
        source_row[inside] = source[above[inside], np.broadcast_to(end[:, None], above.shape)[inside]]
        inside, source_row = inside.ravel(), source_row.ravel()             # [rows * 3]
        self.source_row, self.outside = torch.from_numpy(source_row), torch.from_numpy(np.flatnonzero(~inside))
        # For the gradient: which of the rows * 3 columns each row of the previous layer went into, as bags.
        used_by = np.flatnonzero(inside)[np.argsort(source_row[inside], kind="stable")]
        offset = np.searchsorted(source_row[used_by], np.arange(sources))
        self.used_by = torch.from_numpy(used_by), torch.from_numpy(offset)

    def __call__(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """ReLU of the convolution: [rows of the previous layer, C] -> [rows of this one, O]; weight [O, C, 3, 3]."""
        weight = weight.permute(0, 2, 1, 3).reshape(weight.shape[0], -1, 1, 3)          # [O, 3*C, 1, 3]
        return _rows(F.relu_(_Convolve.apply(rows, weight, bias, self)))

    def columns(self, rows):
        # [*, C] -> [rows, 3*C]; beyond the border of the map there are zeros
        return rows.index_select(0, self.source_row).index_fill_(0, self.outside, 0).view(self.rows, -1)


class _Convolve(torch.autograd.Function):
    """Gathers its columns again for the gradient, which is cheaper than to keep three copies of its input."""

    @staticmethod
    def forward(ctx, rows, weight, bias, cells):
        ctx.cells = cells
        ctx.save_for_backward(rows, weight)
        return _along(cells.columns(rows), weight, bias)

    @staticmethod
    def backward(ctx, grad):
        rows, weight = ctx.saved_tensors
        grad = _rows(grad)
        columns = ctx.cells.columns(rows.to(grad.dtype))        # autocast may have cast in between
        grad_weight = torch.stack([grad[1:].t() @ columns[:-1], grad.t() @ columns, grad[:-1].t() @ columns[1:]], -1)
        grad_columns = _rows(_along(grad, weight.to(grad.dtype).flip(3).transpose(0, 1), None))
        index, offset = ctx.cells.used_by
        grad_rows = F.embedding_bag(index, grad_columns.reshape(-1, rows.shape[1]), offset, mode="sum")
        return grad_rows, grad_weight.unsqueeze(2), grad.sum(0), None


def _along(rows, weight, bias):
    """One-dimensional convolution along [M, C] -> [1, O, 1, M]; as an image of one line, channels last, no copy."""
    return F.conv2d(rows.view(1, 1, len(rows), -1).permute(0, 3, 1, 2), weight, bias, padding=(0, 1))


def _rows(image):
    # [1, O, 1, M] -> [M, O]
    return image.permute(0, 2, 3, 1).reshape(image.shape[3], -1)


def _proposal_rows(tscale):
    """[T, T]: which row belongs to a cell; all cells with start > end have the last."""
    row = np.full((tscale, tscale), tscale * (tscale + 1) // 2)
    row[np.triu_indices(tscale)] = np.arange(tscale * (tscale + 1) // 2)
    return row


def _neighbourhood(wanted):
    padded = np.pad(wanted, 1, "constant")
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def _runs(wanted):
    """start, end of the wanted cells row by row, each run of neighbours with one more cell at either end."""
    edges = np.diff(np.pad(wanted, ((0, 0), (1, 1)), "constant").astype(np.int8), axis=1)
    start, first = np.nonzero(edges == 1)
    last = np.nonzero(edges == -1)[1]
    length = last - first + 2
    within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    return np.repeat(start, length), np.repeat(first - 1, length) + within
