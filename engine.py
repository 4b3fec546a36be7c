"""The loops over batches: one epoch of training, one validation, inference.

They know no device, no process group and no file: ``runtime`` (bmn/machine/device.py) moves, waits and sums, and
``precision`` (bmn/machine/amp.py) casts and steps. The host waits for the device only where something is logged; with
float16 it also waits once a step, because of the scaling of the loss.
"""
import functools
import math
import time
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional

import torch

from bmn.errors import UserError
from loss_function import bmn_loss_func, get_mask

WARM_UP = 5             # iterations that are not timed where there are more: kernels are chosen, caches filled
LOSSES = ("total", "tem", "pem_reg", "pem_cls")


class _Timer:
    """Samples and seconds of iterations, and how many of these seconds the loop waited for data.

    ``before`` is the :meth:`record` of an earlier part of the same epoch.
    """

    def __init__(self, before=None):
        self.before = before or {"samples": 0, "iterations": 0, "data_time": 0.0, "seconds": 0.0}
        self.samples, self.iterations = self.before["samples"], self.before["iterations"]
        self.data_time = self.before["data_time"]
        self.began = self.waiting_since = time.perf_counter()

    def data_arrived(self):
        self.data_time += time.perf_counter() - self.waiting_since

    def iteration_done(self, samples):
        self.samples += samples
        self.iterations += 1
        self.waiting_since = time.perf_counter()

    def elapsed(self):
        return time.perf_counter() - self.began + self.before["seconds"]

    def record(self):
        return {"samples": self.samples, "iterations": self.iterations, "data_time": self.data_time,
                "seconds": self.elapsed()}


def train_one_epoch(model: torch.nn.Module, training: Any, loader: Iterable, runtime: Any, pauses: Any,
                    keep: Callable[[Any, dict], None], begun: Optional[dict] = None,
                    profiler: Any = None) -> Dict[str, Any]:
    """Train on every batch of ``loader`` once.

    Args:
        model: the network of ``training``, or its parallel wrapper.
        training: bmn.training.training.Training.
        loader: yields (features B x C x T, IoU map B x T x T, start B x T, end B x T) of what is left of the epoch,
            and of windows also the number of rows before their padding, int B; has a length.
        pauses: bmn.machine.pauses.Pauses; it says after which steps to report, save or stop.
        keep: called with a pause and ``begun``, where the state is to be saved; does not return where the run stops.
        begun: of an interrupted epoch what ``keep`` got: ``steps`` (how many are done), ``losses`` float32 [steps, 4]
            (of this rank), ``timing``, and ``random_state``.
        profiler: has ``step()``, called after each iteration.

    Returns:
        dict: ``losses`` {name: mean over iterations and ranks}, ``iterations``, ``skipped`` (steps whose gradients
        overflowed), ``time`` and ``data_time`` (seconds of the timed iterations, and of them spent waiting for data),
        ``fps`` (samples of all ranks a second), ``begun`` (the epoch with all its steps, for ``keep``).

    Raises:
        UserError: a loss is not finite.
    """
    model.train()
    epoch, skipped = training.epochs_done, training.precision.skipped - (begun["timing"]["skipped"] if begun else 0)
    bm_mask = get_mask(training.network.temporal_scale, training.network.max_duration).to(runtime.device)
    left, first, timing, history = iter(loader), 0, None, []     # history: losses of each iteration, on the device
    if begun:
        first, timing = begun["steps"], begun["timing"]
        history = list(begun["losses"].to(runtime.device).unbind(0))
        runtime.set_random_state(begun["random_state"])     # after iter(), which draws a number as it did before
    checked, iterations, timer = first, first + len(loader), _Timer(timing)
    pauses.begin(first)
    for done in range(first + 1, iterations + 1):
        batch = _read(left, runtime)
        if done == first + WARM_UP + 1:
            runtime.synchronize()
            timer = _Timer(timing)
        timer.data_arrived()
        losses = _losses(model, batch, training.precision, runtime, bm_mask, training.network.max_duration)
        training.precision.step(losses[0], training.optimizer)
        history.append(torch.stack(losses).detach())
        if profiler is not None:
            profiler.step()
        timer.iteration_done(len(batch[0]) * runtime.world_size)
        pause = pauses.after(done)
        if pause and done < iterations:
            recent = _finite_mean(history[checked:], runtime, epoch, checked)      # waits for the device
            checked = done
            if pause.report:
                runtime.log(_progress(epoch, done, iterations, recent, timer))
            if pause.save or pause.stop:
                timed = timer.record() if done > first + WARM_UP else timer.before
                keep(pause, _begun(history, timed, training.precision.skipped - skipped, runtime))
            timer.waiting_since = time.perf_counter()
    runtime.synchronize()
    if checked < iterations:
        recent = _finite_mean(history[checked:], runtime, epoch, checked)
        runtime.log(_progress(epoch, iterations, iterations, recent, timer))
    begun = _begun(history, timer.record(), training.precision.skipped - skipped, runtime)
    elapsed = begun["timing"]["seconds"]
    mean = runtime.all_reduce_sum(torch.stack(history).sum(0)) / (len(history) * runtime.world_size)
    return {"losses": dict(zip(LOSSES, mean.tolist())), "iterations": iterations, "time": elapsed,
            "skipped": begun["timing"]["skipped"], "data_time": timer.data_time,
            "fps": timer.samples / elapsed, "begun": begun}


