"""AR@AN and AUC of a result file, by ActivityNet's protocol for temporal action proposals."""
import os

import numpy as np

import figures
from annotations import read_videos, video_id
from defaults import with_defaults
from errors import UserError
from files import read_json
from segments import tiou

GROUND_TRUTH = "./Evaluation/data/activity_net_1_3_new.json"        # where the reference keeps it
SUBSET = "validation"
THRESHOLDS = np.linspace(0.5, 0.95, 10)
REPORTED = (1, 5, 10, 100)


def read_ground_truth(path, subset=SUBSET):
    """Annotated segments of a ground-truth file in ActivityNet's format.

    Returns:
        {id: [(start, end, label)]} in seconds, of the subset's videos that have any.

    Raises:
        UserError: the file is missing, of another form, or has no such video.
    """
    content = read_json(path, "ground truth (--ground_truth)")
    try:
        segments = {name: [(float(one["segment"][0]), float(one["segment"][1]), one["label"])
                           for one in video["annotations"]]
                    for name, video in content["database"].items() if video["subset"] == subset}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError("ground truth %s is not in ActivityNet's format (%s: %s): it should look like "
                        '{"database": {id: {"subset", "annotations": [{"segment": [start, end], "label"}]}}}'
                        % (path, type(error).__name__, error)) from None
    return _with_segments(segments, "ground truth %s" % path, subset)


def ground_truth_of(opt, subset=SUBSET):
    """As :func:`read_ground_truth`, of --ground_truth, else of the reference's default file where it exists, else
    derived from the annotation files, which is said in one line."""
    if opt["ground_truth"]:
        return read_ground_truth(opt["ground_truth"], subset)
    if os.path.isfile(GROUND_TRUTH):
        return read_ground_truth(GROUND_TRUTH, subset)
    print("Ground truth: derived from %s and %s (no --ground_truth, no %s)"
          % (opt["video_info"], opt["video_anno"], GROUND_TRUTH))
    segments = {video_id(name): [(float(one["segment"][0]), float(one["segment"][1]), one.get("label"))
                                 for one in video["annotations"]]
                for name, video in read_videos(opt, subset).items()}
    return _with_segments(segments, "--video_anno %s" % opt["video_anno"], subset)


def _with_segments(segments, source, subset):
    segments = {name: its_segments for name, its_segments in segments.items() if its_segments}
    if not segments:
        raise UserError("%s annotates no segment of a video of subset '%s': give the file that holds this subset"
                        % (source, subset))
    return segments


