"""The BM layer on a CPU: from the features of positions to a row of 128 numbers for every proposal, block by block.

Projection, sampling, ReLU and the 1x1 convolution behind it are one step, with a gradient of its own. It takes BLOCK of
the 512 channels at a time: the table of a block, and its samples, stay in the cache of the core between two steps.
Sampling reads every row of a table about 150 times at T = 100, so this decides how fast it is (docs/performance.md).
"""
import itertools
from typing import Any, Sequence, Tuple

import torch

from bmn.network.products import product

BLOCK = 64          # channels; 32 and 128 are slower at T = 100, 200 and 400
PIECE = 2 ** 13     # proposals whose blocks are put side by side at once: 16 MB in float32


def proposal_rows(features: torch.Tensor, sampled: Any, reduction: Any, matching: Any) -> Sequence[torch.Tensor]:
    """What the Conv3d and the first 1x1 convolution, each with its ReLU, make of the samples of each video.

    Args:
        features: [B, T, C].
        sampled: the Conv3d, weight [O, C, N, 1, 1].
        reduction: the Conv2d, weight [R, O, 1, 1].
        matching: bmn.network.boundary_matching.BoundaryMatching, which has bags for the type of the features.

    Returns:
        B times [P + 1, R], where there are gradients; else the same one after the other. The last row is that of the
        cells with start > end, which sample nothing.
    """
    parts = sampled.weight, sampled.bias, reduction.weight, reduction.bias
    if torch.is_grad_enabled():
        return _ProposalRows.apply(features, *parts, matching)
    tables, biases, weight, bias = _in_type(features.dtype, *parts)
    bags = matching.bags(features)[0]
    return (_reduced(_samples(video, tables, biases, bags, matching), weight, bias)
            for video in features.contiguous())


class _ProposalRows(torch.autograd.Function):

    @staticmethod
    def forward(ctx, features, sampled, sampled_bias, reduction, reduction_bias, matching):
        ctx.matching, ctx.types = matching, [part.dtype for part in (sampled, sampled_bias, reduction, reduction_bias)]
        features = features.contiguous()
        tables, biases, weight, bias = _in_type(features.dtype, sampled, sampled_bias, reduction, reduction_bias)
        bags = matching.bags(features)[0]
        samples = [_samples(video, tables, biases, bags, matching) for video in features]
        rows = tuple(_reduced(one, weight, bias) for one in samples)
        ctx.save_for_backward(features, tables, weight, *rows, *itertools.chain(*samples))
        return rows

    @staticmethod
    def backward(ctx, *grads):
        features, tables, weight = ctx.saved_tensors[:3]
        videos, positions, channels = features.shape
        rows, samples = ctx.saved_tensors[3:3 + videos], ctx.saved_tensors[3 + videos:]
        bags = ctx.matching.bags(features)[1]
        grads = [through_relu(grad, row) for grad, row in zip(grads, rows)]
        blocks, flat = len(tables), features.view(-1, channels)
        samples = [samples[first:first + blocks] for first in range(0, len(samples), blocks)]
        grad_weight = sum(product(part.t(), piece.t()) for grad, one in zip(grads, samples)             # [R, O]
                          for part, piece in zip(grad.split(PIECE), _pieces(one)))
        grad_features, grad_biases = torch.zeros_like(flat), []
        outputs, width = weight.shape[1], tables.shape[1] // ctx.matching.num_sample
        grad_sampled = torch.empty(outputs, channels, ctx.matching.num_sample, dtype=ctx.types[0])
        table = features.new_empty(videos, positions, tables.shape[1])          # the gradient of a block's tables
        for number, weights in enumerate(tables):
            block, grad_bias = slice(number * width, (number + 1) * width), 0
            back = weight[:, block].t().contiguous()                            # [block, R]
            for video, grad in enumerate(grads):
                sums = through_relu(product(grad, back), samples[video][number])        # [P + 1, block]
                grad_bias = grad_bias + sums.sum(0)
                table[video] = ctx.matching.weighted_sums(sums, bags).view(positions, -1)
            grad_biases.append(grad_bias)
            whole = table.view(len(flat), -1)                                   # [B*T, N*block]
            grad_features += product(whole, weights.t())
            grad_sampled[block] = product(flat.t(), whole.t()).view(channels, -1, width).permute(2, 0, 1)
        return (grad_features.view(features.shape), grad_sampled[..., None, None],
                torch.cat(grad_biases).to(ctx.types[1]), grad_weight[..., None, None].to(ctx.types[2]),
                sum(grad.sum(0) for grad in grads).to(ctx.types[3]), None)


def through_relu(grad: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """The gradient of what a ReLU was given, from that of its ``result``."""
    return torch.ops.aten.threshold_backward(grad, result, 0)


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The rows of all parts; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _in_type(dtype, sampled, sampled_bias, reduction, reduction_bias) -> Tuple[torch.Tensor, ...]:
    """The weights in the order of the computation: tables [blocks, N * block, C], biases [blocks, block], [R, O], [R].

    Row n * block + o of a block gives number o of row t * N + n of its table.
    """
    outputs, channels = sampled.shape[:2]
    width = BLOCK if outputs % BLOCK == 0 else outputs
    tables = sampled.detach().to(dtype).view(outputs // width, width, channels, -1).permute(0, 3, 1, 2)
    return (tables.reshape(len(tables), -1, channels), sampled_bias.detach().to(dtype).view(-1, width),
            reduction.detach().to(dtype).flatten(1), reduction_bias.detach().to(dtype))


def _samples(features, tables, biases, bags, matching):
    """Features [T, C] of a video -> blocks of the contracted samples after their ReLU, each [P + 1, block]."""
    return [matching.weighted_sums(product(features, weights).view(-1, len(bias)), bags).add_(bias).clamp_(min=0)
            for weights, bias in zip(tables, biases)]


def _reduced(samples, weight, bias):
    """Blocks of samples [P + 1, block] -> [P + 1, R]."""
    return joined([torch.relu_(product(piece, weight, bias)) for piece in _pieces(samples)])


def _pieces(samples):
    """Blocks of samples [P + 1, block] -> pieces [at most PIECE, O]."""
    return (torch.cat(parts, 1) for parts in zip(*(block.split(PIECE) for block in samples)))
