"""Losses: compared with the reference's figures and a plain oracle, and where the reference divides by zero."""
import formulas
import numpy as np
import pytest
import torch

from loss_function import bmn_loss_func, get_mask


def case_tensors(golden, c):
    """Predictions, labels and draws of golden case c."""
    loss, labels = golden("loss.npz"), golden("labels.npz")
    rows = slice(*loss["%d/rows" % c])
    n, t = labels["start"][rows].shape
    random = np.random.RandomState(int(loss["%d/seed" % c]))
    draws = tuple(torch.from_numpy(random.rand(n, t, t).astype(np.float32)) for _ in range(2))
    pred = [torch.from_numpy(formulas.smooth(shape, key + c)).requires_grad_()
            for shape, key in (((n, 2, t, t), 300), ((n, t), 310), ((n, t), 320))]
    gt = [torch.from_numpy(labels[key][rows]) for key in ("iou_map", "start", "end")]
    return pred, gt, draws


@pytest.mark.parametrize("c", range(5))
def test_equals_reference(golden, c):
    figures = golden("loss.npz")
    pred, gt, draws = case_tensors(golden, c)
    losses = bmn_loss_func(*pred, *gt, get_mask(100), draws=draws)
    wanted = figures["%d/loss" % c].copy()
    if np.isnan(wanted).any():              # the total without the undefined terms
        wanted = np.nan_to_num(wanted)
        wanted[0] = wanted[1] + 10 * wanted[2] + wanted[3]
    np.testing.assert_allclose([v.item() for v in losses], wanted, rtol=2e-5, atol=1e-7)
    losses[0].backward()
    for p in pred:
        assert torch.isfinite(p.grad).all()
    if not np.isnan(figures["%d/loss" % c]).any():
        for p, key, cells in zip(pred, ("grad_map", "grad_start", "grad_end"), (np.s_[:, :, ::7, ::7], ..., ...)):
            want = figures["%d/%s" % (c, key)]
            np.testing.assert_allclose(p.grad.numpy()[cells], want, atol=2e-5 * abs(want).max() + 1e-12)
        norm = float(pred[0].grad.double().norm())
        assert norm == pytest.approx(float(figures["%d/gradnorm_map" % c]), rel=2e-5)


def oracle(pred_bm, pred_start, pred_end, iou, start, end, u1, u2):
    """The rules cell by cell in float64; None for a term that has no positives."""
    eps, t = 1e-6, iou.shape[-1]
    cells = [(b, s, e) for b in range(len(iou)) for s in range(t) for e in range(s, t)]

    def log_loss(p, positive, total):
        num = sum(positive)
        if num in (0, total):
            return None
        q = total / num
        return -sum(0.5 * q * np.log(x + eps) if y else 0.5 * q / (q - 1) * np.log(1 - x + eps)
                    for x, y in zip(p, positive)) / total

    def boundary(p, label):
        return log_loss(p.ravel(), list(label.ravel() > 0.5), label.size)

    parts = boundary(pred_start, start), boundary(pred_end, end)
    tem = None if None in parts else sum(parts)
    cls = log_loss([pred_bm[b, 1, s, e] for b, s, e in cells], [iou[b, s, e] > 0.9 for b, s, e in cells], len(cells))

    upper = np.triu(np.ones((t, t)))
    iou = iou * upper
    high = iou > 0.7
    weights = high.astype(float)
    for members, u in (((iou > 0.3) & (iou <= 0.7), u1), ((iou > 0) & (iou <= 0.3), u2)):
        if members.sum():
            threshold = 1 - high.sum() / members.sum()
        else:
            threshold = -np.inf if high.sum() else np.inf
        weights += np.where(members, u, 0.0) > threshold
    reg = 0.5 * ((pred_bm[:, 0] * weights - iou * weights) ** 2).sum() / weights.sum() if high.any() else None
    return tem, reg, cls


@pytest.mark.parametrize("trial", range(30))
def test_equals_plain_oracle(trial):
    random = np.random.RandomState(trial)
    b, t = random.randint(1, 4), random.randint(2, 9)
    pred_bm, pred_start, pred_end = random.rand(b, 2, t, t), random.rand(b, t), random.rand(b, t)
    iou, start, end = random.rand(b, t, t) ** random.randint(1, 6), random.rand(b, t), random.rand(b, t)
    if trial % 2:           # many labels lie on a bound: 0.3, 0.5, 0.7, 0.9
        iou, start, end = (np.round(labels, 1) for labels in (iou, start, end))
    u = random.rand(2, b, t, t)
    tensors = [torch.from_numpy(v) for v in (pred_bm, pred_start, pred_end, iou, start, end)]
    got = bmn_loss_func(*tensors, get_mask(t).double(), draws=tuple(torch.from_numpy(u)))
    want = [0.0 if v is None else v for v in oracle(pred_bm, pred_start, pred_end, iou, start, end, *u)]
    np.testing.assert_allclose([float(v) for v in got[1:]], want, rtol=1e-9)
    assert float(got[0]) == pytest.approx(want[0] + 10 * want[1] + want[2])


