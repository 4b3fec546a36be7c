"""How the BM layer contracts on a card: bags or a dense product, whichever is faster there, found by timing both.

Which one wins depends on the card, the type, T and the batch (bmn/network/boundary_matching.py), so no rule is written
down. Their results agree to rounding. A CPU always has bags, where it has any (docs/performance.md).
"""
import time
from typing import Any, Callable, Dict, List

import torch
from torch.nn import functional as F

ROUNDS = 5          # timed after one that is not; the median counts


def choose_contraction(network: Any, runtime: Any, precision: Any, batch: int, training: bool,
                       recorded: str = "auto") -> None:
    """Let the BM layer of ``network`` contract in the fastest way, and log which one that is, and the times.

    Rank 0 measures, and all ranks take what it found. Nothing is measured where there is no choice.

    Args:
        network: models.BMN, on its device.
        runtime: bmn.machine.device.Runtime.
        precision: what ``amp.choose`` gave; its autocast decides the type.
        batch: videos in a step of this process.
        training: time the gradient as well.
        recorded: how the run that goes on contracted, which is kept, because another way rounds differently; or "auto".
    """
    matching, state = network.boundary_matching, runtime.random_state()
    ways = matching.ways(*_device_and_type(network, precision))
    if matching.contraction != "auto" or runtime.kind == "cpu" or len(ways) < 2:
        return
    if recorded in ways:
        matching.contraction = recorded
        runtime.log("boundary matching: %s, as in the run that goes on (--bm_contraction decides otherwise)" % recorded)
        return
    found = (fastest(ways, lambda way: _step(network, precision, batch, training, way), runtime.synchronize)
             if runtime.is_main else None)
    found = runtime.agreed(found)
    matching.contraction = min(found, key=found.get)
    runtime.set_random_state(state)
    runtime.log("boundary matching: %s (measured: %s; --bm_contraction decides otherwise)" % (
        matching.contraction, ", ".join("%s %.2f ms" % (way, 1000 * took) for way, took in found.items())))


def fastest(ways: List[str], step: Callable[[str], None], synchronize: Callable[[], None],
            clock: Callable[[], float] = time.perf_counter) -> Dict[str, float]:
    """{way: median seconds of ``step(way)``}; a way that fails, for lack of memory for instance, is left out.

    Raises:
        RuntimeError: all of them fail; it is that of the last one.
    """
    found, failure = {}, None
    for way in ways:
        try:
            step(way)
            took = []
            for _ in range(ROUNDS):
                synchronize()
                began = clock()
                step(way)
                synchronize()
                took.append(clock() - began)
            found[way] = sorted(took)[ROUNDS // 2]
        except RuntimeError as error:
            failure = error
    if not found:
        raise failure
    return found


def _device_and_type(network, precision):
    """The device of the tables, and their type under autocast."""
    weight = network.x_2d_p[0].weight.detach().flatten(1)
    with torch.no_grad(), precision.autocast():
        return weight.device, F.linear(weight[:1], weight).dtype


def _step(network, precision, batch, training, way):
    """The BM layer alone, on tables of ones."""
    matching, bias = network.boundary_matching, network.x_3d_p[0].bias.detach()
    device, dtype = _device_and_type(network, precision)
    table = torch.ones(batch, matching.rows, len(bias), device=device, dtype=dtype, requires_grad=training)
    kept, matching.contraction = matching.contraction, way
    try:
        with torch.set_grad_enabled(training), precision.autocast():
            rows = matching(table, bias)
        if training:
            rows.backward(torch.ones_like(rows))
    finally:
        matching.contraction = kept
