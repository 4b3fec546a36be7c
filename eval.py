"""AR@AN and AUC of a result file, by ActivityNet's protocol for temporal action proposals."""
import collections
import os
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from bmn.data.annotations import is_segment, read_videos, video_id
from bmn.data.segments import tiou
from bmn.errors import UserError
from bmn.files import read_json
from bmn.options import with_defaults
from bmn.results import figures
from bmn.results.result_files import read_proposals

GROUND_TRUTH = "./Evaluation/data/activity_net_1_3_new.json"        # where the reference keeps it
SUBSET = "validation"
THRESHOLDS = np.linspace(0.5, 0.95, 10)
REPORTED = (1, 5, 10, 100)

# ground_truth {id: [(start, end, label)]} and proposals {id: float64 [n, 3]} (score, start, end) are in seconds. The
# other three are what run_evaluation returns.
Evaluation = collections.namedtuple("Evaluation", "ground_truth proposals average_numbers average_recall recall")


def read_ground_truth(path: str, subset: str = SUBSET) -> Dict[str, List[tuple]]:
    """Annotated segments of a ground-truth file in ActivityNet's format.

    Returns:
        {id: [(start, end, label)]} in seconds, for the videos of the subset that have a segment.

    Raises:
        UserError: the file is missing, of another form, or has no such video.
    """
    content = read_json(path, "ground truth (--ground_truth)")
    try:
        segments = {name: list(map(_annotated, video["annotations"]))
                    for name, video in content["database"].items() if video["subset"] == subset}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError("ground truth %s is not in ActivityNet's format (%s: %s): it should look like "
                        '{"database": {id: {"subset", "annotations": [{"segment": [start, end], "label"}]}}}'
                        % (path, type(error).__name__, error)) from None
    return _with_segments(segments, "ground truth %s" % path, subset)


def _annotated(one):
    segment, label = one["segment"], one["label"]
    if not (is_segment(segment) and isinstance(label, str)):
        raise ValueError("segment %.80r, label %.80r" % (segment, label))
    return float(segment[0]), float(segment[1]), label


def ground_truth_file(opt: dict) -> Optional[str]:
    """--ground_truth, else the reference's default file where it exists, else None."""
    return opt["ground_truth"] or (GROUND_TRUTH if os.path.isfile(GROUND_TRUTH) else None)


def ground_truth_of(opt: dict, subset: str = SUBSET) -> Dict[str, List[tuple]]:
    """Annotated segments as :func:`read_ground_truth` returns them, from :func:`ground_truth_file`.

    Where there is no such file, they are derived from the annotation files, and a line is printed that says so.

    Args:
        opt: dict; ground_truth, video_info and video_anno are read.

    Raises:
        UserError: a file is missing, of another form, or has no annotated video of the subset.
    """
    path = ground_truth_file(opt)
    if path:
        return read_ground_truth(path, subset)
    print("ground truth: derived from %s and %s (no --ground_truth, no %s)"
          % (opt["video_info"], opt["video_anno"], GROUND_TRUTH), flush=True)
    segments = {video_id(name): [(float(one["segment"][0]), float(one["segment"][1]), one.get("label"))
                                 for one in video["annotations"]]
                for name, video in read_videos(opt, subset).items()}
    return _with_segments(segments, "--video_anno %s" % opt["video_anno"], subset)


def _with_segments(segments, source, subset):
    segments = {name: its_segments for name, its_segments in segments.items() if its_segments}
    if not segments:
        raise UserError("%s has no segment of a video of subset '%s': give the file that holds this subset"
                        % (source, subset))
    return segments


def ranked(proposals: np.ndarray) -> np.ndarray:
    """Segments [n, 2] of proposals [n, 3] (score, start, end), best first. Equal scores keep their order."""
    return proposals[np.argsort(-proposals[:, 0], kind="stable"), 1:]


