"""Videos as the network gets them: features C x T, and in training also the labels: IoU map, start and end."""
from typing import Any, Dict, Optional, Tuple

import numpy as np
import torch

from bmn.data import segments
from bmn.data.annotations import Video, read_videos
from bmn.data.features import open_source
from bmn.data.packed_features import PackedFeatures
from bmn.layouts import LAYOUTS
from bmn.options import with_defaults
from bmn.parallel import processors

ROUNDING = 1e-6         # of the part of an interval that is covered


class VideoDataSet(torch.utils.data.Dataset):
    """The videos of one subset; with ``opt["skip_missing"]`` only those that have features.

    Items are float32 tensors. With ``opt["mode"] == "train"``: (features [C, T], IoU map [T, T], start [T], end [T]),
    else (index, features [C, T]); ``video_list[index]`` is the name, ``videos[name]`` its Video.

    Args:
        opt: dict of options. A missing option gets its default; ``data`` or ``feature_path`` is read where there
            is no ``data_path``.
        subset: "train" and "validation" mean what --training_subset and --validation_subset say; another word, such as
            "testing", is the subset itself.
        features: what ``features.open_features`` returned; None reads the feature files directly, without a cache.
        videos: {name: Video} of the subset, where the caller has read them; None reads the annotation files.

    Raises:
        UserError: the annotations or features cannot be used. An item also raises it, where its features cannot be
            read.
    """

    def __init__(self, opt: dict, subset: str = "train", features: Any = None,
                 videos: Optional[Dict[str, Video]] = None):
        opt = with_defaults(opt)
        self.subset = subset
        self.mode = opt["mode"]
        videos = read_videos(opt, subset) if videos is None else videos
        self.features = open_source(opt) if features is None else features
        skip = opt["skip_missing"]
        self.videos = {name: video for name, video in videos.items() if not skip or name in self.features}
        self.video_list = list(self.videos)
        self.left_out = len(videos) - len(self.videos)      # because of skip_missing
        self.labels = Labels(opt["temporal_scale"], opt["layout"])

    def __len__(self) -> int:
        return len(self.video_list)

    def __getitem__(self, index: int) -> tuple:
        name = self.video_list[index]
        features = torch.from_numpy(self.features.read(name))
        if self.mode != "train":
            return index, features
        return (features,) + tuple(map(torch.from_numpy, self.labels(self.videos[name])))


class Labels:
    """Training labels of a video (paper, section 4.1), computed in float64 and rounded once to float32.

    Args:
        temporal_scale: T.
        layout: a name in LAYOUTS, which says what interval a position of the boundaries stands for.
    """

    def __init__(self, temporal_scale: int, layout: str = "reference"):
        self.temporal_scale = temporal_scale
        # These are multiples of 1/T and not quotients, so that they are rounded exactly as in the reference.
        self.gap = 1.0 / temporal_scale
        position = np.arange(temporal_scale)
        self.whole_anchors = LAYOUTS[layout].whole_anchors
        self.anchor_start, self.anchor_end = (self.gap * (position + offset) for offset in LAYOUTS[layout].anchor)
        # Only pairs with start <= end are computed, which is half of the map.
        start, end = np.triu_indices(temporal_scale)
        self.pair_start, self.pair_end = start * self.gap, (end + 1) * self.gap
        self.pair_cell = start * temporal_scale + end

    def __call__(self, video: Video) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(IoU map [T, T], start [T], end [T]) of a video. One without actions within its length gives zeros."""
        size = self.temporal_scale
        iou_map = np.zeros((size, size), np.float32)
        truth = [(start, end) for start, end, _ in video.actions if start < video.seconds and end >= 0]
        if not truth:
            return iou_map, np.zeros(size, np.float32), np.zeros(size, np.float32)
        truth = np.clip(np.array(truth) / video.feature_seconds, 0.0, 1.0)     # [S, 2], fractions of the features
        start, end = truth[:, :1], truth[:, 1:]                             # [S, 1]
        iou = segments.iou(self.pair_start, self.pair_end, start, end)      # [S, T (T+1) / 2]
        iou_map.reshape(-1)[self.pair_cell] = iou.max(axis=0)
        return iou_map, self._boundary(start), self._boundary(end)

    def _boundary(self, position):
        """Fraction of each anchor within 1.5/T of a ``position`` [S, 1], the largest over all of them: float32 [T]."""
        reach = 3 * self.gap / 2
        covered = segments.intersection(self.anchor_start, self.anchor_end, position - reach, position + reach)
        label = (covered / (self.anchor_end - self.anchor_start)).max(axis=0)
        return (label > 1 - ROUNDING if self.whole_anchors else label).astype(np.float32)


def default_workers(runtime: Any, features: Any) -> int:
    """Number of processes that load data for each rank, where ``--num_workers`` is not given.

    Loading a video takes 0.2 ms from packed features and 5 ms from text. On a CPU the network takes several hundred
    times 0.2 ms and uses every processor, so packed features get no process there. For a card two are enough; text
    gets up to 8.
    """
    processors_of_a_rank = max(processors() // runtime.world_size, 1)
    if isinstance(features, PackedFeatures):
        return 0 if runtime.kind == "cpu" else min(2, processors_of_a_rank)
    return min(2 if runtime.kind == "cpu" else 8, processors_of_a_rank)
