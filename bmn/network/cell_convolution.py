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

A map of durations, [duration, start], is the same with its proposals above the other diagonal. Where proposals have a
longest duration D, it has D rows; in a map of pairs, those that are too long are cells like those below the diagonal.
"""
import numpy as np
import torch
from torch.nn import functional as F

from bmn.layouts import LAYOUTS, map_cell
from bmn.network.boundary_matching import DeviceConstants, exporting
from bmn.network.products import product
from bmn.network.proposal_rows import joined, through_relu
from bmn.sampling import proposals

TILE = 2 ** 14      # rows that are computed at once: 25 MB of columns in float32


class WholeMap:
    """Puts rows of proposals into their cells of the map, and takes what comes out of it in the order [start, end].

    Args:
        tscale: T.
        layout: a name in LAYOUTS.
        max_duration: D, the longest proposal in positions; 0: T.

    Attributes:
        is_proposal: float32 [T, T], 1 at the pairs [start, end] that are proposals, else 0.
    """

    def __init__(self, tscale: int, layout: str = "reference", max_duration: int = 0):
        self.options, self._constants = (tscale, layout, max_duration), DeviceConstants()
        source = _proposal_rows(*self.options)
        self.shape = source.shape
        self.source = torch.from_numpy(source.ravel())
        below = self.source == len(proposals(tscale, max_duration)[0])
        self.row = self.source.clone()
        self.row[below] += torch.arange(int(below.sum()))
        self.cell = torch.from_numpy(_cells_by_pair(*self.options)) if LAYOUTS[layout].duration_first else None
        self.is_proposal = torch.zeros(tscale, tscale)
        self.is_proposal[proposals(tscale, max_duration)] = 1

    def __reduce__(self):
        return type(self), self.options         # copied and pickled as its options, and built again

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """[B, P + 1, C], the last row that of the cells without a proposal -> [B, C, map], channels last."""
        if exporting():         # fewer kinds of operators: a converter must know them all
            cells = rows.index_select(1, self.source.to(rows.device))
        else:
            row = self._constants("row", rows.device, None, lambda device, dtype: self.row.to(device))
            # Each of these cells gets a row of its own: the gradient sums over them without collisions in memory.
            below = rows[:, -1:].expand(-1, len(self.source) - rows.shape[1] + 1, -1)
            cells = torch.cat([rows[:, :-1], below], 1).index_select(1, row)
        return cells.view(-1, *self.shape, rows.shape[2]).permute(0, 3, 1, 2)

    def by_pair(self, cells: torch.Tensor) -> torch.Tensor:
        """[B, 2, map] -> [B, 2, T, T] in the order [start, end]."""
        if self.cell is None:
            return cells
        cell = self._constants("cell", cells.device, None, lambda device, dtype: self.cell.to(device))
        return cells.flatten(2).index_select(2, cell).view(-1, 2, self.shape[1], self.shape[1])


class CellConvolutions:
    """Which cells of the map the two 3x3 convolutions compute, and from which rows.

    Args:
        tscale: T.
        valid_only: only cells that are proposals are wanted.
        layout: a name in LAYOUTS.
        max_duration: D, the longest proposal in positions; 0: T.

    Attributes:
        first, second: the convolutions: (rows, weight, bias) -> rows.
        row: int64 [T*T], the row after ``second`` that belongs to each pair [start, end].
    """

    def __init__(self, tscale: int, valid_only: bool, layout: str = "reference", max_duration: int = 0):
        self.options = tscale, valid_only, layout, max_duration
        source = _proposal_rows(tscale, layout, max_duration)
        no_proposal = len(proposals(tscale, max_duration)[0])
        line, column = np.indices(source.shape)
        if valid_only:
            wanted = source < no_proposal
            equal_cell = line, column
        else:
            # Two convolutions reach four diagonals beyond the proposals, and two cells in from the border. Further out
            # a cell equals the one in the corner with the same distance, up to 2, from the last row and the border.
            if LAYOUTS[layout].duration_first:
                beyond, corner_column, in_corner = line + column - tscale + 1, np.maximum(column, tscale - 3), (
                    column >= tscale - 3)
            else:
                beyond, corner_column, in_corner = line - column, np.minimum(column, 2), column < 3
            corner_line = np.maximum(line, len(source) - 3)
            wanted = (beyond <= 4) | ((line == corner_line) & in_corner)
            equal_cell = tuple(np.where(beyond <= 4, [line, column], [corner_line, corner_column]))
        self.first = _CellConvolution(_neighbourhood(wanted), source, no_proposal + 1)
        self.second = _CellConvolution(wanted, self.first.row, self.first.rows)
        # Cells that are not wanted get row 0; models.py sets them to 0 afterwards.
        row = np.maximum(self.second.row[equal_cell], 0).ravel()
        self.row = torch.from_numpy(row[_cells_by_pair(tscale, layout, max_duration)])

    def __reduce__(self):
        return type(self), self.options         # copied and pickled as its options, and built again


class _CellConvolution:
    """One convolution: from rows of the previous layer to rows of this one.

    The wanted cells of a row of the map form runs. Each run gets an unused row before and after it, so that the
    one-dimensional convolution does not mix neighbouring runs. So any number of whole runs, a tile, can be computed
    alone.

    Args:
        wanted: bool, the map of cells to compute.
        source: int, the map of rows of the previous layer that belong to its cells.
        sources: number of those rows.
    """

    def __init__(self, wanted, source, sources):
        lines, columns = wanted.shape
        line, column = _runs(wanted)
        own = (column >= 0) & (column < columns)
        own[own] = wanted[line[own], column[own]]
        self.rows, self.row = len(line), np.full(wanted.shape, -1)          # -1: not computed
        self.row[line[own], column[own]] = np.flatnonzero(own)
        above = line[:, None] + (-1, 0, 1)                                  # [rows, 3], the kernel's three rows
        inside = (above >= 0) & (above < lines) & (column >= 0)[:, None] & (column < columns)[:, None]
        source_row = np.zeros(above.shape, np.int64)
        source_row[inside] = source[above[inside], np.broadcast_to(column[:, None], above.shape)[inside]]
        ends = np.append(np.flatnonzero((np.diff(line) != 0) | (np.diff(column) != 1)) + 1, self.rows)
        self.tiles, first = [], 0
        for end in ends[np.append(np.diff(ends // TILE) > 0, True)]:
            self.tiles.append(_Tile(first, end, source_row[first:end].ravel(), inside[first:end].ravel(), sources))
            first = end

    def __call__(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """ReLU of the convolution: [rows of the previous layer, C] -> [rows of this one, O]; weight [O, C, 3, 3]."""
        weight = weight.permute(0, 2, 1, 3).reshape(weight.shape[0], -1, 1, 3)          # [O, 3*C, 1, 3]
        return _Convolve.apply(rows, weight, bias, self)


class _Tile:
    """Rows ``first`` to ``end`` of a convolution, few enough that no matrix of theirs leaves the processor's cache.

    Args:
        source_row: int64 [rows * 3], which row of the previous layer a column is a copy of.
        inside: bool [rows * 3]; beyond the border of the map there are zeros.
        sources: number of rows of the previous layer. The last of them may belong to many cells.
    """

    def __init__(self, first, end, source_row, inside, sources):
        self.rows, self.size, last = slice(first, end), end - first, sources - 1
        self.source_row, self.outside = torch.from_numpy(source_row), torch.from_numpy(np.flatnonzero(~inside))
        # For the gradient: which of the rows * 3 columns each row of the previous layer went into, as bags. They are
        # those of neighbouring rows, and one of the last row.
        used_by = np.flatnonzero(inside)[np.argsort(source_row[inside], kind="stable")]
        used = source_row[used_by]
        others = used[used < last]
        begin, stop = (others[0], others[-1] + 1) if len(others) else (0, 0)
        self.sources = slice(begin, stop)
        offset = np.searchsorted(used, np.append(np.arange(begin, stop), last))
        self.used_by = torch.from_numpy(used_by), torch.from_numpy(offset)

    def columns(self, rows):
        # [*, C] -> [rows, 3*C]
        return rows.index_select(0, self.source_row).index_fill_(0, self.outside, 0).view(self.size, -1)

    def add_gradient(self, grad_columns, grad_rows):
        """Add [rows, 3*C] to [*, C], each to the row that it is a copy of."""
        index, offset = self.used_by
        sums = F.embedding_bag(index, grad_columns.reshape(len(self.source_row), -1), offset, mode="sum")
        grad_rows[self.sources] += sums[:-1]
        grad_rows[-1] += sums[-1]


class _Convolve(torch.autograd.Function):
    """Gathers its columns again for the gradient, which is cheaper than to keep three copies of its input."""

    @staticmethod
    def forward(ctx, rows, weight, bias, cells):
        # The type of the result is the convolution's: autocast may cast in between.
        images = (F.relu_(_along(tile.columns(rows), weight, bias)) for tile in cells.tiles)
        result = joined([_rows(image) for image in images])
        ctx.cells = cells
        ctx.save_for_backward(rows, weight, result)
        return result

    @staticmethod
    def backward(ctx, grad):
        rows, weight, result = ctx.saved_tensors
        grad_rows, grad_weight, grad_bias = torch.zeros_like(rows, dtype=grad.dtype), 0, 0
        rows, back = rows.to(grad.dtype), weight.to(grad.dtype).flip(3).transpose(0, 1)
        for tile in ctx.cells.tiles:
            own = through_relu(grad[tile.rows], result[tile.rows])
            # [3 * O, M]: the gradient of the cell after each one, of itself, and of the cell before
            shifted = F.pad(own.t(), (1, 1))
            shifted = torch.cat([shifted[:, 2:], shifted[:, 1:-1], shifted[:, :-2]])
            grad_weight = grad_weight + product(shifted, tile.columns(rows).t())
            grad_bias = grad_bias + own.sum(0)
            tile.add_gradient(_rows(_along(own, back, None)), grad_rows)
        grad_weight = grad_weight.view(3, grad.shape[1], -1).permute(1, 2, 0)
        return grad_rows, grad_weight.unsqueeze(2), grad_bias, None


def _along(rows, weight, bias):
    """One-dimensional convolution along [M, C] -> [1, O, 1, M]; as an image of one line, channels last, no copy."""
    return F.conv2d(rows.view(1, 1, len(rows), -1).permute(0, 3, 1, 2), weight, bias, padding=(0, 1))


def _rows(image):
    # [1, O, 1, M] -> [M, O]
    return image.permute(0, 2, 3, 1).reshape(image.shape[3], -1)


def _proposal_rows(tscale, layout, max_duration):
    """The map: which row belongs to a cell; all cells that are no proposal have the last."""
    start, end = proposals(tscale, max_duration)
    lines = max_duration if max_duration and LAYOUTS[layout].duration_first else tscale
    row = np.full((lines, tscale), len(start))
    row[map_cell(layout, start, end)] = np.arange(len(start))
    return row


def _cells_by_pair(tscale, layout, max_duration):
    """int64 [T*T]: the cell of the flat map for each pair [start, end].

    In a map of durations, the cells that are no proposal go to the pairs with start > end, each to one. A pair that
    has no cell, because it is too long, gets cell 0.
    """
    start, end = np.indices((tscale, tscale))
    if not LAYOUTS[layout].duration_first:
        return (start * tscale + end).ravel()
    duration = (end - start) % tscale
    return np.where(duration < (max_duration or tscale), duration * tscale + start, 0).ravel()


def _neighbourhood(wanted):
    padded = np.pad(wanted, 1, "constant")
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def _runs(wanted):
    """line, column of the wanted cells row by row, each run of neighbours with one more cell at either end."""
    edges = np.diff(np.pad(wanted, ((0, 0), (1, 1)), "constant").astype(np.int8), axis=1)
    line, first = np.nonzero(edges == 1)
    last = np.nonzero(edges == -1)[1]
    length = last - first + 2
    within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    return np.repeat(line, length), np.repeat(first - 1, length) + within
