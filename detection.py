"""Temporal action detection: proposals times the classes of whole videos, and mAP by ActivityNet's protocol."""
import json
import os
from typing import Callable, Collection, Dict, List, Sequence, Set, Tuple

import numpy as np

import eval as evaluation
from bmn.data.annotations import read_annotations, video_id
from bmn.data.segments import tiou
from bmn.errors import UserError
from bmn.files import read_json
from bmn.results.result_files import read_proposals, write_results

CLASSES = 2             # number of best classes of a video that each of its proposals gets
FILE = "result_detection.json"
REPORTED = (0.5, 0.75, 0.95)         # tIoU


def evaluate_detection(opt: dict, log: Callable[[str], None] = print) -> np.ndarray:
    """Classify the proposals of opt["result_file"], measure mAP, and write result_detection.json into its folder.

    Args:
        opt: complete dict; result_file, classification_file, ground_truth, video_info and video_anno are read.
        log: called with one line at a time.

    Returns:
        mAP at each of evaluation.THRESHOLDS: float64 [10].

    Raises:
        UserError: a file is missing or of another form, or the files do not belong together.
    """
    proposals = read_proposals(opt["result_file"])
    ground_truth = evaluation.ground_truth_of(opt)
    evaluation.count_missed(ground_truth, proposals, "result file %s" % opt["result_file"])
    classes = read_classification(opt["classification_file"], proposals, known_labels(opt))
    detections = {name: classify(rows, classes[name]) for name, rows in proposals.items() if len(rows)}
    precision = mean_average_precision(ground_truth, detections)
    path = os.path.join(os.path.dirname(opt["result_file"]), FILE)
    if os.path.abspath(path) == os.path.abspath(opt["result_file"]):
        raise UserError("--result_file %s is the file that the detections go to: give the file of the proposals" % path)
    write_results(path, ((name, json.dumps([dict(zip(("label", "score", "segment"), row)) for row in rows]))
                         for name, rows in detections.items()))
    at = dict(zip(evaluation.THRESHOLDS.round(2).tolist(), precision.tolist()))
    for threshold in REPORTED:
        log("mAP@%.2f is \t%.4f" % (threshold, at[threshold]))
    log("mAP@0.50:0.05:0.95 is \t%.4f" % float(precision.mean()))
    log("detections: %s" % path)
    return precision


def known_labels(opt: dict) -> Set[str]:
    """Every label of the ground truth, of all subsets.

    Raises:
        UserError: the file of the ground truth is missing or unreadable.
    """
    path = evaluation.ground_truth_file(opt)
    videos = read_json(path, "ground truth")["database"] if path else read_annotations(opt["video_anno"])
    listed = [video.get("annotations") for video in videos.values() if isinstance(video, dict)]
    return {one["label"] for annotations in listed if isinstance(annotations, list) for one in annotations
            if isinstance(one, dict) and isinstance(one.get("label"), str)}


def read_classification(path: str, wanted: Collection[str], labels: Collection[str]
                        ) -> Dict[str, List[Tuple[str, float]]]:
    """The best classes of videos: {id: [(label, score)]}, at most CLASSES each, best first.

    Two forms are read: {"results": {id: [{"label", "score"}]}}, and {"class": [labels], "results": {id: [a score for
    each label]}}. An id may have the prefix v_.

    Args:
        path: the file.
        wanted: the ids that are needed; the file may have others.
        labels: all labels of the data set.

    Raises:
        UserError: the file is missing or of another form, lacks a wanted id, or has a label that is not in ``labels``.
    """
    content = read_json(path, "--classification_file")
    try:
        results = {name if name in wanted else video_id(name): rows for name, rows in content["results"].items()}
        best = {name: _best(results[name], content.get("class")) for name in wanted if name in results}
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UserError("--classification_file %s does not hold classes (%s: %s): it should look like "
                        '{"results": {id: [{"label", "score"}]}} or {"class": [labels], "results": {id: [scores]}}'
                        % (path, type(error).__name__, error)) from None
    missing = [name for name in wanted if name not in best]
    if missing:
        raise UserError("--classification_file %s lacks %d of the %d videos of the result file (the first: %s): give "
                        "the classes of these videos" % (path, len(missing), len(wanted), ", ".join(missing[:3])))
    unknown = sorted({str(label) for rows in best.values() for label, _ in rows if label not in labels})
    if unknown:
        raise UserError("--classification_file %s has %d classes that the ground truth does not know (the first: %s): "
                        "give files of the same data set" % (path, len(unknown), ", ".join(unknown[:3])))
    return best


