"""Matrix products on a CPU by the library's fastest routine.

PyTorch computes float32 products with MKL's sgemm, which on AMD processors reaches half of the rate (with AVX-512) or
four fifths of it (with AVX2) at which oneDNN convolves. oneDNN's own products are as fast as its convolutions, take
transposed matrices as they are. PyTorch offers them for compiled graphs under a private name. Where that is missing,
or refuses the type, the usual function computes the same to rounding.
"""
import functools
from typing import Optional

import torch
from torch.nn import functional as F


def product(rows: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor] = None) -> torch.Tensor:
    """``rows`` times the transposed ``weight``, plus ``bias``. It computes no gradient.

    oneDNN could add a ReLU, but its ReLU turns NaN into 0, and a failed training would go on.

    Args:
        rows: [M, K], contiguous or the transposition of a contiguous matrix, because oneDNN crawls on others.
        weight: [O, K], likewise.
        bias: [O].

    Returns:
        [M, O].
    """
    if rows.device.type == "cpu" and _has_onednn(rows.dtype):
        return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return F.linear(rows, weight, bias)


@functools.lru_cache(maxsize=None)
def _has_onednn(dtype):
    matrix = torch.eye(2, dtype=dtype)
    try:
        found = torch.ops.mkldnn._linear_pointwise(matrix, matrix.t(), matrix[0], "none", [], "")
    except (AttributeError, RuntimeError, TypeError):       # an old PyTorch, or not for this type
        return False
    return torch.equal(found, matrix + matrix[0])
