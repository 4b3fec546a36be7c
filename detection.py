"""Temporal action detection: proposals times the classes of whole videos, or detections of others, and their mAP."""
import json
import os
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

import eval as evaluation
from bmn.data.ground_truth import GroundTruth
from bmn.data.segments import intersection, tiou
from bmn.errors import UserError
from bmn.results.classification import read_classification
from bmn.results.protocols import PROTOCOLS, Protocol
from bmn.results.result_files import odd_times, read_proposals, write_results
from bmn.values import counted

FILE = "result_detection.json"


def evaluate_detection(opt: dict, ground_truth: GroundTruth, detections: Optional[Dict[str, list]] = None,
                       log: Callable[[str], None] = print) -> np.ndarray:
    """Classify the proposals of opt["result_file"], measure mAP, and write result_detection.json into its folder.

    Args:
        opt: complete dict; result_file, classification_file, classes and protocol are read.
        ground_truth: what data.ground_truth.ground_truth_of returned.
        detections: what result_files.read_detections returned: where the rows of the result file have labels, they are
            detections already, and are measured as they are.
        log: called with one line at a time.

    Returns:
        mAP at each tIoU of the protocol: float64 [H].

    Raises:
        UserError: a file is missing or of another form, or the files do not belong together.
    """
    source = "result file %s" % opt["result_file"]
    protocol = PROTOCOLS[opt["protocol"]]
    actions, ambiguous = protocol.split(ground_truth.actions)
    if not actions:
        raise UserError("%s has no action of the %s of the validation subset, so there is no mAP: give the file "
                        "that has them" % (ground_truth.source, counted(ground_truth.videos, "video")))
    if detections is None:
        detections = _classified(opt, actions, ground_truth, source, log)
    else:
        log("%s: its rows have labels, so they are measured as detections" % source)
        detections = ground_truth.aligned(detections, source)
    evaluation.count_missed(actions, detections, source)
    for line in odd_times({name: as_proposals(rows) for name, rows in detections.items()}, actions,
                          ground_truth.lengths, source):
        log(line)
    precision = mean_average_precision(actions, detections, protocol, ambiguous)
    for threshold, value in zip(protocol.precision_at, precision.tolist()):
        if round(threshold, 2) in protocol.reported_at:
            log("mAP@%.2f is \t%.4f" % (threshold, value))
    first, second, last = protocol.precision_at[[0, 1, -1]]
    log("mAP@%.2f:%.2f:%.2f is \t%.4f" % (first, second - first, last, float(precision.mean())))
    return precision


def _classified(opt, actions, ground_truth, source, log):
    """{id: [(label, score, [start, end])]} of the proposals and the classes of their videos, written to a file too."""
    if not opt["classification_file"]:
        raise UserError("%s holds proposals without labels: mAP needs the classes of whole videos "
                        "(--classification_file)" % source)
    path = os.path.join(os.path.dirname(opt["result_file"]), FILE)
    if os.path.abspath(path) == os.path.abspath(opt["result_file"]):
        raise UserError("--result_file %s is the file that the detections go to: give the file of the proposals" % path)
    proposals = ground_truth.aligned(read_proposals(opt["result_file"]), source)
    evaluation.count_missed(actions, proposals, source)
    classes = read_classification(opt["classification_file"], proposals, ground_truth.labels, opt["classes"], log)
    without = [name for name in proposals if name not in classes]
    if without:
        log("--classification_file %s lacks %d of the %s of the result file: counted as missed"
            % (opt["classification_file"], len(without), counted(len(proposals), "video")))
    detections = {name: classify(rows, classes[name]) for name, rows in proposals.items()
                  if len(rows) and name in classes}
    write_results(path, ((name, json.dumps([dict(zip(("label", "score", "segment"), row)) for row in rows]))
                         for name, rows in detections.items()))
    log("detections: %s" % path)
    return detections


def classify(proposals: np.ndarray, classes: Sequence[Tuple[str, float]]) -> List[Tuple[str, float, List[float]]]:
    """Every proposal with every class: [(label, product of both scores, [start, end])], best first.

    Args:
        proposals: float64 [n, 3] (score, start, end).
        classes: [(label, score)].
    """
    rows = [(label, score * weight, segment) for label, weight in classes
            for score, *segment in proposals.tolist()]
    return sorted(rows, key=lambda row: -row[1])


