"""Batches over ranks: any number of ranks sees the same global batches, and validation sees every video once."""
import os
import signal

import pytest
import torch

from bmn import parallel
from bmn.data.loaders import BLOCK, TrainingBatches, load_batches, rank_blocks, video_blocks
from bmn.errors import UserError


def epoch_batches(count, batch_size, world_size, seed=3, epoch=0):
    """The batches of each rank."""
    ranks = []
    for rank in range(world_size):
        batches = TrainingBatches(count, batch_size // world_size, seed, rank, world_size)
        batches.epoch = epoch
        ranks.append(list(batches))
        assert len(batches) == len(ranks[-1]) == count // batch_size
    return ranks


@pytest.mark.parametrize("count,batch_size", [(12, 12), (25, 12), (100, 24)])
def test_ranks_share_the_batches_of_one_process(count, batch_size):
    alone, = epoch_batches(count, batch_size, 1)
    for world_size in (2, 3, 4):
        ranks = epoch_batches(count, batch_size, world_size)
        assert [sum(parts, []) for parts in zip(*ranks)] == alone
    seen = sum(alone, [])
    assert len(set(seen)) == len(seen) and set(seen) <= set(range(count))


def test_order_depends_on_seed_and_epoch_and_nothing_else():
    assert epoch_batches(64, 8, 1) == epoch_batches(64, 8, 1)
    assert epoch_batches(64, 8, 1) != epoch_batches(64, 8, 1, seed=4)
    assert epoch_batches(64, 8, 1) != epoch_batches(64, 8, 1, epoch=1)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match=r"--batch_size 16.*9 training videos"):
        TrainingBatches(9, 8, world_size=2)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 100])
def test_blocks_are_the_same_for_any_number_of_ranks(count):
    alone = rank_blocks(count)
    assert sum(alone.values(), []) == list(range(count))
    assert all(len(videos) == BLOCK for videos in list(alone.values())[:-1])
    for world_size in (2, 3, 8):
        merged = {}
        for rank in range(world_size):
            merged.update(rank_blocks(count, rank, world_size))
        assert merged == alone


@pytest.mark.parametrize("windows", [[1] * 40, [3, 20, 1, 1, 40, 2], [200], [16] * 5, [15, 1, 1], [2] * 99])
def test_no_video_is_split_over_ranks(windows):
    alone = video_blocks(windows)
    assert sum(alone.values(), []) == list(range(sum(windows)))
    assert all(1 <= len(block) <= BLOCK for block in alone.values())
    video_of = [video for video, count in enumerate(windows) for _ in range(count)]
    for world_size in (1, 2, 3, 8):
        merged, owner, shares = {}, {}, []
        for rank in range(world_size):
            blocks = video_blocks(windows, rank, world_size)
            assert not set(blocks) & set(merged)
            merged.update(blocks)
            shares.append(len(sum(blocks.values(), [])))
            for window in sum(blocks.values(), []):
                assert owner.setdefault(video_of[window], rank) == rank
        assert merged == alone
        assert max(shares) - min(shares) < BLOCK + max(windows)         # no rank does the work of the others
    if set(windows) == {1}:
        assert list(alone.values()) == list(rank_blocks(len(windows)).values())


def test_loader_yields_the_batches_in_order():
    batches = [[3, 1], [0], [2]]
    assert [batch.tolist() for batch in load_batches(list(range(4)), batches, 0)] == batches


class Failing:
    """A data set whose items end a process as PyTorch ends it where something is lacking."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize("number", parallel.GROUP)
def test_a_signal_to_the_whole_group_ends_no_process_that_is_just_starting(monkeypatch, number):
    """PyTorch's own handler, which each of its processes sets first, would end it."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: os.kill(os.getpid(), number))       # what it does next
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert [batch.tolist() for batch in load_batches(list(range(4)), [[3, 1], [0]], 1)] == [[3, 1], [0]]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


@pytest.mark.parametrize("error,words", [
    (RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)"),
     "/dev/shm"),
    (OSError(28, "No space left on device"), "/dev/shm"), (OSError(24, "Too many open files"), "ulimit -n"),
    (RuntimeError("received 0 items of ancdata"), "ulimit -n")])
def test_what_the_processes_lack_is_said(error, words):
    with pytest.raises(UserError, match=r"2 processes cannot load data with so few .*--num_workers 0") as caught:
        list(load_batches(Failing(error), [[0], [1]], 2))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_other_errors_of_the_processes_stay_what_they_are():
    with pytest.raises(UserError, match="a broken feature file"):
        list(load_batches(Failing(UserError("a broken feature file")), [[0], [1]], 2))
    with pytest.raises(RuntimeError, match="a mistake in the program"):
        list(load_batches(Failing(RuntimeError("a mistake in the program")), [[0], [1]], 2))
    with pytest.raises(OSError, match="No space"):      # there are no other processes
        list(load_batches(Failing(OSError(28, "No space left on device")), [[0], [1]], 0))


def test_processes_that_cannot_start_are_said(monkeypatch):
    def full(self, *_, **__):
        raise OSError(28, "No space left on device")
    loader = load_batches(list(range(4)), [[0], [1]], 2)
    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter.__init__", full)
    with pytest.raises(UserError, match="/dev/shm"):
        list(loader)


def test_the_order_of_an_epoch_is_drawn_from_seed_and_epoch():
    """Written out, because a run that goes on must draw what the uninterrupted one had drawn."""
    batches = TrainingBatches(10, 2, seed=3)
    for batches.epoch in (0, 1, 5):
        generator = torch.Generator()
        generator.manual_seed(3 * 1000003 + batches.epoch)
        order = torch.randperm(10, generator=generator).tolist()
        assert list(batches) == [order[first:first + 2] for first in range(0, 10, 2)]


@pytest.mark.parametrize("done", range(6))
def test_the_rest_of_an_epoch_is_what_is_left_of_it(done):
    ranks = [TrainingBatches(23, 2, 3, rank, 2) for rank in range(2)]
    for one in ranks:
        one.epoch = 4
    whole = [list(one) for one in ranks]
    for one in ranks:
        one.done = done
    assert [list(one) for one in ranks] == [batches[done:] for batches in whole]
    assert [len(one) for one in ranks] == [5 - done] * 2
