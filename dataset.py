"""Videos as the network gets them: features C x T, and in training also the labels: IoU map, start and end."""
from typing import Any, Dict, Iterable, List, Optional, Tuple

import numpy as np
import torch

from bmn import extracted
from bmn.data import segments, windows
from bmn.data.annotations import Video, read_videos
from bmn.data.feature_files import few
from bmn.data.features import open_source
from bmn.data.loaders import load_batches
from bmn.data.packed_features import PackedFeatures
from bmn.errors import UserError
from bmn.layouts import LAYOUTS
from bmn.options import with_defaults
from bmn.parallel import limited, processors
from bmn.results.protocols import AMBIGUOUS, PROTOCOLS
from bmn.sampling import proposals
from bmn.values import counted

ROUNDING = 1e-6         # of the part of an interval that is covered


class VideoDataSet(torch.utils.data.Dataset):
    """The videos of one subset, or with ``opt["window"]`` their windows; with ``opt["skip_missing"]`` only those that
    have features.

    Items are float32 tensors. With ``opt["mode"] == "train"``: (features [C, T], IoU map [T, T], start [T], end [T]),
    and of a window also the number of rows before its padding; else (index, features [C, T]). In training, the windows
    of the subset "train" are those in which an action lies.

    Args:
        opt: dict of options. A missing option gets its default; ``data`` or ``feature_path`` is read where there
            is no ``data_path``.
        subset: "train" and "validation" mean what --training_subset and --validation_subset say; another word, such as
            "testing", is the subset itself.
        features: what ``features.open_features`` returned; None reads the feature files directly, without a cache.
        videos: {name: Video} of the subset, where the caller has read them; None reads the annotation files.

    Attributes:
        videos: {name: Video}.
        video_list: their names. Without windows, item ``index`` is the video ``video_list[index]``.
        windows: the Window of each item, or None.
        labelled: of windows in training the Video that :func:`windows.in_window` made of each, else None.
        left_out: number of videos without features.
        remarks: lines about the windows for the log.

    Raises:
        UserError: the annotations or features cannot be used, or no window has an action. An item also raises it,
            where its features cannot be read.
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
        self.remarks = []
        self._leave_out(PROTOCOLS[opt["protocol"]].ambiguous)
        self.video_list = list(self.videos)
        self.left_out = len(videos) - len(self.videos)      # because of skip_missing
        self.labels = Labels(opt["temporal_scale"], opt["layout"], opt["max_duration"])
        self.windows, self.labelled, self._last = None, None, (None, None)
        if opt["window"]:
            self._cut(opt)

    def _leave_out(self, label):
        """Leave out the actions that the protocol takes for ambiguous: they are no positive of the training either."""
        count = sum(one[2] == AMBIGUOUS for video in self.videos.values() for one in video.actions)
        if count and label == AMBIGUOUS:
            self.videos = {name: video._replace(actions=[one for one in video.actions if one[2] != label])
                           for name, video in self.videos.items()}
            self.remarks.append("%s subset: %s of it left out" % (self.subset, counted(count, "'%s' action" % label)))
        elif count:
            self.remarks.append("%s subset: %s labelled '%s' and count like all others; --protocol thumos14 leaves "
                                "them out" % (self.subset, counted(count, "action"), AMBIGUOUS))

    def _cut(self, opt):
        """Make windows the items."""
        rows = {name: self.features.rows(name) for name in self.videos}
        lengths = extracted.lengths_of(opt["data_path"], self.video_list)
        margin = windows.margin_of(opt)
        self.videos = windows.with_stride(self.videos, rows, opt, margin, lengths)
        self.windows = [window for name in self.videos for window in windows.cut(name, rows[name], opt, margin)]
        every = len(self.windows)
        if self.mode == "train":
            cut = [windows.in_window(window, self.videos[window.name], opt["window"], opt["window_inside"])
                   for window in self.windows]
            if self.subset == "train":
                used = [index for index, (video, _) in enumerate(cut) if video.actions]
                if not used:
                    raise UserError("no action of the %s lies in a window of --window %d positions by "
                                    "--window_inside %g: give larger windows, or look at the annotations "
                                    "(tools/check_data.py)" % (counted(len(rows), "training video"), opt["window"],
                                                               opt["window_inside"]))
                self.windows, cut = [self.windows[index] for index in used], [cut[index] for index in used]
            self.labelled = [video for video, _ in cut]
        silent = [window.name for window in self.windows if window.rows <= LAYOUTS[opt["layout"]].end_after]
        if silent and self.mode != "train":     # a proposal ends at a later position than it starts
            self.remarks.append("%s subset: no proposals for %s with a single position (%s)"
                                % (self.subset, counted(len(silent), "video"), few(silent)))
        self.remarks.append("%s subset windows: %d%s, of %d positions"
                            % (self.subset, len(self.windows), " of %d, those in which an action lies" % every
                               if self.mode == "train" and self.subset == "train" else "", opt["window"]))

    def windows_of_videos(self) -> List[int]:
        """Number of items of each video, in order."""
        return [1] * len(self.video_list) if self.windows is None else [
            window.windows for window in self.windows if window.first == 0]

    def items_of(self, name: str) -> List[int]:
        """The items of a video."""
        if self.windows is None:
            return [self.video_list.index(name)]
        return [index for index, window in enumerate(self.windows) if window.name == name]

    @property
    def item_names(self) -> List[str]:
        """A name of each item: the video, and of a window also the position at which it begins."""
        return self.video_list if self.windows is None else [
            "%s from %d" % (window.name, window.first) for window in self.windows]

    def __len__(self) -> int:
        return len(self.video_list if self.windows is None else self.windows)

    def __getitem__(self, index: int) -> tuple:
        if self.windows is None:
            name, video, rows = self.video_list[index], None, ()
            features = self.features.read(name)
        else:
            window = self.windows[index]
            name, video, rows = window.name, self.labelled and self.labelled[index], (window.rows,)
            features = windows.padded(self._rows_of(window), self.labels.temporal_scale)
        features = torch.from_numpy(features)
        if self.mode != "train":
            return index, features
        return (features,) + tuple(map(torch.from_numpy, self.labels(video or self.videos[name]))) + rows

    def _rows_of(self, window):
        """[C, rows] of a window. Only a packed file is read in part."""
        if isinstance(self.features, PackedFeatures):
            return self.features.read(window.name, window.rows_of_file)
        if self._last[0] != window.name:
            self._last = window.name, self.features.read(window.name)
        return self._last[1][:, window.rows_of_file]


class Labels:
    """Training labels of a video (paper, section 4.1), computed in float64 and rounded once to float32.

    Args:
        temporal_scale: T.
        layout: a name in LAYOUTS, which says what interval a position of the boundaries stands for.
        max_duration: D, the longest proposal in positions, 0: T. The map is 0 where proposals are longer.
    """

    def __init__(self, temporal_scale: int, layout: str = "reference", max_duration: int = 0):
        self.temporal_scale = temporal_scale
        # These are multiples of 1/T and not quotients, so that they are rounded exactly as in the reference.
        self.gap = 1.0 / temporal_scale
        position = np.arange(temporal_scale)
        self.whole_anchors = LAYOUTS[layout].whole_anchors
        self.anchor_start, self.anchor_end = (self.gap * (position + offset) for offset in LAYOUTS[layout].anchor)
        # Only proposals are computed, which are half of the map or less.
        start, end = proposals(temporal_scale, max_duration)
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


def load(dataset: VideoDataSet, batches: Iterable[List[int]], opt: dict, runtime: Any) -> torch.utils.data.DataLoader:
    """A DataLoader over ``batches`` (lists of indices) of a data set, on as many processes as --num_workers says.

    Args:
        dataset: the data set.
        batches: in order; it has a length.
        opt: dict with num_workers.
        runtime: bmn.machine.device.Runtime; kind, world_size and log are used.
    """
    wanted = opt["num_workers"] if opt["num_workers"] >= 0 else default_workers(runtime, dataset.features)
    workers = limited(wanted, len(batches)) if wanted else 0
    if workers < opt["num_workers"]:
        runtime.log("--num_workers %d: %d, one for each processor and each batch at most" % (wanted, workers))
    return load_batches(dataset, batches, workers, pin_memory=runtime.kind == "cuda")
