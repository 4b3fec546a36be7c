"""Soft-NMS, which gives exactly the reference's best proposals from scored pairs, and the result file."""
import functools
import os
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from bmn.data.annotations import Video, read_videos
from bmn.data.ground_truth import ground_truth_file, ground_truth_of
from bmn.data.segments import iou
from bmn.data.windows import Window
from bmn.errors import UserError
from bmn.files import inside
from bmn.layouts import LAYOUTS
from bmn.options import DEFAULTS, with_defaults
from bmn.parallel import limited, outcomes, without_errors
from bmn.results.result_files import proposals_as_json, write_results
from bmn.results.score_tables import FOLDER, candidates, decode, pairs, read_table
from bmn.values import video_id

KEPT = DEFAULTS["kept"]      # proposals of a video, unless the options say otherwise


def proposals(confidence_map: np.ndarray, start: np.ndarray, end: np.ndarray, opt: dict) -> List[np.ndarray]:
    """Best proposals of each video of a batch.

    Args:
        confidence_map: float32 [B, 2, T, T], channel 0 regression, 1 classification, at [start, end - 1].
        start, end: float32 [B, T].
        opt: dict with soft_nms_alpha, soft_nms_low_thres, soft_nms_high_thres, and with kept, layout and max_duration
            where they are not the defaults.

    Returns:
        list of B float64 arrays [n <= kept, 3]: score, xmin, xmax (fractions of the video), best first. Those of a
        video do not depend on the rest of its batch.

    Raises:
        UserError: a score is not a finite number.
    """
    layout, max_duration = opt.get("layout", "reference"), opt.get("max_duration", 0)
    score = _finite_scores(confidence_map, start, end, layout, max_duration)
    if not LAYOUTS[layout].peaks:
        return grid_soft_nms(score, start.shape[1], opt)
    xmin, xmax = pairs(start.shape[1], layout, max_duration)[2:]
    return [soft_nms(xmin[chosen], xmax[chosen], its_score[chosen], opt)
            for its_score, chosen in zip(score, candidates(start, end, layout, max_duration))]


def _finite_scores(*maps_layout_and_duration):
    score = decode(*maps_layout_and_duration)
    if not np.isfinite(score).all():
        raise UserError("the network gives scores that are not finite: look for extreme values in the features "
                        "(tools/check_data.py), or use another network")
    return score


class OfWindows:
    """Proposals of videos that are cut into windows: those of all windows of a video in one list, then soft-NMS.

    It holds only the windows of videos that are not complete yet.

    Args:
        opt: dict as for :func:`proposals`.
    """

    def __init__(self, opt: dict):
        self.opt, self._waiting = opt, {}

    def add(self, windows: Sequence[Window], confidence_map: np.ndarray, start: np.ndarray, end: np.ndarray
            ) -> Dict[str, np.ndarray]:
        """Take the maps of a batch of windows, as in :func:`proposals`.

        Returns:
            {name: float64 [n <= kept, 3]} of the videos that are complete with it, in fractions of their features.

        Raises:
            UserError: a score is not a finite number.
        """
        complete = {}
        for window, *maps in zip(windows, confidence_map, start, end):
            found = self._waiting.setdefault(window.name, [])
            found.append(self._segments(window, *maps))
            if len(found) == window.windows:
                complete[window.name] = soft_nms_of_parts(self._waiting.pop(window.name), self.opt)
        return complete

    def _segments(self, window, confidence_map, start, end):
        """(xmin, xmax, score) of what the window proposes. Padding is cut off, so it is neither seen nor proposed."""
        rows, layout = window.rows, self.opt.get("layout", "reference")
        max_duration = min(self.opt.get("max_duration", 0), rows)
        maps = confidence_map[None, :, :rows, :rows], start[None, :rows], end[None, :rows]
        score = _finite_scores(*maps, layout, max_duration)
        chosen = candidates(*maps[1:], layout, max_duration)[0]
        first, after = (one[chosen] for one in pairs(rows, layout, max_duration)[:2])
        return window.fraction(first), window.fraction(after), score[0, chosen]


def soft_nms(xmin: np.ndarray, xmax: np.ndarray, score: np.ndarray, opt: dict) -> np.ndarray:
    """The reference's soft-NMS rule, step by step, for one table of any segments.

    Args:
        xmin, xmax, score: [rows].
        opt: dict with the soft_nms options, and with kept and layout where they are not the defaults.

    Returns:
        float64 [n <= kept, 3]: score, xmin, xmax, best first.
    """
    return soft_nms_of_parts([(xmin, xmax, score)], opt)


