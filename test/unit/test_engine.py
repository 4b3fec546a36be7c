"""The loops: what they compute, what they count, and that they stop where the loss is not finite."""
import contextlib

import numpy as np
import pytest
import torch

import engine
from bmn.data.loaders import load_batches, rank_blocks
from bmn.errors import UserError
from bmn.machine import amp, device, pauses
from bmn.options import with_defaults
from bmn.training.training import Training
from loss_function import bmn_loss_func, get_mask
from models import BMN

OPTIONS = with_defaults({"temporal_scale": 8, "feat_dim": 4, "num_sample": 4})
T = 8


@pytest.fixture(scope="module")
def runtime():
    with device.setup(with_defaults({"device": "cpu"})) as one:
        yield one


class Videos(torch.utils.data.Dataset):
    """Random features and labels."""

    def __init__(self, count):
        random = np.random.RandomState(5)
        self.items = [tuple(torch.from_numpy(random.rand(*shape).astype(np.float32))
                            for shape in ((4, T), (T, T), (T,), (T,))) for _ in range(count)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def begin(level="O0"):
    torch.manual_seed(1)
    return Training(BMN(OPTIONS), amp.choose("cpu", level, 128), dict(OPTIONS, weight_decay=0))


class Never:
    """Pauses that never come."""
    begin = after = staticmethod(lambda *_: None)


def train(runtime, videos, batches, training, when=Never, keep=None, begun=None, profiler=None):
    torch.manual_seed(2)
    return engine.train_one_epoch(training.network, training, load_batches(videos, batches, 0), runtime, when, keep,
                                  begun, profiler)


def test_an_epoch_equals_the_plain_loop(runtime):
    videos, batches = Videos(6), [[0, 1], [2, 3], [4, 5]]
    training = begin()
    result = train(runtime, videos, batches, training)

    plain = begin().network
    plain_optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    torch.manual_seed(2)
    torch.empty((), dtype=torch.int64).random_()            # the DataLoader's own draw
    rows = []
    for batch in batches:
        x, iou, start, end = (torch.stack(parts) for parts in zip(*(videos[i] for i in batch)))
        losses = bmn_loss_func(*plain(x), iou, start, end, get_mask(T))
        plain_optimizer.zero_grad()
        losses[0].backward()
        plain_optimizer.step()
        rows.append([float(v.detach()) for v in losses])
    np.testing.assert_allclose([result["losses"][name] for name in engine.LOSSES], np.mean(rows, 0), rtol=1e-6)
    for ours, theirs in zip(training.network.parameters(), plain.parameters()):
        assert torch.equal(ours, theirs)
    assert result["iterations"] == 3


@pytest.mark.parametrize("iterations,timed", [(3, 3), (5, 5), (6, 1), (9, 4)])
def test_fps_counts_the_timed_iterations(runtime, monkeypatch, iterations, timed):
    clock = iter(np.arange(1000.0))
    monkeypatch.setattr(engine.time, "perf_counter", lambda: next(clock))
    result = train(runtime, Videos(2), [[0, 1]] * iterations, begin())
    assert result["fps"] * result["time"] == pytest.approx(2 * timed)
    assert 0 < result["data_time"] < result["time"]


def test_progress_line_and_profiler(runtime, capsys):
    class Counter:
        steps = 0

        def step(self):
            self.steps += 1
    counter = Counter()
    train(runtime, Videos(2), [[0, 1]] * 8, begin(), At({6: pauses.Pause(True, False, "")}), profiler=counter)
    lines = capsys.readouterr().out.splitlines()
    assert counter.steps == 8
    assert [line.split("]")[0] for line in lines] == ["epoch 0 [6/8", "epoch 0 [8/8"]
    assert all("FPS" not in line and not ("training" in line and "total_loss" in line) for line in lines)
    assert "data" in lines[0] and "step" in lines[0] and "ends in 0:00:" in lines[0]


class At:
    """Pauses at given steps: {steps done: pause}."""

    def __init__(self, planned):
        self.planned = planned

    def begin(self, done=0):
        pass

    def after(self, done):
        return self.planned.get(done)


@pytest.mark.parametrize("level", ["O0", "O1"])
@pytest.mark.parametrize("stop_after", range(1, 8))
def test_an_epoch_that_was_stopped_goes_on_to_the_last_digit(runtime, rng, stop_after, level):
    """The rest of it gives the uninterrupted epoch's weights and losses, and counts all of its timed samples."""
    videos, batches = Videos(8), [rng.permutation(8)[:2].tolist() for _ in range(8)]
    whole = begin(level)
    expected = train(runtime, videos, batches, whole)
    stopped, kept = begin(level), []

    class Stop(Exception):
        pass

    def keep(pause, begun):
        kept.append(begun)
        raise Stop

    with pytest.raises(Stop):
        train(runtime, videos, batches, stopped, At({stop_after: pauses.Pause(False, False, "SIGTERM")}), keep)
    begun, = kept
    assert begun["steps"] == stop_after and begun["losses"].shape == (stop_after, 4)
    torch.manual_seed(77)                                       # what another process may have drawn
    result = engine.train_one_epoch(stopped.network, stopped, load_batches(videos, batches[stop_after:], 0), runtime,
                                    Never, None, begun)
    assert result["losses"] == expected["losses"] and result["iterations"] == 8
    assert all(torch.equal(a, b) for a, b in zip(whole.network.parameters(), stopped.network.parameters()))
    assert result["fps"] > 0


class LateDevice:
    """A device that works while the host goes on: a step takes it a second, which shows where the host waits for it."""

    def __init__(self, monkeypatch, runtime):
        self.now, self.pending = 0.0, 0
        monkeypatch.setattr(engine.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(runtime, "synchronize", self.wait, raising=False)
        monkeypatch.setattr(runtime, "all_reduce_sum", lambda tensor: (self.wait(), tensor)[1])     # it is read then

    def step(self):             # as a profiler, which is told of every step
        self.pending += 1

    def wait(self):
        self.now, self.pending = self.now + self.pending, 0


@pytest.mark.parametrize("parts", [[9], [16], *([n, 16 - n] for n in range(1, 16)), [2, 3, 11], [5, 6, 5], [7, 1, 8],
                                   [1, 1, 14], [6, 6, 4], [7, 5, 4]], ids=str)
def test_an_epoch_in_parts_times_what_each_part_times(runtime, monkeypatch, parts):
    """Each part leaves out a warm-up of its own, if it has more steps, or if it was stopped within that."""
    device = LateDevice(monkeypatch, runtime)
    training, begun, done = begin(), None, 0

    class Stop(Exception):
        pass

    def keep(pause, one):
        nonlocal begun
        begun = one
        raise Stop

    for part in parts:
        left, done = [[0, 1]] * (sum(parts) - done), done + part
        when = At({done: pauses.Pause(False, True, "")})
        with pytest.raises(Stop) if done < sum(parts) else contextlib.nullcontext():
            result = train(runtime, Videos(2), left, training, when, keep, begun, device)
    *stopped, last = parts
    timed = sum(max(0, part - engine.WARM_UP) for part in stopped) + (last - engine.WARM_UP if last > engine.WARM_UP
                                                                      else last)
    assert result["time"] == timed and result["fps"] == 2


def test_a_loss_that_is_not_finite_stops_the_run_and_shows_its_parts(runtime):
    videos = Videos(6)
    videos.items[3][0][0, 0] = float("nan")
    with pytest.raises(UserError, match=r"epoch 0, iteration 1 is not finite \(total nan, tem nan.*pem_cls nan"):
        train(runtime, videos, [[0, 1], [2, 3], [4, 5]], begin())


@pytest.mark.parametrize("part", range(4))
def test_one_part_of_a_loss_that_is_not_finite_stops_the_run(runtime, part):
    losses = [torch.ones(4) for _ in range(3)]
    assert engine._finite_mean(losses, runtime, 2, 10) == dict.fromkeys(engine.LOSSES, 1)
    losses[1][part] = float("inf")
    with pytest.raises(UserError, match=r"epoch 2, iteration 11 is not finite \(.*%s inf" % engine.LOSSES[part]):
        engine._finite_mean(losses, runtime, 2, 10)


def test_validation_is_the_mean_of_the_blocks_and_is_repeatable(runtime):
    videos, blocks = Videos(21), rank_blocks(21)
    training = begin()
    network = training.network

    def validate(seed):
        loader = load_batches(videos, list(blocks.values()), 0)
        return engine.validate(training, loader, blocks, len(blocks), runtime, seed, Never, None)
    before = [p.detach().clone() for p in network.parameters()]
    result = validate(7)
    assert result["iterations"] == 2 and result == validate(7) != validate(8)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters()))

    tem = []
    for block in blocks.values():
        x, iou, start, end = (torch.stack(parts) for parts in zip(*(videos[i] for i in block)))
        with torch.no_grad():
            tem.append(float(bmn_loss_func(*network(x), iou, start, end, get_mask(T))[1]))
    assert result["losses"]["tem"] == pytest.approx((16 * tem[0] + 5 * tem[1]) / 21)