def _best(rows, names):
    """The best (label, score) of a video, from either form."""
    if not rows or (names and len(names) != len(rows)):
        raise ValueError("a video has %d scores%s" % (len(rows), " for %d classes" % len(names) if names else ""))
    pairs = zip(names, rows) if names else [(one["label"], one["score"]) for one in rows]
    pairs = [(label, float(score)) for label, score in pairs]
    if not np.isfinite([score for _, score in pairs]).all():
        raise ValueError("a score is not a finite number")
    if not all(isinstance(label, str) for label, _ in pairs):
        raise ValueError("a label is not text")
    return sorted(pairs, key=lambda pair: -pair[1])[:CLASSES]


def classify(proposals: np.ndarray, classes: Sequence[Tuple[str, float]]) -> List[Tuple[str, float, List[float]]]:
    """Every proposal with every class: [(label, product of both scores, [start, end])], best first.

    Args:
        proposals: float64 [n, 3] (score, start, end).
        classes: [(label, score)].
    """
    rows = [(label, score * weight, segment) for label, weight in classes
            for score, *segment in proposals.tolist()]
    return sorted(rows, key=lambda row: -row[1])


def mean_average_precision(ground_truth: Dict[str, List[tuple]], detections: Dict[str, List[tuple]],
                           tiou_thresholds: Sequence[float] = evaluation.THRESHOLDS) -> np.ndarray:
    """mAP over the classes of the ground truth: float64 [H].

    Args:
        ground_truth: {id: [(start, end, label)]}.
        detections: {id: [(label, score, [start, end])]}.
        tiou_thresholds: [H].
    """
    actions, found = {}, {}                 # {label: {id: [(start, end)]}} and {label: [(score, id, segment)]}
    for name, segments in ground_truth.items():
        for start, end, label in segments:
            actions.setdefault(label, {}).setdefault(name, []).append((start, end))
    for name, rows in detections.items():
        for label, score, segment in rows:
            found.setdefault(label, []).append((score, name, segment))
    thresholds = np.asarray(tiou_thresholds)
    return np.mean([_average_precision(its_actions, found.get(label, []), thresholds)
                    for label, its_actions in actions.items()], axis=0)


def _average_precision(actions, detections, thresholds):
    """Interpolated average precision of one class: float64 [H].

    In order of score, each detection is matched with the free action of highest tIoU, if that reaches the threshold.
    """
    if not detections:
        return np.zeros(len(thresholds))
    detections = sorted(detections, key=lambda row: -row[0])                # stable: equal scores keep their order
    ranks = {}                                                              # {id: ranks of its detections}
    for rank, (_, name, _) in enumerate(detections):
        ranks.setdefault(name, []).append(rank)
    hit = np.zeros((len(thresholds), len(detections)), bool)
    for name in actions.keys() & ranks.keys():
        segments = np.array(actions[name], np.float64)
        free = np.ones((len(thresholds), len(segments)), bool)
        mine = np.array([detections[rank][2] for rank in ranks[name]], np.float64)
        overlap = tiou(mine[:, :1], mine[:, 1:], segments[:, 0], segments[:, 1])        # [detections, actions]
        for candidate in np.flatnonzero((overlap >= thresholds.min()).any(axis=1)):
            rank, row = ranks[name][candidate], overlap[candidate]
            for action in np.argsort(row, kind="stable")[::-1]:             # the free action of highest tIoU
                take = (row[action] >= thresholds) & free[:, action] & ~hit[:, rank]
                hit[take, rank] = True
                free[take, action] = False
    true = np.cumsum(hit, axis=1)
    recall = true / float(sum(map(len, actions.values())))
    precision = true / np.arange(1.0, len(detections) + 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return (np.diff(recall, axis=1, prepend=0) * envelope).sum(axis=1)
