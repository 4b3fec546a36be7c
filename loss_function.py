"""The BMN losses (Lin et al., ICCV 2019, section 3.4): TEM for the boundaries, PEM for the confidence map.

total = TEM + 10 PEM-reg + PEM-cls. Each of the three equals the reference's wherever that is finite. Where positives
are missing, the reference divides by zero, and here the term is 0 with a zero gradient. The host never waits for the
device, because the counts that decide this stay tensors. They are used as factors and not in a ``where``, because the
gradient of a ``where`` over a NaN would be NaN.
"""
from typing import Optional, Sequence, Tuple

import torch
import torch.nn.functional as F

EPSILON = 1e-6      # keeps the logarithms finite


def get_mask(tscale: int, max_duration: int = 0) -> torch.Tensor:
    """float32 T x T, 1 at the cells of the confidence map that are proposals (start <= end), else 0.

    With ``max_duration`` only proposals of at most so many positions count.
    """
    mask = torch.triu(torch.ones(tscale, tscale))
    return torch.tril(mask, max_duration - 1) if max_duration else mask


def within_length(rows: torch.Tensor, tscale: int) -> torch.Tensor:
    """bool B x T: which positions of each video are rows of its features; the others, after ``rows`` [B], are padding.
    """
    return torch.arange(tscale, device=rows.device) < rows[:, None]


def bmn_loss_func(pred_bm: torch.Tensor, pred_start: torch.Tensor, pred_end: torch.Tensor, gt_iou_map: torch.Tensor,
                  gt_start: torch.Tensor, gt_end: torch.Tensor, bm_mask: torch.Tensor,
                  draws: Optional[Sequence[torch.Tensor]] = None, rows: Optional[torch.Tensor] = None,
                  max_duration: int = 0
                  ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The BMN loss of a batch and its parts.

    Args:
        pred_bm: confidence map, B x 2 x T x T in [0, 1]: channel 0 regression, 1 classification; [start, end].
        pred_start, pred_end: boundary probabilities, B x T.
        gt_iou_map: labels of the map, B x T x T.
        gt_start, gt_end: labels of the boundaries, B x T.
        bm_mask: ``get_mask(T)`` or ``get_mask(T, D)``, on the same device as the other tensors.
        draws: (u1, u2), each B x T x T and uniform in [0, 1). They decide which cells of middle and of low IoU count in
            PEM-reg. None draws them on the device.
        rows: int B, positions of each video that are no padding. Padding counts nowhere: the losses are those of maps
            that end with their video. None: there is no padding.
        max_duration: D of ``bm_mask``. With it, cells that are no proposal are not computed, and count nowhere either.

    Returns:
        (total, tem, pem_reg, pem_cls), scalars.
    """
    there = everywhere = None           # B x T and B x T x T, 1 at what counts; None: all of it
    if rows is not None:
        there = within_length(rows, gt_start.shape[1]).to(bm_mask.dtype)
        everywhere = there[:, :, None] * there[:, None, :]
        bm_mask = bm_mask * everywhere
    if max_duration:
        everywhere = bm_mask
    gt_iou_map = gt_iou_map * bm_mask
    if draws is None:
        draws = torch.rand_like(gt_iou_map), torch.rand_like(gt_iou_map)
    tem = _tem_loss(pred_start, pred_end, gt_start, gt_end, there)
    pem_reg = _pem_reg_loss(pred_bm[:, 0], gt_iou_map, bm_mask, draws, everywhere)
    pem_cls = _pem_cls_loss(pred_bm[:, 1], gt_iou_map, bm_mask)
    return tem + 10 * pem_reg + pem_cls, tem, pem_reg, pem_cls


def _tem_loss(pred_start, pred_end, gt_start, gt_end, there):
    """Equation 4: balanced logistic regression of both boundaries; 0 where either has no positive or no negative."""
    (start_loss, start_counts), (end_loss, end_counts) = (
        _balanced_log_loss(pred, _counted(label > 0.5, there), _counted(label <= 0.5, there))
        for pred, label in ((pred_start, gt_start), (pred_end, gt_end)))
    return (start_loss + end_loss) * (start_counts * end_counts)


def _counted(cells, there):
    """Those of the ``cells`` that count."""
    return cells if there is None else cells & (there > 0)


def _pem_cls_loss(pred, iou_map, mask):
    """Classification of IoU over 0.9, balanced in the same way; 0 where no cell is over 0.9, or all are."""
    loss, counts = _balanced_log_loss(pred, iou_map > 0.9, (iou_map <= 0.9) & (mask > 0))
    return loss * counts


def _balanced_log_loss(pred, positive, negative):
    """(weighted logistic loss over both sets of cells, 1 where both sets have members and else 0).

    With q = entries / positives, a positive weighs q / 2 and a negative q / (2 (q - 1)), so that both sets have the
    same total weight.
    """
    positive, negative = positive.to(pred.dtype), negative.to(pred.dtype)
    num_positive = positive.sum()
    num_entries = num_positive + negative.sum()
    counts = ((num_positive > 0) & (num_positive < num_entries)).to(pred.dtype)
    q = num_entries / (num_positive * counts + (num_entries / 2) * (1 - counts)).clamp(min=EPSILON)
    loss = (0.5 * q * torch.log(pred + EPSILON) * positive
            + 0.5 * q / (q - 1) * torch.log(1 - pred + EPSILON) * negative)
    return -loss.sum() / num_entries, counts


def _pem_reg_loss(pred, iou_map, mask, draws, everywhere):
    """Regression of the IoU on all cells over 0.7, and on about as many of 0.3 to 0.7 and of 0 to 0.3.

    As in the reference, every cell is compared with its draw. Where a class has fewer cells than ``high``, the ratio
    exceeds 1 or is infinite, and every cell of the map counts once more. Where the ratio is 0 / 0, no cell is added.
    """
    high = iou_map > 0.7
    middle = (iou_map <= 0.7) & (iou_map > 0.3)
    low = (iou_map <= 0.3) & (iou_map > 0) & (mask > 0)
    weights = high.to(pred.dtype)
    num_high = weights.sum()
    for members, uniform in zip((middle, low), draws):
        cells = members.to(pred.dtype)
        weights = weights + _counted(cells * uniform > 1 - num_high / cells.sum(), everywhere).to(pred.dtype)
    num_weighted = weights.sum()
    empty = (num_weighted == 0).to(pred.dtype)      # 1 where no cell is over 0.7; then the sum of squares is 0 too
    squares = F.mse_loss(pred * weights, iou_map * weights, reduction="sum")
    return 0.5 * squares / (num_weighted + empty)