def test_a_validation_that_is_not_finite_ends_the_run_and_shows_its_parts(runtime):
    """The weights may have become NaN in the very last step, whose loss was finite."""
    training, blocks = begin(), rank_blocks(5)
    with torch.no_grad():
        next(training.network.parameters())[0] = float("nan")
    with pytest.raises(UserError, match=r"validation loss of epoch 0 is not finite \(total nan, tem nan"):
        engine.validate(training, load_batches(Videos(5), list(blocks.values()), 0), blocks, 1, runtime, 7, Never, None)


def test_a_validation_stops_after_a_block_also_where_this_rank_has_none_left(runtime):
    blocks, stopped = rank_blocks(21), []
    loader = load_batches(Videos(21), list(blocks.values()), 0)
    engine.validate(begin(), loader, blocks, 3, runtime, 7, At({1: pauses.Pause(True, False, ""),
                                                                3: pauses.Pause(False, False, "SIGTERM")}),
                    stopped.append)
    assert [pause.stop for pause in stopped] == ["SIGTERM"]


def test_inference_gives_float32_maps_of_every_video(runtime):
    network, precision = begin().network, amp.choose("cpu", "O1", 128)
    features = [(i, torch.randn(4, T)) for i in range(5)]
    found = {}
    for indices, *maps in engine.infer(network, load_batches(features, [[3, 4], [0], [1, 2]], 0), precision, runtime):
        assert all(part.dtype == np.float32 for part in maps)
        found.update({i: [part[k] for part in maps] for k, i in enumerate(indices)})
    assert sorted(found) == list(range(5))
    with torch.no_grad():
        want = network(features[4][1][None])
    np.testing.assert_allclose(found[4][1], want[1][0], atol=0.02)
