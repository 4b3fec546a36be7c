"""AR@AN and AUC of a result file, by ActivityNet's protocol for temporal action proposals."""
import collections
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from bmn.data.annotations import Video
from bmn.data.ground_truth import GroundTruth, ground_truth_of, read_ground_truth
from bmn.data.segments import tiou
from bmn.errors import UserError
from bmn.options import with_defaults
from bmn.results import figures
from bmn.results.baselines import best_list, in_seconds, random_list
from bmn.results.protocols import PROTOCOLS, Protocol
from bmn.results.result_files import odd_times, read_proposals
from bmn.values import counted, video_id

SUBSET = "validation"
THRESHOLDS = PROTOCOLS["activitynet"].recall_at

# ground_truth {id: [(start, end, label)]} and proposals {id: float64 [n, 3]} (score, start, end) are in seconds. The
# next three are what run_evaluation returns; protocol is a bmn.results.protocols.Protocol.
Evaluation = collections.namedtuple(
    "Evaluation", "ground_truth proposals average_numbers average_recall recall protocol")


def ranked(proposals: np.ndarray) -> np.ndarray:
    """Segments [n, 2] of proposals [n, 3] (score, start, end), best first. Of equal scores the later one comes first.

    The official evaluators sort in ascending order and turn that around. They leave open how equals are sorted.
    """
    return proposals[np.argsort(proposals[:, 0], kind="stable")[::-1], 1:]


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
        hit = hit[np.flatnonzero(np.diff(segment[hit], prepend=-1))]        # the best ranked of each
        row[segment[hit]] = rank[hit]
    return first


def average_recall(ground_truth: Dict[str, List[tuple]], proposals: Dict[str, np.ndarray],
                   max_avg_nr_proposals: Optional[float] = 100, tiou_thresholds: np.ndarray = THRESHOLDS,
                   points: int = 100) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Recall against the average number of proposals per video.

    Args:
        ground_truth, proposals, max_avg_nr_proposals, tiou_thresholds, points: as in :func:`hits_by_number`.

    Returns:
        (average numbers [points], mean recall [points], recall [H, points]).

    Raises:
        UserError: ``max_avg_nr_proposals`` leaves no proposal of these videos.
    """
    numbers, first, looked_at = hits_by_number(ground_truth, proposals, max_avg_nr_proposals, tiou_thresholds, points)
    recall = recall_of(first, looked_at)
    return numbers, recall.mean(axis=0), recall


def hits_by_number(ground_truth: Dict[str, List[tuple]], proposals: Dict[str, np.ndarray],
                   max_avg_nr_proposals: Optional[float] = 100, tiou_thresholds: np.ndarray = THRESHOLDS,
                   points: int = 100) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which action is hit at which average number of proposals: what :func:`average_recall` counts.

    Args:
        ground_truth: {id: [(start, end, label)]}, V videos, G actions.
        proposals: {id: float64 [n, 3]} (score, start, end). Those of other videos count in the total number, because
            the protocol counts them.
        max_avg_nr_proposals: the last average number; None means the average of all proposals.
        tiou_thresholds: [H].
        points: how many average numbers there are, at equal distances up to the last.

    Returns:
        (average numbers [points], rank of the best proposal that hits each action [H, G], number of proposals that are
        looked at in its video [G, points]), with the actions in the order of ``ground_truth``.

    Raises:
        UserError: as in :func:`average_recall`.
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
    fraction = np.arange(1, points + 1) / float(points) * (wanted * float(videos) / number.sum())
    looked_at = np.minimum((number[:, None] * fraction).astype(int), number[:, None])      # [V, points]
    first = first_hits(segments, video_of, kept, tiou_thresholds)
    return fraction * (float(number.sum()) / videos), first, looked_at[video_of]


def recall_of(first: np.ndarray, looked_at: np.ndarray) -> np.ndarray:
    """Recall [H, points] of some actions; :func:`hits_by_number` gives their ``first`` and ``looked_at``."""
    return np.array([(row[:, None] < looked_at).sum(axis=0) for row in first]) / float(len(looked_at))


def recall_of_videos(ground_truth: Dict[str, List[tuple]], proposals: Dict[str, np.ndarray],
                     number: int = 100, tiou_thresholds: np.ndarray = THRESHOLDS) -> Dict[str, float]:
    """{id: recall of the best ``number`` proposals of the video, mean over thresholds}; see :func:`average_recall`."""
    segments, video_of = _flat(ground_truth)
    kept = [ranked(proposals.get(name, np.empty((0, 3))))[:number] for name in ground_truth]
    found = (first_hits(segments, video_of, kept, tiou_thresholds) < number).mean(axis=0)    # [G]
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
        UserError: a file is missing or of another form, the subset has no action, or its videos have no proposal.
    """
    source = "result file %s" % proposal_filename
    ground_truth = read_ground_truth(ground_truth_filename, subset)
    if not ground_truth.actions:
        raise UserError("ground truth %s has no action of a video of subset '%s': give the file that holds this subset"
                        % (ground_truth_filename, subset))
    proposals = ground_truth.aligned(read_proposals(proposal_filename), source)
    return _evaluate(ground_truth.actions, ground_truth.lengths, proposals, source, max_avg_nr_proposals,
                     np.asarray(tiou_thresholds))


