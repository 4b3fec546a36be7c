"""Boundary matching (BMN, Lin et al. 2019, section 3.3) without the boundary-matching map.

The paper samples N positions of every channel for every proposal (s, e), which gives a map of C x N x T x T numbers a
video (82 million at the defaults), and contracts channels and samples with a Conv3d. Both steps are linear, so the
order is free:

    out[o, p] = sum_{n,t} W[t, n, p] * Y[t, n, o],    Y[t, n, o] = sum_c V[o, c, n] * x[c, t]

p counts the T(T+1)/2 proposals with s <= e in row order, W are the sampling weights, V is the Conv3d's weight. Y is
one small matrix product; the rest is a product with W, 3 % of whose entries are not zero. The big map never exists.
"""
import functools

import numpy as np
import torch
from torch.nn import functional as F

from errors import UserError


@functools.lru_cache(maxsize=8)
def sampling_entries(tscale, num_sample, num_sample_perbin, ratio):
    """The sampling weights W[t, n, s, e] that are not zero, sorted by proposal, then n, then t.

    A proposal (s, e), s <= e, covers [s, e + 1], widened by ``ratio`` of its length on either side; N * K points
    are spread evenly over that, and each of the N samples is the mean of K neighbouring points. A point between two
    positions belongs to both, by linear interpolation; what falls outside 0..T-1 is dropped.

    Args:
        tscale: T, positions of the feature sequence.
        num_sample: N, samples of a proposal.
        num_sample_perbin: K, points averaged into a sample.
        ratio: how far a proposal is widened.

    Returns:
        proposal, n, t: int64 arrays, proposal counting the pairs s <= e in row order; value: float32 array.

    Raises:
        UserError: N * K is 1, which leaves no step between points.
    """
    points = num_sample * num_sample_perbin
    if points < 2:
        raise UserError("--num_sample 1 with --num_sample_perbin 1 gives a single point to sample: raise one of them")
    start, end = np.triu_indices(tscale)
    margin = (end + 1.0 - start + 1.0) * ratio
    low, high = start - margin, end + 1.0 + margin
    # The order of these operations decides some entries of about 1e-15, which are part of the published weights.
    point = low[:, None] + ((high - low) / (points - 1.0))[:, None] * np.arange(points)     # [P, N*K]
    fraction, below = np.modf(point)        # signed: a point in (-1, 0) gives its whole weight to position 0
    t = np.stack([below, np.ceil(point)], -1).astype(np.int64)                              # [P, N*K, 2]
    share = np.stack([1 - fraction, fraction], -1)
    sample = np.repeat(np.arange(len(start) * num_sample), 2 * num_sample_perbin).reshape(t.shape)
    inside = (t >= 0) & (t < tscale)
    key, share = (sample * tscale + t)[inside], share[inside]
    # Points of a sample that meet in one position are added in their order, as float64, then rounded once.
    order = np.argsort(key, kind="stable")
    key, share = key[order], share[order]
    first = np.concatenate([[True], key[1:] != key[:-1]])
    value = (1.0 / num_sample_perbin * np.bincount(np.cumsum(first) - 1, share)).astype(np.float32)
    key = key[first][value != 0]
    sample, t = np.divmod(key, tscale)
    return np.divmod(sample, num_sample) + (t, value[value != 0])


def dense_weights(tscale, num_sample, num_sample_perbin, ratio):
    """W as the reference holds it: float32 array [T, N, T, T], indices t, n, s, e (128 MB at the defaults)."""
    proposal, n, t, value = sampling_entries(tscale, num_sample, num_sample_perbin, ratio)
    start, end = np.triu_indices(tscale)
    weights = np.zeros((tscale, num_sample, tscale, tscale), np.float32)
    weights[t, n, start[proposal], end[proposal]] = value
    return weights


class _Bags(torch.autograd.Function):
    """Every output row is a weighted sum of some rows of the table; so is every row of the table's gradient."""

    @staticmethod
    def forward(ctx, table, forth, back):
        # table [B, T*N, O] -> [B, P, O]; one video at a time, whose rows stay in the cache
        ctx.back = back
        return _weighted_bags(table, forth)

    @staticmethod
    def backward(ctx, grad):
        return _weighted_bags(grad, ctx.back), None, None