def soft_nms_of_parts(parts: Sequence[Tuple[np.ndarray, np.ndarray, np.ndarray]], opt: dict) -> np.ndarray:
    """The same as :func:`soft_nms` of all parts (xmin, xmax, score) in one table.

    A kept segment suppresses only what it overlaps, so each step looks at the parts that it reaches and at no others.
    """
    layout, kept = LAYOUTS[opt.get("layout", "reference")], opt.get("kept", KEPT)
    fewest = 0 if layout.soft_nms == "mmaction2" else 1      # the reference drops a single remaining candidate
    parts = [_Part(*part) for part in _by_rank(parts)]
    left = sum(len(part.score) for part in parts)
    chosen = []
    fewest = 0 if left == 1 else fewest
    while left > fewest and len(chosen) <= kept:
        best = max(parts, key=_Part.best)
        score, first, last = best.take()
        chosen.append((score, first, last))
        left -= 1
        for part in parts:
            if part.first <= last and part.last >= first:
                part.suppress(first, last, *_rule(opt), layout.soft_nms)
    chosen = np.array(chosen).reshape(-1, 3)
    return chosen[np.argsort(-chosen[:, 0], kind="stable")[:kept]]


def _by_rank(parts):
    """(xmin, xmax, score, rank) of each part that has rows, by rank: of equal scores, the lowest rank comes first."""
    sizes = [len(score) for _, _, score in parts]
    order = np.argsort(-np.concatenate([np.zeros(0), *(score for _, _, score in parts)]), kind="stable")
    rank = np.empty(len(order), int)
    rank[order] = np.arange(len(order))
    for part, its_rank in zip(parts, np.split(rank, np.cumsum(sizes)[:-1])):
        order = np.argsort(its_rank)
        if len(order):
            yield [one[order] for one in (*part, its_rank)]


class _Part:
    """Rows of a table in order of their rank. A row that was taken has the score -inf and overlaps nothing."""

    def __init__(self, xmin, xmax, score, rank):
        self.xmin, self.xmax, self.rank = np.array(xmin, np.float64), np.array(xmax, np.float64), rank
        self.score = score.astype(np.float64)
        self.first, self.last = xmin.min(), xmax.max()
        self.row = int(self.score.argmax())

    def best(self):
        """(highest score, its rank with the sign turned): the largest of these is the next one of the table."""
        return self.score[self.row], -self.rank[self.row]

    def take(self):
        """(score, xmin, xmax) of the best row, which is then gone."""
        row = self.score[self.row], self.xmin[self.row], self.xmax[self.row]
        self.score[self.row], self.xmin[self.row], self.xmax[self.row] = -np.inf, np.nan, np.nan
        self.row = int(self.score.argmax())
        return row

    def suppress(self, first, last, *rule):
        weaker, factor = _suppression(self.xmin, self.xmax, first, last, *rule)
        self.score[weaker] *= factor
        self.row = int(self.score.argmax())