def as_proposals(detections: List[Tuple[str, float, List[float]]]) -> np.ndarray:
    """float64 [n, 3] (score, start, end) of the detections of a video, without their labels."""
    return np.array([(score, *segment) for _, score, segment in detections], np.float64).reshape(-1, 3)


def mean_average_precision(ground_truth: Dict[str, List[tuple]], detections: Dict[str, List[tuple]],
                           protocol: Protocol = PROTOCOLS["activitynet"],
                           ambiguous: Dict[str, List[tuple]] = {}) -> np.ndarray:       # noqa: B006 (never changed)
    """mAP over the classes of the ground truth: float64 [H]; arguments as in :func:`average_precisions`."""
    return np.mean(list(average_precisions(ground_truth, detections, protocol, ambiguous).values()), axis=0)


def average_precisions(ground_truth: Dict[str, List[tuple]], detections: Dict[str, List[tuple]], protocol: Protocol,
                       ambiguous: Dict[str, List[tuple]]) -> Dict[str, np.ndarray]:
    """Average precision of each class of the ground truth: {label: float64 [H]}.

    Args:
        ground_truth: {id: [(start, end, label)]}.
        detections: {id: [(label, score, [start, end])]}.
        protocol: its precision_at, [H], and interpolated are read.
        ambiguous: {id: [(start, end, label)]}: a detection that hits no action, and touches one of these, is left out.
    """
    actions, found = {}, {}                 # {label: {id: [(start, end)]}} and {label: [(score, id, segment)]}
    for name, segments in ground_truth.items():
        for start, end, label in segments:
            actions.setdefault(label, {}).setdefault(name, []).append((start, end))
    for name, rows in detections.items():
        for label, score, segment in rows:
            found.setdefault(label, []).append((score, name, segment))
    return {label: _average_precision(its_actions, found.get(label, []), protocol, ambiguous)
            for label, its_actions in actions.items()}


def _average_precision(actions, detections, protocol, ambiguous):
    """Average precision of one class: float64 [H].

    In order of score, each detection is matched with the free action of highest tIoU, if that reaches the threshold.
    """
    thresholds = protocol.precision_at
    if not detections:
        return np.zeros(len(thresholds))
    # Of equal scores the later one comes first, as in the official evaluator, which sorts and turns that around.
    detections = sorted(detections, key=lambda row: row[0])[::-1]
    ranks = {}                                                              # {id: ranks of its detections}
    for rank, (_, name, _) in enumerate(detections):
        ranks.setdefault(name, []).append(rank)
    hit = np.zeros((len(thresholds), len(detections)), bool)
    counted = np.ones(len(detections), bool)
    for name, its_ranks in ranks.items():
        mine = np.array([detections[rank][2] for rank in its_ranks], np.float64)
        if name in actions:
            hit[:, its_ranks] = _hits(mine, np.array(actions[name], np.float64), thresholds)
        if name in ambiguous:
            first, last = np.array([one[:2] for one in ambiguous[name]], np.float64).T
            counted[its_ranks] = ~(intersection(mine[:, :1], mine[:, 1:], first, last) > 0).any(axis=1)
    true = np.cumsum(hit, axis=1)
    recall = true / float(sum(map(len, actions.values())))
    precision = true / np.maximum(np.cumsum(hit | counted, axis=1), 1.0)
    if protocol.interpolated:
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return (np.diff(recall, axis=1, prepend=0) * precision).sum(axis=1)


def _hits(detections, actions, thresholds):
    """Which detections [n, 2] of a video, best first, hit one of its actions [a, 2]: bool [H, n]."""
    hit = np.zeros((len(thresholds), len(detections)), bool)
    free = np.ones((len(thresholds), len(actions)), bool)
    overlap = tiou(detections[:, :1], detections[:, 1:], actions[:, 0], actions[:, 1])          # [n, a]
    # 0/0, of two segments of length 0 at one place: the official code takes it for a hit, because NaN < threshold is
    # false, and looks at it first, because NaN sorts last.
    overlap[np.isnan(overlap)] = np.inf
    for candidate in np.flatnonzero((overlap >= thresholds.min()).any(axis=1)):
        row = overlap[candidate]
        for action in np.argsort(row, kind="stable")[::-1]:                 # the free action of highest tIoU
            take = (row[action] >= thresholds) & free[:, action] & ~hit[:, candidate]
            hit[take, candidate] = True
            free[take, action] = False
    return hit