def _weighted_bags(table, bags):
    index, offset, weight = bags
    return torch.stack([F.embedding_bag(index, rows, offset, mode="sum", per_sample_weights=weight)
                        for rows in table.contiguous()])


class BoundaryMatching:
    """Samples a table Y[t, n, o] at every proposal; the Conv3d's contraction of samples is part of it.

    Not a module: its constants are no part of a checkpoint, and are made once per device and type.

    Args:
        tscale, num_sample, num_sample_perbin, ratio: as :func:`sampling_entries`.
        contraction: "bags" (weighted bags of rows, sparse), "dense" (one matrix product) or "auto".
    """

    def __init__(self, tscale, num_sample, num_sample_perbin, ratio, contraction="auto"):
        self.tscale, self.num_sample, self.num_proposals = tscale, num_sample, tscale * (tscale + 1) // 2
        self.contraction = contraction
        proposal, n, t, value = sampling_entries(tscale, num_sample, num_sample_perbin, ratio)
        self.proposal, self.row = torch.from_numpy(proposal), torch.from_numpy(t * num_sample + n)
        self.value = torch.from_numpy(value)
        self._made = {}

    def __call__(self, table):
        """table [B, T, N, O] -> [B, P, O], P proposals s <= e in row order."""
        table = table.flatten(1, 2)
        if self.uses_dense(table):
            return torch.matmul(self._weights(table), table)
        return _Bags.apply(table, *self._bags(table))

    def __getstate__(self):
        return dict(self.__dict__, _made={})        # the constants of a device are made anew where they are needed

    def __deepcopy__(self, memo):
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__getstate__())
        return copied

    def uses_dense(self, table):
        if self.contraction != "auto":
            return self.contraction == "dense"
        return _exporting() or not _bags_work(table.device.type, table.dtype)

    def _weights(self, table):
        def make():
            weights = torch.zeros(self.num_proposals * self.tscale * self.num_sample, device=table.device)
            place = self.proposal * (self.tscale * self.num_sample) + self.row
            weights = weights.scatter(0, place.to(table.device), self.value.to(table.device))
            return weights.view(self.num_proposals, -1).to(table.dtype)
        return make() if _exporting() else self._once("dense", table, make)

    def _bags(self, table):
        def make():
            order = np.argsort(self.row.numpy(), kind="stable")
            rows = self.tscale * self.num_sample
            return (_sorted_bags(self.proposal.numpy(), self.num_proposals, self.row.numpy(), self.value, table),
                    _sorted_bags(self.row.numpy()[order], rows, self.proposal.numpy()[order], self.value[order], table))
        return self._once("bags", table, make)

    def _once(self, what, table, make):
        key = (what, str(table.device), table.dtype)
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _sorted_bags(bag, number, index, value, table):
    offset = np.concatenate([[0], np.cumsum(np.bincount(bag, minlength=number))[:-1]])
    return (torch.from_numpy(index).to(table.device), torch.from_numpy(offset).to(table.device),
            value.to(table.device, table.dtype))


@functools.lru_cache(maxsize=None)
def _bags_work(device_type, dtype):
    """Whether this PyTorch has weighted bags for the type. An NPU has them only by falling back to the CPU."""
    if device_type not in ("cpu", "cuda"):
        return False
    zero = torch.zeros(1, dtype=torch.int64, device=device_type)
    one = torch.ones(1, 1, dtype=dtype, device=device_type)
    try:
        F.embedding_bag(zero, one, zero, mode="sum", per_sample_weights=one[0])
    except RuntimeError:
        return False
    return True


def _exporting():
    """Whether the network is being traced for a file, which has no weighted bags."""
    return bool(torch._C._get_tracing_state()
                or getattr(torch.onnx, "is_in_onnx_export", bool)()
                or getattr(getattr(torch, "compiler", None), "is_exporting", bool)())