def grid_soft_nms(score: np.ndarray, temporal_scale: int, opt: dict) -> List[np.ndarray]:
    """The same rule for a batch of videos whose rows are the :func:`pairs` of T positions.

    Which pairs a kept pair suppresses, and by which factors, depends only on the kept pair. So this is looked up and
    not computed. The rows stay in the order of the table, so argmax breaks ties by row, but the rule breaks them by the
    score before suppression. Every tie is noticed in ``tied``, and then the video goes through :func:`soft_nms`.

    Args:
        score: finite numbers [B, pairs].
        temporal_scale: T.
        opt: dict with the soft_nms options, and with kept and max_duration where they are not the defaults.

    Returns:
        list of B float64 arrays [n <= kept, 3], as in :func:`proposals`.
    """
    batch, rows = score.shape
    grid, keep = (temporal_scale, "reference", opt.get("max_duration", 0)), opt.get("kept", KEPT)
    xmin, xmax = pairs(*grid)[2:]
    if rows <= 1:
        return [soft_nms(xmin, xmax, its_score, opt) for its_score in score]
    look_up = functools.partial(_grid_suppression, grid, *_rule(opt))
    current = np.array(score, np.float64, order="C")
    flat, base = current.reshape(-1), np.arange(batch) * rows
    steps = min(keep + 1, rows - 1)
    kept, kept_score = np.empty((steps, batch), int), np.empty((steps + 1, batch))
    tied = (current < 0).any(axis=1)                                    # below, -1 marks a kept row; networks give >= 0
    for step in range(steps):
        best = current.argmax(axis=1)                                   # [B]
        highest = flat[base + best]
        kept[step], kept_score[step] = best, highest
        flat[base + best] = -1
        weaker, factors = zip(*map(look_up, best.tolist()))
        video = np.repeat(np.arange(batch), [len(one) for one in weaker])
        weaker = np.concatenate(weaker) + base[video]
        suppressed = flat[weaker]
        tied[video[suppressed == highest[video]]] = True                # a tie with a row that is now suppressed
        flat[weaker] = suppressed * np.concatenate(factors)
    kept_score[steps] = current.max(axis=1)
    # A tie with a row that was not suppressed. This also notices a mark of -1 that a factor of 0 has turned into -0.
    tied |= (kept_score[1:] == kept_score[:-1]).any(axis=0)
    return [soft_nms(xmin, xmax, score[video], opt) if tied[video] else
            np.stack([kept_score[:-1, video], xmin[kept[:, video]], xmax[kept[:, video]]], axis=1)[:keep]
            for video in range(batch)]


def _rule(opt):
    return opt["soft_nms_alpha"], opt["soft_nms_low_thres"], opt["soft_nms_high_thres"]


def _suppression(xmin, xmax, first, last, alpha, low, high, rule="reference"):
    """(rows that a kept segment suppresses, the factors of their scores); the rows may include the segment itself."""
    kept, others = (first, last), (xmin, xmax)
    with np.errstate(invalid="ignore"):         # rows that were taken are NaN, and compare false
        overlap = iou(*kept, *others) if rule == "mmaction2" else iou(*others, *kept)
        weaker = np.flatnonzero(overlap > low + (high - low) * (last - first))
    return weaker, np.exp(-np.square(overlap[weaker]) / alpha)


@functools.lru_cache(maxsize=1 << 13)       # all pairs of 100 positions: 25 MB
def _grid_suppression(grid, alpha, low, high, best):
    xmin, xmax = pairs(*grid)[2:]
    return _suppression(xmin, xmax, xmin[best], xmax[best], alpha, low, high)


def write_result(path: str, videos: Dict[str, Video], proposals_of: Dict[str, np.ndarray],
                 spelled: Optional[Dict[str, str]] = None) -> Dict[str, np.ndarray]:
    """Write the result file, in the order of ``videos``; ``path`` is replaced in one step.

    Args:
        path: the file.
        videos: {name: Video}, for the lengths.
        proposals_of: {name: float64 [n, 3]} (score, xmin, xmax as fractions).
        spelled: {id without v_: id} as the ground truth spells them; the ids of other videos have no v_.

    Returns:
        the content of the file: {id: float64 [n, 3]} (score, start, end in seconds, within the video).

    Raises:
        UserError: the file cannot be written.
    """
    results = {}
    for name, video in videos.items():
        seconds, (score, xmin, xmax) = video.proposal_seconds, proposals_of[name].T
        results[(spelled or {}).get(video_id(name), video_id(name))] = np.stack(
            [score, np.maximum(xmin, 0) * seconds, np.minimum(xmax, 1) * seconds], axis=1)
    write_results(path, ((name, proposals_as_json(rows)) for name, rows in results.items()))
    return results


def BMN_post_processing(opt: dict) -> None:
    """Make the result file from the tables BMN_results/<video>.csv of the validation videos, with several processes.

    Args:
        opt: dict; video_info, video_anno, ground_truth, output_dir, result_file, post_process_thread and the soft_nms
            options are read.

    Raises:
        UserError: an annotation file or a table is missing or broken, or the result file cannot be written.
    """
    opt = with_defaults(opt)
    videos, folder = read_videos(opt, "validation"), os.path.join(opt["output_dir"], FOLDER)

    def work(name):
        return name, soft_nms(*read_table(inside(folder, name, ".csv")), opt)

    proposals_of = dict(without_errors(outcomes(work, list(videos), limited(opt["post_process_thread"]))))
    spelled = ground_truth_of(opt).spelled() if ground_truth_file(opt) else {}
    write_result(opt["result_file"], videos, proposals_of, spelled)
