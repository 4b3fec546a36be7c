"""Boundary matching (BMN, Lin et al., ICCV 2019, section 3.3) without the boundary-matching map.

The paper samples N positions of every channel for every proposal (s, e), a map of C x N x T x T numbers a video (82
million at the defaults), and contracts channels and samples with a Conv3d. Both steps are linear, so the order is free:

    out[o, p] = sum_{n,t} W[t, n, p] * Y[t, n, o],    Y[t, n, o] = sum_c V[o, c, n] * x[c, t]

where p counts the P = T(T+1)/2 proposals s <= e row by row, W are the sampling weights (bmn/sampling.py) and V is the
Conv3d's weight.
Y, the table, is one small matrix product; the rest is a product with W, of which 3 % is not zero. The map never exists.
"""
import functools
from typing import Any, Callable, List, Tuple

import numpy as np
import torch
from torch.nn import functional as F

from bmn.sampling import proposals, sampling_weights

DENSE_AT_MOST = 2 ** 27     # weights; 2 ** 24 at the defaults, 2 ** 30 at T = 400


class BoundaryMatching:
    """Samples a table at every proposal: out[p] = sum_{t,n} W[t, n, p] * table[t * N + n].

    This is no module: W follows from four options, so it is no part of a checkpoint. The form that a device and a type
    need is built at its first use.

    Args:
        tscale, num_sample, num_sample_perbin, ratio: as in :func:`sampling_weights`.
        contraction: "bags", "dense", or "auto": what :meth:`uses_bags` finds best.
        layout, max_duration: as in :func:`sampling_weights`.
    """

    def __init__(self, tscale: int, num_sample: int, num_sample_perbin: int, ratio: float, contraction: str = "auto",
                 layout: str = "reference", max_duration: int = 0):
        self.options = tscale, num_sample, num_sample_perbin, ratio, contraction, layout, max_duration
        self.contraction = contraction
        self.num_sample = num_sample
        self.rows, self.proposals = tscale * num_sample, len(proposals(tscale, max_duration)[0])
        proposal, n, t, weight = sampling_weights(tscale, num_sample, num_sample_perbin, ratio, layout, max_duration)
        self.cell = torch.from_numpy(proposal * self.rows + t * num_sample + n)     # in W as [P, T*N], ascending in p
        self.weight = torch.from_numpy(weight)
        self._constants = DeviceConstants()

    def __reduce__(self):
        return type(self), self.options         # copied and pickled as its options, and built again

    def __call__(self, table: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """The contracted samples plus the Conv3d's bias.

        Args:
            table: [T*N, O] or [B, T*N, O].
            bias: [O].

        Returns:
            [P + 1, O] or [B, P + 1, O]; the last row is that of the cells with start > end, which sample nothing.
        """
        bias = bias.to(table.dtype)
        if not self.uses_bags(table):
            return torch.matmul(self._dense(table), table) + bias
        if table.dim() == 3:
            return torch.stack([self(video, bias) for video in table.unbind(0)])
        return _WeightedBags.apply(table, bias, *self.bags(table))

    def ways(self, device: torch.device, dtype: Any) -> List[str]:
        """The contractions that can be used there, "bags" or "dense": dense where its weights are not too many."""
        bags = _has_bags(device.type, dtype)
        return ["bags"] * bags + ["dense"] * (not bags or self.rows * self.proposals <= DENSE_AT_MOST)

    def uses_bags(self, table: torch.Tensor) -> bool:
        """Whether to take the weights that are not zero, or a dense matrix product with all of them.

        Dense: on an NPU, in an exported graph, and where this PyTorch has no bags for the type. On a card main.py
        measures (bmn/network/contraction.py). For those who do not: in 16 bit on CUDA up to a size, where tensor cores
        should do the 30-fold arithmetic faster than memory serves a sparse gather.
        """
        if self.contraction != "auto":
            return self.contraction == "bags"
        if exporting() or table.device.type not in ("cpu", "cuda"):
            return False
        if table.device.type == "cuda" and table.dtype in (torch.float16, torch.bfloat16):
            return self.rows * self.proposals > DENSE_AT_MOST
        return _has_bags(table.device.type, table.dtype)

    def _dense(self, table):
        return self._constants("dense", table.device, table.dtype, self._build_dense)

    def _build_dense(self, device, dtype):
        weights = torch.zeros((self.proposals + 1) * self.rows).scatter(0, self.cell, self.weight)
        return weights.view(-1, self.rows).to(device, dtype)

    def bags(self, table: torch.Tensor) -> Tuple[tuple, tuple]:
        """For :meth:`weighted_sums`, on the device and in the type of ``table``: bags of its rows for each proposal,
        and bags of proposals for each row, which give the gradient."""
        return self._constants("bags", table.device, table.dtype, self._build_bags)

    @staticmethod
    def weighted_sums(rows: torch.Tensor, bags: tuple) -> torch.Tensor:
        """A weighted sum of ``rows`` [R, O] for each bag: [bags, O]."""
        index, offset, weight = bags
        return F.embedding_bag(index, rows, offset, mode="sum", per_sample_weights=weight)

    def _build_bags(self, device, dtype):
        proposal, row = np.divmod(self.cell.numpy(), self.rows)
        order = np.argsort(row.astype(np.min_scalar_type(self.rows)), kind="stable")        # radix sort up to 16 bit
        weight = self.weight.to(device, dtype)
        return (_bags(proposal, self.proposals + 1, row, weight),
                _bags(row[order], self.rows, proposal[order], weight[torch.from_numpy(order).to(device)]))


class DeviceConstants:
    """Constants in the forms that devices and types need: built at first use, neither copied nor stored."""

    def __init__(self):
        self.built = {}

    def __call__(self, name: str, device: torch.device, dtype: Any, build: Callable) -> Any:
        if exporting():         # part of the graph, so that the file holds what they are built from: a tenth of them
            return build(device, dtype)
        key = name, str(device), dtype
        if key not in self.built:
            # What is built within inference_mode could not serve a training later.
            with torch.inference_mode(False) if hasattr(torch, "inference_mode") else torch.enable_grad():
                self.built[key] = build(device, dtype)
        return self.built[key]


class _WeightedBags(torch.autograd.Function):
    """Every row of the result is a weighted sum of rows of the table, and the other way round in the gradient."""

    @staticmethod
    def forward(ctx, table, bias, forward_bags, backward_bags):
        # table [T*N, O] -> [P + 1, O]
        ctx.backward_bags = backward_bags
        return BoundaryMatching.weighted_sums(table.detach(), forward_bags).add_(bias)

    @staticmethod
    def backward(ctx, grad):
        return BoundaryMatching.weighted_sums(grad.contiguous(), ctx.backward_bags), grad.sum(0), None, None


def _bags(bag, number, index, weight):
    """(index, offset, weight) of ``number`` bags on the weights' device; ``bag`` is sorted and may skip some."""
    offset = np.searchsorted(bag, np.arange(number))
    # 32-bit indices, where this PyTorch takes them: less to read beside the rows.
    dtype = torch.int32 if _has_bags(weight.device.type, weight.dtype, torch.int32) else torch.int64
    return (*(torch.from_numpy(part).to(weight.device, dtype) for part in (index, offset)), weight)


@functools.lru_cache(maxsize=None)
def _has_bags(device_type, dtype, index_dtype=torch.int64):
    zero = torch.zeros(1, dtype=index_dtype, device=device_type)
    one = torch.ones(1, 1, dtype=dtype, device=device_type)
    try:
        F.embedding_bag(zero, one, zero, mode="sum", per_sample_weights=one[0])
    except RuntimeError:
        return False
    return True


def exporting() -> bool:
    """Whether the network is being traced into a graph for a file."""
    compiler = getattr(torch, "compiler", None)
    return bool(torch._C._get_tracing_state() or getattr(compiler, "is_exporting", bool)())