@pytest.mark.parametrize("trial", range(20))
def test_padding_counts_nowhere(trial):
    """Losses and gradients are those of maps that end with their video, whatever the padding holds."""
    random = np.random.RandomState(trial)
    b, t, duration = random.randint(1, 4), random.randint(2, 9), random.choice([0, 0, 2])
    rows = random.randint(1, t + 1)
    arrays = [random.rand(b, 2, t, t), random.rand(b, t), random.rand(b, t),
              random.rand(b, t, t) ** random.randint(1, 6), random.rand(b, t), random.rand(b, t)]
    u = random.rand(2, b, t, t)

    def losses(size, **more):
        tensors = [torch.from_numpy(one[..., :size, :size] if one.ndim > 2 else one[:, :size]) for one in arrays]
        for one in tensors[:3]:
            one.requires_grad_()
        found = bmn_loss_func(*tensors, get_mask(size, min(duration, size)).double(),
                              draws=tuple(torch.from_numpy(u[..., :size, :size])), max_duration=min(duration, size),
                              **more)
        return [one.item() for one in found], torch.autograd.grad(found[0], tensors[:3])

    padded, gradients = losses(t, rows=torch.full((b,), rows, dtype=torch.int64))
    alone, wanted = losses(rows)
    np.testing.assert_allclose(padded, alone, rtol=1e-12)
    for found, one in zip(gradients, wanted):
        cut = found[..., :rows, :rows] if found.dim() > 2 else found[:, :rows]
        np.testing.assert_allclose(cut, one, rtol=1e-12)
        assert float(found.abs().sum()) == pytest.approx(float(cut.abs().sum()))


def test_videos_of_a_batch_have_paddings_of_their_own():
    """What differs only in its padding has the same losses, and a position more or less is another loss."""
    random, t, rows = torch.Generator().manual_seed(0), 6, torch.tensor([6, 2, 4])
    tensors = [torch.rand(shape, generator=random) for shape in (
        (3, 2, t, t), (3, t), (3, t), (3, t, t), (3, t), (3, t), (3, t, t), (3, t, t))]
    other = [one.clone() for one in tensors]
    for video, first in enumerate(rows.tolist()):
        for one in other:
            one[video, ..., first:] = 0.25
            if one.dim() > 2:
                one[video, ..., first:, :] = 0.75
    found, same = (bmn_loss_func(*one[:6], get_mask(t), one[6:], rows) for one in (tensors, other))
    assert [float(one) for one in found] == pytest.approx([float(one) for one in same], rel=1e-6)
    shorter = bmn_loss_func(*tensors[:6], get_mask(t), tensors[6:], rows - 1)
    assert all(abs(float(one) - float(two)) > 1e-4 for one, two in zip(found, shorter))


@pytest.mark.parametrize("duration", [1, 3])
def test_what_is_too_long_counts_nowhere(duration):
    random, t = torch.Generator().manual_seed(1), 6
    tensors = [torch.rand(shape, generator=random) for shape in (
        (2, 2, t, t), (2, t), (2, t), (2, t, t), (2, t), (2, t), (2, t, t), (2, t, t))]
    kept = get_mask(t, duration)
    other = [one * kept + 0.3 * (1 - kept) if one.dim() > 2 else one for one in tensors]
    found, same = (bmn_loss_func(*one[:6], kept, one[6:], max_duration=duration) for one in (tensors, other))
    assert [float(one) for one in found] == [float(one) for one in same]


@pytest.mark.parametrize("start_level", [0.0, 1.0])
def test_no_positives_give_zero_losses_and_zero_gradients(start_level):
    t = 6
    pred = [torch.rand(shape, requires_grad=True) for shape in ((1, 2, t, t), (1, t), (1, t))]
    labels = torch.zeros(1, t, t), torch.full((1, t), start_level), torch.zeros(1, t)
    losses = bmn_loss_func(*pred, *labels, get_mask(t))
    assert [v.item() for v in losses] == [0, 0, 0, 0]
    losses[0].backward()
    for p in pred:
        assert p.grad is not None and (p.grad == 0).all()


def test_a_diverged_network_is_not_hidden():
    t = 4
    nan = torch.full((1, 2, t, t), float("nan"))
    losses = bmn_loss_func(nan, torch.rand(1, t), torch.rand(1, t), torch.zeros(1, t, t), torch.zeros(1, t),
                           torch.zeros(1, t), get_mask(t))
    assert not torch.isfinite(losses[0])


def test_draws_come_from_the_generator():
    t = 12
    pred = torch.rand(2, 2, t, t), torch.rand(2, t), torch.rand(2, t)
    labels = torch.rand(2, t, t) * 0.75, torch.rand(2, t), torch.rand(2, t)     # few cells over 0.7: draws decide
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(float(bmn_loss_func(*pred, *labels, get_mask(t))[2]))
    assert results[0] == results[1] != results[2]
