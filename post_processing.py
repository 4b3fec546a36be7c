"""Soft-NMS, which gives exactly the reference's best proposals from scored pairs, and the result file."""
import functools
import os
from typing import Dict, List, Optional

import numpy as np

from bmn.data.annotations import Video, read_videos
from bmn.data.ground_truth import ground_truth_file, ground_truth_of
from bmn.data.segments import iou
from bmn.errors import UserError
from bmn.files import inside
from bmn.layouts import LAYOUTS
from bmn.options import with_defaults
from bmn.parallel import limited, outcomes, without_errors
from bmn.results.result_files import proposals_as_json, write_results
from bmn.results.score_tables import FOLDER, candidates, decode, pairs, read_table
from bmn.values import video_id

KEPT = 101              # number of proposals at which soft-NMS stops
WRITTEN = 100           # number of the best of them that the result file gets


def proposals(confidence_map: np.ndarray, start: np.ndarray, end: np.ndarray, opt: dict) -> List[np.ndarray]:
    """Best proposals of each video of a batch.

    Args:
        confidence_map: float32 [B, 2, T, T], channel 0 regression, 1 classification, at [start, end - 1].
        start, end: float32 [B, T].
        opt: dict with soft_nms_alpha, soft_nms_low_thres, soft_nms_high_thres, and with layout and max_duration where
            they are not the reference's.

    Returns:
        list of B float64 arrays [n <= 100, 3]: score, xmin, xmax (fractions of the video), best first. Those of a video
        do not depend on the rest of its batch.

    Raises:
        UserError: a score is not a finite number.
    """
    layout, max_duration = opt.get("layout", "reference"), opt.get("max_duration", 0)
    score = decode(confidence_map, start, end, layout, max_duration)
    if not np.isfinite(score).all():
        raise UserError("the network gives scores that are not finite: look for extreme values in the features "
                        "(tools/check_data.py), or use another network")
    if not LAYOUTS[layout].peaks:
        return grid_soft_nms(score, start.shape[1], opt)
    xmin, xmax = pairs(start.shape[1], layout, max_duration)[2:]
    return [soft_nms(xmin[chosen], xmax[chosen], its_score[chosen], opt)
            for its_score, chosen in zip(score, candidates(start, end, layout, max_duration))]


def soft_nms(xmin: np.ndarray, xmax: np.ndarray, score: np.ndarray, opt: dict) -> np.ndarray:
    """The reference's soft-NMS rule, step by step, for one table of any segments.

    Args:
        xmin, xmax, score: [rows].
        opt: dict with the soft_nms options, and with layout where it is not the reference's.

    Returns:
        float64 [n <= 100, 3]: score, xmin, xmax, best first.
    """
    rule = LAYOUTS[opt.get("layout", "reference")].soft_nms
    fewest = 0 if rule == "mmaction2" else 1
    order = np.argsort(-score, kind="stable")       # of equal scores, argmax then finds the first in this order
    xmin, xmax, score = xmin[order], xmax[order], score[order].astype(np.float64)
    if len(score) <= 1:
        return np.stack([score, xmin, xmax], axis=1)
    kept = []
    while len(score) > fewest and len(kept) < KEPT:     # the reference drops a single remaining candidate
        best = int(score.argmax())
        kept.append((score[best], xmin[best], xmax[best]))
        weaker, factor = _suppression(xmin, xmax, best, *_rule(opt), rule)
        score[weaker] *= factor
        xmin, xmax, score = np.delete(xmin, best), np.delete(xmax, best), np.delete(score, best)
    kept = np.array(kept)
    return kept[np.argsort(-kept[:, 0], kind="stable")[:WRITTEN]]


def grid_soft_nms(score: np.ndarray, temporal_scale: int, opt: dict) -> List[np.ndarray]:
    """The same rule for a batch of videos whose rows are the :func:`pairs` of T positions.

    Which pairs a kept pair suppresses, and by which factors, depends only on the kept pair. So this is looked up and
    not computed. The rows stay in the order of the table, so argmax breaks ties by row, but the rule breaks them by the
    score before suppression. Every tie is noticed in ``tied``, and then the video goes through :func:`soft_nms`.

    Args:
        score: finite numbers [B, T(T-1)/2].
        temporal_scale: T.
        opt: dict with the soft_nms options.

    Returns:
        list of B float64 arrays [n <= 100, 3], as in :func:`proposals`.
    """
    batch, rows = score.shape
    xmin, xmax = pairs(temporal_scale)[2:]
    if rows == 1:
        return [soft_nms(xmin, xmax, its_score, opt) for its_score in score]
    look_up = functools.partial(_grid_suppression, temporal_scale, *_rule(opt))
    current = np.array(score, np.float64, order="C")
    flat, base = current.reshape(-1), np.arange(batch) * rows
    steps = min(KEPT, rows - 1)
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
            np.stack([kept_score[:-1, video], xmin[kept[:, video]], xmax[kept[:, video]]], axis=1)[:WRITTEN]
            for video in range(batch)]


def _rule(opt):
    return opt["soft_nms_alpha"], opt["soft_nms_low_thres"], opt["soft_nms_high_thres"]


def _suppression(xmin, xmax, best, alpha, low, high, rule="reference"):
    """(rows that row ``best`` suppresses, the factors of their scores); the rows may include ``best`` itself."""
    kept, others = (xmin[best], xmax[best]), (xmin, xmax)
    overlap = iou(*kept, *others) if rule == "mmaction2" else iou(*others, *kept)
    weaker = np.flatnonzero(overlap > low + (high - low) * (xmax[best] - xmin[best]))
    return weaker, np.exp(-np.square(overlap[weaker]) / alpha)


@functools.lru_cache(maxsize=1 << 13)       # all pairs of 100 positions: 25 MB
def _grid_suppression(temporal_scale, alpha, low, high, best):
    return _suppression(*pairs(temporal_scale)[2:], best, alpha, low, high)


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