def first_hits(segments: np.ndarray, video_of: np.ndarray, candidates: List[np.ndarray],
               tiou_thresholds: np.ndarray) -> np.ndarray:
    """Rank, from 0, of the best candidate that matches each annotated segment.

    Args:
        segments: float64 [G, 2] (start, end), the annotated segments.
        video_of: int [G], the video of each segment, as an index into ``candidates``.
        candidates: for each video float64 [n, 2], best first.
        tiou_thresholds: [H].

    Returns:
        int [H, G]; the largest int where no candidate matches.
    """
    count = np.array([len(one) for one in candidates])
    lengths = count[video_of]
    segment = np.repeat(np.arange(len(segments)), lengths)      # [pairs], each segment with each candidate of its video
    rank = np.arange(len(segment)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    candidate = np.concatenate(candidates)[np.repeat((np.cumsum(count) - count)[video_of], lengths) + rank]
    overlap = tiou(candidate[:, 0], candidate[:, 1], segments[segment, 0], segments[segment, 1])
    first = np.full((len(tiou_thresholds), len(segments)), np.iinfo(int).max)
    for row, threshold in zip(first, tiou_thresholds):
        hit = np.flatnonzero(overlap >= threshold)
        found, where = np.unique(segment[hit], return_index=True)       # the first index of each is the best ranked
        row[found] = rank[hit[where]]
    return first


def average_recall(ground_truth: Dict[str, List[tuple]], proposals: Dict[str, np.ndarray],
                   max_avg_nr_proposals: Optional[float] = 100, tiou_thresholds: np.ndarray = THRESHOLDS
                   ) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Recall against the average number of proposals per video.

    Args:
        ground_truth: {id: [(start, end, label)]}, V videos.
        proposals: {id: float64 [n, 3]} (score, start, end). Those of other videos count in the total number, because
            the protocol counts them.
        max_avg_nr_proposals: the last average number; None means the average of all proposals.
        tiou_thresholds: [H].

    Returns:
        (average numbers [100], mean recall [100], recall [H, 100]).

    Raises:
        UserError: ``max_avg_nr_proposals`` leaves no proposal of these videos.
    """
    videos, count = len(ground_truth), sum(map(len, proposals.values()))
    wanted = max_avg_nr_proposals or float(count) / videos
    ratio = wanted * float(videos) / count
    kept = [ranked(proposals.get(name, np.empty((0, 3)))) for name in ground_truth]
    kept = [one[:int(len(one) * ratio)] for one in kept]
    segments, video_of = _flat(ground_truth)

    number = np.array([len(one) for one in kept])                                       # [V]
    if number.sum() < 1:
        raise UserError("an average of %g proposals per video leaves none of the %d in the result file, because most "
                        "of them are of other videos: give files that belong together" % (wanted, count))
    fraction = np.arange(1, 101) / 100.0 * (wanted * float(videos) / number.sum())
    looked_at = np.minimum((number[:, None] * fraction).astype(int), number[:, None])      # [V, 100]
    first = first_hits(segments, video_of, kept, tiou_thresholds)
    recall = np.array([(row[:, None] < looked_at[video_of]).sum(axis=0) for row in first]) / float(len(segments))
    return fraction * (float(number.sum()) / videos), recall.mean(axis=0), recall


def recall_of_videos(ground_truth: Dict[str, List[tuple]], proposals: Dict[str, np.ndarray],
                     number: int = 100) -> Dict[str, float]:
    """{id: recall of the best ``number`` proposals of the video, mean over THRESHOLDS}; see :func:`average_recall`."""
    segments, video_of = _flat(ground_truth)
    kept = [ranked(proposals.get(name, np.empty((0, 3))))[:number] for name in ground_truth]
    found = (first_hits(segments, video_of, kept, THRESHOLDS) < number).mean(axis=0)    # [G]
    return dict(zip(ground_truth, np.bincount(video_of, found) / np.bincount(video_of)))


def _flat(ground_truth):
    """(segments [G, 2], index of the video of each segment [G])."""
    segments = [one[:2] for its_segments in ground_truth.values() for one in its_segments]
    counts = [len(its_segments) for its_segments in ground_truth.values()]
    return np.array(segments, np.float64), np.repeat(np.arange(len(counts)), counts)


def area_under_curve(average_nr_proposals: np.ndarray, average_recall: np.ndarray) -> float:
    """AUC in percent: the trapezoid sum of the mean recall over the average number, divided by the last number."""
    return 100. * float(figures.area(average_nr_proposals, average_recall)) / float(average_nr_proposals[-1])


def run_evaluation(ground_truth_filename: str, proposal_filename: str, max_avg_nr_proposals: Optional[float] = 100,
                   tiou_thresholds: Sequence[float] = THRESHOLDS, subset: str = SUBSET
                   ) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Evaluate a result file and print its AUC.

    Returns:
        (average numbers of proposals [100], mean recall [100], recall [thresholds, 100]).

    Raises:
        UserError: a file is missing or of another form, the subset has no segment, or its videos have no proposal.
    """
    return _evaluate(read_ground_truth(ground_truth_filename, subset), read_proposals(proposal_filename),
                     "result file %s" % proposal_filename, max_avg_nr_proposals, tiou_thresholds)


def _evaluate(ground_truth, proposals, source, max_avg_nr_proposals=100, tiou_thresholds=THRESHOLDS):
    missed = count_missed(ground_truth, proposals, source)
    if missed:
        print("%d of %d videos have no proposals: they count as missed" % (missed, len(ground_truth)), flush=True)
    curve = average_recall(ground_truth, proposals, max_avg_nr_proposals, np.asarray(tiou_thresholds))
    print("\tArea Under the AR vs AN curve: %s%%" % area_under_curve(curve[0], curve[1]), flush=True)
    return curve


def count_missed(ground_truth: Dict[str, List[tuple]], proposals: Dict[str, np.ndarray], source: str) -> int:
    """How many videos of the ground truth have no proposal; ``source`` names the proposals in the error message.

    Raises:
        UserError: none of the videos has a proposal.
    """
    missed = sum(not len(proposals.get(name, ())) for name in ground_truth)
    if missed == len(ground_truth):
        raise UserError("%s has no proposal of any of the %d videos of the ground truth: give files that belong "
                        "together" % (source, missed))
    return missed


def plot_metric(opt: dict, average_nr_proposals: np.ndarray, average_recall: np.ndarray, recall: np.ndarray,
                tiou_thresholds: np.ndarray = THRESHOLDS) -> None:
    """Draw the AR-AN curve into opt["save_fig_path"]; the arrays are what :func:`run_evaluation` returns.

    Raises:
        UserError: the figure cannot be written.
    """
    figures.save(figures.recall_curve(average_nr_proposals, average_recall, recall, tiou_thresholds),
                 opt["save_fig_path"])


def evaluation_proposal(opt: dict, proposals: Optional[Dict[str, np.ndarray]] = None) -> Evaluation:
    """Evaluate opt["result_file"]: print the AUC and AR@1, 5, 10, 100, and draw the curve.

    Args:
        opt: dict; result_file, save_fig_path, ground_truth, video_info and video_anno are read.
        proposals: {id: float64 [n, 3]} (score, start, end in seconds), the content of the result file; None reads the
            file. To read half a million proposals takes longer than to evaluate them.

    Raises:
        UserError: as in :func:`run_evaluation`, or the figure cannot be written.
    """
    opt = with_defaults(opt)
    if proposals is None:
        proposals = read_proposals(opt["result_file"])
    ground_truth = ground_truth_of(opt)
    curve = _evaluate(ground_truth, proposals, "result file %s" % opt["result_file"])
    for number in REPORTED:
        recall = average_recall_at(curve[2], number)
        # Scripts look for the last one, with all its digits.
        print("AR@%d is \t%s" % (number, recall if number == REPORTED[-1] else "%.4f" % recall), flush=True)
    plot_metric(opt, *curve)
    return Evaluation(ground_truth, proposals, *curve)


def average_recall_at(recall: np.ndarray, number: int) -> float:
    """AR@number, from recall [H, 100]: the mean over the thresholds."""
    return float(recall[:, number - 1].mean())
