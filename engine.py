"""The loops over batches: one epoch of training, validation, inference.

They know no device, no process group and no file: ``runtime`` (device.py) moves, waits and sums, ``precision``
(amp.py) casts and steps. The host waits for the device only where something is logged.
"""
import time

import torch

from bmn.errors import UserError
from loss_function import bmn_loss_func

WARM_UP = 5             # iterations that are not timed where there are more: kernels are chosen, caches filled
LOSSES = ("total", "tem", "pem_reg", "pem_cls")


def train_one_epoch(model, loader, optimizer, precision, runtime, bm_mask, epoch, log_every, profiler=None):
    """Train on every batch of ``loader`` once.

    Args:
        model: the network, or its parallel wrapper.
        loader: yields (features B x C x T, IoU map B x T x T, start B x T, end B x T); has a length.
        bm_mask: ``get_mask(T)`` on the device.
        log_every: iterations between two lines of progress.
        profiler: has ``step()``, called after each iteration.

    Returns:
        dict: ``losses`` {name: mean over iterations and ranks}, ``iterations``, ``time`` and ``data_time`` (seconds
        of the timed iterations, and of them spent waiting for data), ``fps`` (samples of all ranks a second).

    Raises:
        UserError: a loss is not finite.
    """
    model.train()
    history, checked = [], 0                # losses of each iteration, on the device, and how many were looked at
    iterations = len(loader)
    warm_up = WARM_UP if iterations > WARM_UP else 0
    timed_samples, data_time = 0, 0.0
    began = waiting_since = time.perf_counter()
    for iteration, batch in enumerate(loader):
        if iteration == warm_up:
            runtime.synchronize()
            timed_samples, data_time = 0, 0.0
            began = waiting_since = time.perf_counter() if warm_up else began
        data_time += time.perf_counter() - waiting_since
        losses = _loss_of(model, batch, precision, runtime, bm_mask)
        precision.step(losses[0], optimizer)
        history.append(torch.stack(losses).detach())
        timed_samples += len(batch[0]) * runtime.world_size
        if profiler is not None:
            profiler.step()
        if (iteration + 1) % log_every == 0 or iteration + 1 == iterations:
            recent = _finite_mean(history[checked:], runtime, epoch, checked)      # waits for the device
            checked = len(history)
            _log_progress(runtime, epoch, iteration, iterations, recent, data_time, time.perf_counter() - began,
                          iteration + 1 - warm_up)
        waiting_since = time.perf_counter()
    runtime.synchronize()
    elapsed = time.perf_counter() - began
    mean = runtime.all_reduce_sum(torch.stack(history).sum(0)) / (len(history) * runtime.world_size)
    return {"losses": dict(zip(LOSSES, mean.tolist())), "iterations": iterations, "time": elapsed,
            "data_time": data_time, "fps": timed_samples / elapsed}


def _loss_of(network, batch, precision, runtime, bm_mask, draws=None):
    """The four losses of one batch; the network's outputs go to float32 first, logarithms want it.

    The whole map, not ``valid_only``: where PEM-reg takes every cell (see there), the others count in the loss.
    """
    features, iou_map, start, end = (value.to(runtime.device, non_blocking=True) for value in batch)
    with precision.autocast():
        confidence_map, start_score, end_score = network(features)
    return bmn_loss_func(confidence_map.float(), start_score.float(), end_score.float(), iou_map, start, end, bm_mask,
                         draws=draws)


def _finite_mean(losses, runtime, epoch, first):
    """Mean losses {name: value} over the given iterations and all ranks; UserError where one is not finite.

    Every rank sees the same sums, so all of them stop together.
    """
    rows = (runtime.all_reduce_sum(torch.stack(losses)) / runtime.world_size).cpu()
    broken = ~torch.isfinite(rows).all(dim=1)
    if broken.any():
        at = int(broken.nonzero()[0])
        raise UserError("the loss of epoch %d, iteration %d is not finite (%s): lower --training_lr, or look for "
                        "extreme values in the features"
                        % (epoch, first + at, ", ".join("%s %g" % pair for pair in zip(LOSSES, rows[at].tolist()))))
    return dict(zip(LOSSES, rows.mean(0).tolist()))


def _log_progress(runtime, epoch, iteration, iterations, losses, data_time, elapsed, timed):
    if timed <= 0:                          # still warming up: no figure worth printing
        return
    step = elapsed / timed
    runtime.log("epoch %d [%d/%d] loss %.3f (tem %.3f, pem_reg %.4f, pem_cls %.3f)  data %.0f ms  step %.0f ms  "
                "epoch ends in %s" % (epoch, iteration + 1, iterations, losses["total"], losses["tem"],
                                      losses["pem_reg"], losses["pem_cls"], 1000 * data_time / timed, 1000 * step,
                                      _clock(step * (iterations - iteration - 1))))


def _clock(seconds):
    return "%d:%02d:%02d" % (seconds // 3600, seconds // 60 % 60, seconds % 60)


def validate(network, loader, blocks, precision, runtime, bm_mask, seed):
    """Loss over all validation videos, each once: the mean of the blocks, weighted by their videos.

    The losses are normalised by batch, so it is computed in fixed blocks whose draws are seeded by (seed, block):
    it does not depend on the number of ranks.

    Args:
        network: the network itself, not its parallel wrapper: ranks may have different numbers of blocks.
        loader: yields the batches of ``blocks``, in order.
        blocks: {number: video indices}, those of this rank.

    Returns:
        dict: ``losses`` {name: mean}, ``iterations``: the number of blocks over all ranks.
    """
    network.eval()
    generator, rows = torch.Generator(), []
    with torch.no_grad():
        for number, batch in zip(blocks, loader):
            generator.manual_seed(seed * 1000003 + number)
            draws = [torch.rand(batch[1].shape, generator=generator).to(runtime.device) for _ in range(2)]
            rows.append(torch.stack(_loss_of(network, batch, precision, runtime, bm_mask, draws)))
    rows = torch.stack(rows).cpu().tolist() if rows else []
    mine = [(number, len(videos), row) for (number, videos), row in zip(blocks.items(), rows)]
    everyone = sorted(block for rank in runtime.gather(mine) for block in rank)
    videos = sum(count for _, count, _ in everyone)
    mean = [sum(count * row[i] for _, count, row in everyone) / videos for i in range(len(LOSSES))]
    return {"losses": dict(zip(LOSSES, mean)), "iterations": len(everyone)}


def infer(network, loader, precision, runtime):
    """Yield (video indices, confidence map B x 2 x T x T, start B x T, end B x T) of each batch, float32 arrays.

    ``loader`` yields (indices, features B x C x T).
    """
    network.eval()
    for indices, features in loader:
        with torch.no_grad(), precision.autocast():
            outputs = network(features.to(runtime.device, non_blocking=True), valid_only=True)
        yield (indices.tolist(),) + tuple(output.float().cpu().numpy() for output in outputs)