def _evaluate(actions, lengths, proposals, source, max_avg_nr_proposals=100, tiou_thresholds=THRESHOLDS, points=100):
    missed = count_missed(actions, proposals, source)
    if missed:
        print("no proposals for %d of %s: counted as missed" % (missed, counted(len(actions), "video")),
              flush=True)
    for line in odd_times(proposals, actions, lengths, source):
        print(line, flush=True)
    curve = average_recall(actions, proposals, max_avg_nr_proposals, tiou_thresholds, points)
    print("\tArea Under the AR vs AN curve: %s%%" % area_under_curve(curve[0], curve[1]), flush=True)
    return curve


def count_missed(ground_truth: Dict[str, List[tuple]], proposals: Dict[str, np.ndarray], source: str) -> int:
    """How many videos of the ground truth have no proposal; ``source`` names the proposals in the error message.

    Raises:
        UserError: none of the videos has a proposal.
    """
    missed = sum(not len(proposals.get(name, ())) for name in ground_truth)
    if missed == len(ground_truth):
        raise UserError("%s has no proposal of any of the %s of the ground truth: give files that belong "
                        "together" % (source, counted(missed, "video")))
    return missed


def plot_metric(opt: dict, average_nr_proposals: np.ndarray, average_recall: np.ndarray, recall: np.ndarray,
                tiou_thresholds: np.ndarray = THRESHOLDS) -> None:
    """Draw the AR-AN curve into opt["save_fig_path"]; the arrays are what :func:`run_evaluation` returns.

    Raises:
        UserError: the figure cannot be written.
    """
    figures.save(figures.recall_curve(average_nr_proposals, average_recall, recall, tiou_thresholds),
                 opt["save_fig_path"])


def evaluation_proposal(opt: dict, proposals: Optional[Dict[str, np.ndarray]] = None,
                        ground_truth: Optional[GroundTruth] = None) -> Optional[Evaluation]:
    """Evaluate opt["result_file"]: print the AUC and AR@1, 5, 10, 100 (what --protocol reports), and draw the curve.

    Args:
        opt: dict; result_file, save_fig_path, ground_truth, video_info, video_anno, validation_subset, blocked and
            protocol are read.
        proposals: {id: float64 [n, 3]} (score, start, end in seconds), the content of the result file; None reads the
            file. To read half a million proposals takes longer than to evaluate them.
        ground_truth: None reads it.

    Returns:
        the Evaluation, or None where no video has an action, so that there is nothing to evaluate; a line says so.

    Raises:
        UserError: as in :func:`run_evaluation`, or the figure cannot be written.
    """
    opt = with_defaults(opt)
    source, protocol = "result file %s" % opt["result_file"], PROTOCOLS[opt["protocol"]]
    ground_truth = ground_truth_of(opt) if ground_truth is None else ground_truth
    actions = protocol.split(ground_truth.actions)[0]
    if not actions:
        print("there is nothing to evaluate: none of the %s of the validation subset has an action in %s"
              % (counted(ground_truth.videos, "video"), ground_truth.source), flush=True)
        return None
    proposals = ground_truth.aligned(read_proposals(opt["result_file"]) if proposals is None else proposals, source)
    curve = _evaluate(actions, ground_truth.lengths, proposals, source, protocol.points, protocol.recall_at,
                      protocol.points)
    for number in protocol.numbers:
        recall = average_recall_at(curve[2], number)
        # Scripts look for AR@100, with all its digits.
        print("AR@%d is \t%s" % (number, recall if number == 100 else "%.4f" % recall), flush=True)
    plot_metric(opt, *curve, protocol.recall_at)
    return Evaluation(actions, proposals, *curve, protocol)


def baselines(ground_truth: Dict[str, List[tuple]], training: Dict[str, Video], videos: Dict[str, Video],
              protocol: Protocol = PROTOCOLS["activitynet"]) -> Dict[str, Tuple[np.ndarray, ...]]:
    """What proposals reach that look at no video: {what they are: as :func:`average_recall` returns it}.

    Args:
        ground_truth: {id: [(start, end, label)]}.
        training: the videos whose actions the best list is made for; without actions there is no such list.
        videos: the evaluated videos, for their lengths. Others of the ground truth get no proposals, and count as
            missed, as they do where a network is measured.
        protocol: of the evaluation.
    """
    seconds = {video_id(name): video.seconds for name, video in videos.items()}
    actions = np.array([(start / video.seconds, end / video.seconds) for video in training.values()
                        for start, end, _ in video.actions]).reshape(-1, 2)
    number, generator = protocol.numbers[-1], np.random.RandomState(0)
    lists = {"random": lambda: random_list(number, generator)}
    if len(actions):
        chosen = best_list(actions, protocol.recall_at, number)
        if len(chosen):         # none, where no proposal meets an action: they have no length, or lie outside
            name = "the best list without features"
            if len(chosen) < number:
                name += " (%s)" % counted(len(chosen), "proposal")
            lists[name] = lambda: chosen
    known = [name for name in ground_truth if video_id(name) in seconds]
    return {what: average_recall(
        ground_truth, {name: in_seconds(make(), seconds[video_id(name)]) for name in known},
        protocol.points, protocol.recall_at, protocol.points) for what, make in lists.items() if known}


def average_recall_at(recall: np.ndarray, number: int) -> float:
    """AR@number, from recall [H, points]: the mean over the thresholds."""
    return float(recall[:, number - 1].mean())