def _begun(history, timing, skipped, runtime):
    """What going on within the epoch needs beside the state of the training; ``keep`` in :func:`train_one_epoch`."""
    return {"steps": len(history), "losses": torch.stack(history).cpu(), "timing": dict(timing, skipped=skipped),
            "random_state": runtime.random_state()}


def _read(left, runtime):
    """The next item of an iterator, None after the last one. Meanwhile this process waits for nobody but its disk."""
    with runtime.alone():
        return next(left, None)


def _losses(network, batch, precision, runtime, bm_mask, max_duration, draws=None):
    """The four losses of one batch. The network's outputs go to float32 first, because of the logarithms.

    The network computes the whole map and not ``valid_only``, because PEM-reg at times takes every cell, below the
    diagonal too (loss_function._pem_reg_loss).
    """
    features, iou_map, start, end, *rows = (value.to(runtime.device, non_blocking=True) for value in batch)
    with precision.autocast():
        confidence_map, start_score, end_score = network(features)
    return bmn_loss_func(confidence_map.float(), start_score.float(), end_score.float(), iou_map, start, end, bm_mask,
                         draws, *(rows or [None]), max_duration)


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


def _progress(epoch, done, iterations, losses, timer):
    """The line of progress after ``done`` iterations."""
    step = timer.elapsed() / timer.iterations
    left = step * (iterations - done)
    return ("epoch %d [%d/%d] loss %.3f (tem %.3f, pem_reg %.4f, pem_cls %.3f)  data %.0f ms  step %.0f ms  "
            "epoch ends in %d:%02d:%02d"
            % (epoch, done, iterations, losses["total"], losses["tem"], losses["pem_reg"], losses["pem_cls"],
               1000 * timer.data_time / timer.iterations, 1000 * step, left // 3600, left // 60 % 60, left % 60))


def validate(training: Any, loader: Iterable, blocks: Dict[int, List[int]], rounds: int, runtime: Any, seed: int,
             pauses: Any, keep: Callable[[Any], None]) -> Dict[str, Any]:
    """Loss over all validation videos, each once: the mean of the blocks, weighted by their videos.

    The losses are normalised by batch, so they are computed in fixed blocks with draws seeded by (seed, block). The
    result does not depend on the number of ranks.

    Args:
        training: bmn.training.training.Training; its network itself is used and not the parallel wrapper, because
            ranks may have different numbers of blocks.
        loader: yields the batches of ``blocks``, in order.
        blocks: {number: video indices}, those of this rank.
        rounds: the largest number of blocks that a rank has.
        pauses: bmn.machine.pauses.Pauses, as in :func:`train_one_epoch`.
        keep: called with a pause where the state is to be saved; does not return where the run stops.

    Returns:
        dict: ``losses`` {name: mean}, ``iterations``: the number of blocks over all ranks.

    Raises:
        UserError: the loss is not finite.
    """
    network = training.network.eval()
    bm_mask = get_mask(network.temporal_scale, network.max_duration).to(runtime.device)
    generator, rows, mine = torch.Generator(), [], zip(blocks, loader)
    pauses.begin()
    for done in range(1, rounds + 1):
        block = _read(mine, runtime)            # None where this rank has fewer blocks
        if block is not None:
            number, batch = block
            generator.manual_seed(seed * 1000003 + number)
            draws = [torch.rand(batch[1].shape, generator=generator).to(runtime.device) for _ in range(2)]
            with torch.no_grad():
                losses = _losses(network, batch, training.precision, runtime, bm_mask, network.max_duration, draws)
                rows.append(torch.stack(losses))
        pause = pauses.after(done)
        if pause and pause.report:
            runtime.log("validation of epoch %d [%d/%d]" % (training.epochs_done, done, rounds))
        if pause and (pause.save or pause.stop):
            keep(pause)
    rows = torch.stack(rows).cpu().tolist() if rows else []
    mine = [(number, len(videos), row) for (number, videos), row in zip(blocks.items(), rows)]
    everyone = sorted(block for rank in runtime.gather(mine) for block in rank)
    videos = sum(count for _, count, _ in everyone)
    mean = [sum(count * row[i] for _, count, row in everyone) / videos for i in range(len(LOSSES))]
    if not all(map(math.isfinite, mean)):
        parts = ", ".join("%s %g" % pair for pair in zip(LOSSES, mean))
        raise UserError("the validation loss of epoch %d is not finite (%s): lower --training_lr; the checkpoint that "
                        "was there stays" % (training.epochs_done, parts))
    return {"losses": dict(zip(LOSSES, mean)), "iterations": len(everyone)}


def infer(network: Any, loader: Iterable, precision: Any, runtime: Any) -> Iterator[tuple]:
    """Yield (video indices, confidence map B x 2 x T x T, start B x T, end B x T) of each batch, float32 arrays.

    ``loader`` yields (indices, features B x C x T).
    """
    network.eval()
    for indices, features in iter(functools.partial(_read, iter(loader), runtime), None):
        with torch.no_grad(), precision.autocast():
            outputs = network(features.to(runtime.device, non_blocking=True), valid_only=True)
        yield (indices.tolist(), *(output.float().cpu().numpy() for output in outputs))
