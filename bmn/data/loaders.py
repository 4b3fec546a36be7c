"""Which videos go into which batch on which rank, and the DataLoader over them."""
import re
from typing import Dict, Iterable, Iterator, List

import torch
from torch.utils.data import DataLoader

from bmn.errors import UserError
from bmn.parallel import outlive_signals, signals_held
from bmn.values import counted

# In the text of an error of PyTorch: what its processes lack, and what to do
LACKING = (
    (r"too many open files|ancdata|Errno 24\b", "file handles: raise their number with ulimit -n 65536"),
    (r"shared memory|/torch_|No space left on device|bus error|Errno 28\b",
     "bytes of shared memory, which is /dev/shm and no disk: in a container, raise it with --shm-size=8g"),
)
BLOCK = 16      # videos of a validation or inference block; the size is fixed, because losses are normalised by batch


class TrainingBatches:
    """Batches of one rank. The videos are shuffled by (seed, epoch), and an incomplete last batch is dropped.

    A global batch is split evenly over the ranks, so that any number of ranks sees the same global batches.

    Args:
        count: number of videos, or of windows.
        local_batch_size: videos of a batch on each rank.
        seed: seed of the order of the videos.
        rank, world_size: number of this process, and number of processes.
        noun: what the items are.

    Attributes:
        epoch: number of the epoch, which the caller sets before it iterates.
        done: steps of it that are done already; the rest is left. The caller sets it as well.

    Raises:
        UserError: there are fewer videos than a global batch has.
    """

    def __init__(self, count: int, local_batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1,
                 noun: str = "video"):
        self.count, self.local_batch_size, self.seed = count, local_batch_size, seed
        self.epoch = self.done = 0
        self.batch_size = local_batch_size * world_size
        self.offset = rank * local_batch_size
        check_batch(count, self.batch_size, noun)

    def __len__(self) -> int:
        return self.count // self.batch_size - self.done

    def __iter__(self) -> Iterator[List[int]]:
        generator = torch.Generator()
        generator.manual_seed(self.seed * 1000003 + self.epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        steps = self.count // self.batch_size
        for first in range(self.offset + self.done * self.batch_size, steps * self.batch_size, self.batch_size):
            yield order[first:first + self.local_batch_size]


def check_batch(count: int, batch_size: int, noun: str = "video") -> None:
    """Check that ``count`` videos, or windows, fill a global batch; UserError where they do not."""
    if count < batch_size:
        raise UserError("--batch_size %d is larger than the %s: give %d or less"
                        % (batch_size, counted(count, "training " + noun), count))


def rank_blocks(count: int, rank: int = 0, world_size: int = 1) -> Dict[int, List[int]]:
    """{number: video indices} of the blocks of one rank. A block has up to BLOCK consecutive videos.

    All ranks together have every video once. A block has the same videos for any number of ranks, so that figures and
    files do not depend on that number.
    """
    first = range(0, count, BLOCK)
    return {number: list(range(first[number], min(first[number] + BLOCK, count)))
            for number in range(rank, len(first), world_size)}


def video_blocks(windows: List[int], rank: int = 0, world_size: int = 1) -> Dict[int, List[int]]:
    """{number: window indices} of the batches of one rank, like :func:`rank_blocks`, but no video is split over ranks.

    Consecutive videos of at least BLOCK windows together go to one rank, in batches of up to BLOCK windows. The batches
    are the same for any number of ranks. Where every video is one window, they are those of :func:`rank_blocks`.

    Args:
        windows: number of windows of each video, in order.
    """
    blocks, group, first, end = {}, 0, 0, 0
    for number, count in enumerate(windows, 1):
        end += count
        if end - first >= BLOCK or number == len(windows):
            for begin in range(first, end, BLOCK) if group % world_size == rank else ():
                blocks[begin] = list(range(begin, min(begin + BLOCK, end)))
            group, first = group + 1, end
    return blocks


class _Loader(DataLoader):
    """Says in a sentence what its processes lack: PyTorch's own text names a full disk, or no reason at all."""

    def __iter__(self) -> Iterator:
        try:
            with signals_held():                # a launcher sends SIGTERM to the processes as well
                iterator = super().__iter__()   # here and not in _items, because it draws a random number
        except (RuntimeError, OSError) as error:
            raise self._in_words(error, None) from None
        return self._items(iterator)

    def _items(self, iterator):
        try:
            yield from iterator
        except (RuntimeError, OSError) as error:
            raise self._in_words(error, iterator) from None
        finally:                                # at once, and not when the last reference to an error is gone
            if self.num_workers:
                iterator._shutdown_workers()

    def _in_words(self, error, iterator):
        lacking = next((what for pattern, what in LACKING if re.search(pattern, str(error), re.IGNORECASE)), None)
        if lacking is None or not self.num_workers:
            return error
        _end(iterator, error.__traceback__)
        return UserError("%s cannot load data with so few %s, or give --num_workers 0"
                         % (counted(self.num_workers, "process"), lacking))


def _end(iterator, trace):
    """End the processes now. Of an iterator that could not be made, the end would fail later, with a traceback."""
    if iterator is not None:
        iterator._shutdown_workers()
    while trace is not None:
        made = trace.tb_frame.f_locals.get("self")
        if hasattr(made, "_shutdown_workers") and not hasattr(made, "_workers"):
            made._shutdown = True
        trace = trace.tb_next


def load_batches(dataset: torch.utils.data.Dataset, batches: Iterable[List[int]], num_workers: int,
                 pin_memory: bool = False) -> DataLoader:
    """A DataLoader over ``dataset`` that yields the ``batches``, lists of indices, in order.

    Raises, while it is iterated:
        UserError: the machine has too little shared memory or too few file handles for its processes.
    """
    return _Loader(dataset, batch_sampler=batches, num_workers=num_workers, pin_memory=pin_memory,
                   worker_init_fn=outlive_signals if num_workers else None)
