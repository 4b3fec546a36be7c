"""Which videos go into which batch on which rank, and the DataLoader over them."""
import torch
from torch.utils.data import DataLoader

from bmn.errors import UserError

BLOCK = 16      # videos of a validation or inference block: losses are normalised by batch, so its size is fixed


class TrainingBatches:
    """Batches of one rank: the videos shuffled by (seed, epoch), an incomplete last batch dropped.

    A global batch is split evenly over the ranks, so that any number of ranks sees the same global batches.

    Args:
        count: number of videos.
        local_batch_size: videos of a batch on each rank.
        seed, rank, world_size: whole numbers.

    Raises:
        UserError: fewer videos than a global batch.
    """

    def __init__(self, count, local_batch_size, seed=0, rank=0, world_size=1):
        self.count, self.local_batch_size, self.seed, self.epoch = count, local_batch_size, seed, 0
        self.batch_size = local_batch_size * world_size
        self.offset = rank * local_batch_size
        if count < self.batch_size:
            raise UserError("--batch_size %d is larger than the %d training videos: give %d or less"
                            % (self.batch_size, count, count))

    def __len__(self):
        return self.count // self.batch_size

    def __iter__(self):
        generator = torch.Generator()
        generator.manual_seed(self.seed * 1000003 + self.epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        for first in range(self.offset, len(self) * self.batch_size, self.batch_size):
            yield order[first:first + self.local_batch_size]


def rank_blocks(count, rank=0, world_size=1):
    """{number: videos} of the blocks of one rank: every video once over all ranks, in runs of BLOCK.

    A block has the same videos whatever the number of ranks, so figures and files do not depend on it.
    """
    first = range(0, count, BLOCK)
    return {number: list(range(first[number], min(first[number] + BLOCK, count)))
            for number in range(rank, len(first), world_size)}


def load_batches(dataset, batches, num_workers, pin_memory=False):
    """A DataLoader over ``dataset`` that yields ``batches`` (an iterable of lists of indices) in order."""
    return DataLoader(dataset, batch_sampler=batches, num_workers=num_workers, pin_memory=pin_memory)