def read_proposals(path):
    """Proposals of a result file: {id: float64 [n, 3]} (score, start, end in seconds), in the file's order.

    Raises:
        UserError: the file is missing, of another form, or holds no proposal.
    """
    content = read_json(path, "result file (--result_file)")
    try:
        results = {name: np.array([(one["score"], *one["segment"]) for one in its_proposals],
                                  np.float64).reshape(-1, 3)
                   for name, its_proposals in content["results"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError("result file %s does not hold proposals (%s: %s): it should look like "
                        '{"results": {id: [{"score": 0.9, "segment": [start, end]}]}}'
                        % (path, type(error).__name__, error)) from None
    if not any(map(len, results.values())):
        raise UserError("result file %s holds no proposal: run --mode inference again" % path)
    return results


def average_recall(ground_truth, proposals, max_avg_nr_proposals=100, tiou_thresholds=THRESHOLDS):
    """Recall against the average number of proposals a video.

    Args:
        ground_truth: {id: [(start, end, label)]}, V videos.
        proposals: {id: float64 [n, 3]} (score, start, end); unknown videos count in the total, as the protocol has it.
        max_avg_nr_proposals: A, the last average number; None: as many as there are.
        tiou_thresholds: [H].

    Returns:
        (average numbers [100], mean recall [100], recall [H, 100]).
    """
    videos = len(ground_truth)
    count = sum(map(len, proposals.values()))
    wanted = max_avg_nr_proposals or float(count) / videos
    ratio = wanted * float(videos) / count

    kept, segments, video_of = [], [], []       # kept: [n, 2] a video; the others: one entry an annotated segment
    for name, its_segments in ground_truth.items():
        its_proposals = proposals.get(name, np.empty((0, 3)))
        order = np.argsort(-its_proposals[:, 0], kind="stable")
        video_of += [len(kept)] * len(its_segments)
        segments += [one[:2] for one in its_segments]
        kept.append(its_proposals[order[:int(len(order) * ratio)], 1:])
    segments, video_of = np.array(segments, np.float64), np.array(video_of)
    number = np.array([len(one) for one in kept])                                       # [V]
    share = np.arange(1, 101) / 100.0 * (wanted * float(videos) / number.sum())
    looked_at = np.minimum((number[:, None] * share).astype(int), number[:, None])      # [V, 100]

    # every annotated segment against every kept proposal of its video, by rank
    lengths = number[video_of]
    segment = np.repeat(np.arange(len(segments)), lengths)                              # [pairs]
    rank = np.arange(len(segment)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    candidate = np.concatenate(kept)[(np.cumsum(number) - number)[video_of[segment]] + rank]
    overlap = tiou(candidate[:, 0], candidate[:, 1], segments[segment, 0], segments[segment, 1])

    recall = np.empty((len(tiou_thresholds), 100))
    for row, threshold in enumerate(tiou_thresholds):
        hit = np.flatnonzero(overlap >= threshold)
        found, first = np.unique(segment[hit], return_index=True)       # the first hit of a segment is its best ranked
        recall[row] = (rank[hit[first]][:, None] < looked_at[video_of[found]]).sum(axis=0) / float(len(segments))
    return share * (float(number.sum()) / videos), recall.mean(axis=0), recall


def area_under_curve(average_nr_proposals, average_recall):
    """AUC in percent: the trapezoid sum of the mean recall over the average number, by the last number."""
    widths = np.diff(average_nr_proposals)
    area = (widths * (average_recall[1:] + average_recall[:-1]) / 2.0).sum()
    return 100. * float(area) / float(average_nr_proposals[-1])


def run_evaluation(ground_truth_filename, proposal_filename, max_avg_nr_proposals=100, tiou_thresholds=THRESHOLDS,
                   subset=SUBSET):
    """Evaluate a result file, print its AUC.

    Returns:
        (average numbers of proposals [100], mean recall [100], recall [thresholds, 100]).

    Raises:
        UserError: a file is missing or of another form, the subset has no segment, or there is no proposal.
    """
    return _evaluate(read_ground_truth(ground_truth_filename, subset), read_proposals(proposal_filename),
                     proposal_filename, max_avg_nr_proposals, tiou_thresholds)


def _evaluate(ground_truth, proposals, source, max_avg_nr_proposals=100, tiou_thresholds=THRESHOLDS):
    missed = sum(not len(proposals.get(name, ())) for name in ground_truth)
    if missed == len(ground_truth):
        raise UserError("result file %s has no proposal of any of the %d videos of the ground truth: give files that "
                        "belong together" % (source, missed))
    if missed:
        print("%d of %d videos have no proposals and count as missed" % (missed, len(ground_truth)))
    curve = average_recall(ground_truth, proposals, max_avg_nr_proposals, np.asarray(tiou_thresholds))
    print("\tArea Under the AR vs AN curve: %s%%" % area_under_curve(curve[0], curve[1]))
    return curve


def plot_metric(opt, average_nr_proposals, average_recall, recall, tiou_thresholds=THRESHOLDS):
    """Draw the AR-AN curve to opt["save_fig_path"]; arguments as :func:`run_evaluation` returns them."""
    figures.save(figures.recall_curve(average_nr_proposals, average_recall, recall, tiou_thresholds),
                 opt["save_fig_path"])


def evaluation_proposal(opt):
    """Evaluate opt["result_file"]: print the AUC and AR@1, 5, 10, 100, draw the curve.

    Returns:
        (average numbers [100], mean recall [100], recall [10, 100]).

    Raises:
        UserError: as :func:`run_evaluation`, or the figure cannot be written.
    """
    opt = with_defaults(opt)
    curve = _evaluate(ground_truth_of(opt), read_proposals(opt["result_file"]), opt["result_file"])
    plot_metric(opt, *curve)
    for number in REPORTED:
        print("AR@%d is \t%s" % (number, float(curve[2][:, number - 1].mean())), flush=True)
    return curve
