"""The classes of whole videos (--classification_file), which turn proposals into detections."""
import re
from typing import Any, Callable, Collection, Dict, List, Optional, Tuple

import numpy as np

from bmn.errors import UserError
from bmn.files import read_json
from bmn.values import by_id, counted, label_text, video_id

# UntrimmedNet's file for THUMOS-14: the columns of the twenty classes among the 101 of UCF-101, counted from 1.
THUMOS14_COLUMNS = {
    "BaseballPitch": 7, "BasketballDunk": 9, "Billiards": 12, "CleanAndJerk": 21, "CliffDiving": 22,
    "CricketBowling": 23, "CricketShot": 24, "Diving": 26, "FrisbeeCatch": 31, "GolfSwing": 33, "HammerThrow": 36,
    "HighJump": 40, "JavelinThrow": 45, "LongJump": 51, "PoleVault": 68, "Shotput": 79, "SoccerPenalty": 85,
    "TennisSwing": 92, "ThrowDiscus": 93, "VolleyballSpiking": 97}
UCF101_CLASSES = 101
WRONG = (KeyError, TypeError, ValueError, OverflowError, AttributeError)        # what content of another form raises
FORMS = ('{"results": {id: [{"label", "score"}]}}, {"class": [labels], "results": {id: [scores]}}, or UntrimmedNet\'s '
         ".npy of THUMOS-14")


def read_classification(path: str, wanted: Collection[str], labels: Collection[str], count: int,
                        log: Callable[[str], None] = print) -> Dict[str, List[Tuple[str, float]]]:
    """The best classes of videos: {id: [(label, score)]}, at most ``count`` each, best first.

    Three forms are read: {"results": {id: [{"label", "score"}]}}; {"class": [labels], "results": {id: [a score for
    each label]}}, where the scores may lie in a list of their own; and UntrimmedNet's .npy of THUMOS-14, whose row
    n - 1 is video number n. With and without v_, an id means the same video. Scores that are no probabilities become
    some (:func:`_probabilities`), and ``log`` gets a line about it.

    Args:
        path: the file.
        wanted: the ids that are needed; the file may have others, and may lack some.
        labels: all labels of the data set.
        count: how many classes of a video.
        log: called with one line at a time.

    Raises:
        UserError: the file is missing or of another form, has none of the wanted ids, or has a label among the best
            that is not in ``labels``.
    """
    names, rows = _read_array(path, wanted) if path.endswith(".npy") else _read_object(path)
    spelled = {video_id(name): name for name in wanted}
    rows = {spelled[key]: rows[name] for key, name in by_id(rows, "--classification_file %s" % path).items()
            if key in spelled}
    if not rows:
        raise UserError("--classification_file %s has none of the %s of the result file (%s): give the classes of "
                        "these videos" % (path, counted(len(spelled), "video"), ", ".join(list(wanted)[:3])))
    try:
        best = {name: _best(one, names) for name, one in _probabilities(path, rows, names, log).items()}
    except WRONG:
        raise _another_form(path, _flaw(rows, names)) from None
    best = {name: pairs[:count] for name, pairs in best.items()}
    unknown = sorted({label for pairs in best.values() for label, _ in pairs if label not in labels})
    if unknown:
        raise UserError("--classification_file %s has %s that the ground truth does not know (the first: %s): give "
                        "files of the same data set" % (path, counted(len(unknown), "class"), ", ".join(unknown[:3])))
    return best


def _another_form(path, found):
    return UserError("--classification_file %s does not hold classes: %s; it should look like %s"
                     % (path, found, FORMS))


def _flaw(rows, names):
    """What is wrong with the first video of ``rows`` that has no classes."""
    needed = ("a finite score for each of %s is" % counted(len(names), "class") if names else
              "a list of {\"label\", \"score\"} with finite scores, and labels of text or whole numbers, is")
    for name, row in rows.items():
        try:
            _scores(row, names)
            _best(row, names)
        except WRONG:
            return "video %s has %.80r, but %s needed" % (name, row, needed)
    return "its scores cannot be compared"


def _read_object(path) -> Tuple[Optional[List[str]], Dict[str, Any]]:
    """(labels of the columns or None, {id: row}) of a JSON file."""
    content = read_json(path, "--classification_file")
    results, names = (content.get(key) if isinstance(content, dict) else None for key in ("results", "class"))
    if not isinstance(results, dict):
        raise _another_form(path, "there is no object 'results'")
    try:
        names = None if names is None else [label_text(one) for one in names]
    except WRONG:
        raise _another_form(path, "its 'class' is %.80r, but a list of labels is needed" % (names,)) from None
    if names:
        results = {name: row[0] if isinstance(row, list) and len(row) == 1 and isinstance(row[0], list) else row
                   for name, row in results.items()}
    return names, results


def _read_array(path, wanted):
    """(labels of the columns, {id: row}) of UntrimmedNet's file. Columns of classes that THUMOS-14 lacks have None."""
    try:
        scores = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError("--classification_file %s is not a readable NumPy file (%s): fetch it again" % (path, error)
                        ) from None
    if not isinstance(scores, np.ndarray) or scores.ndim != 2 or scores.shape[1] != UCF101_CLASSES:
        raise UserError("--classification_file %s has the shape %s, but UntrimmedNet's has a row for each video and %d "
                        "columns: give JSON for other data" % (path, getattr(scores, "shape", None), UCF101_CLASSES))
    labels = {column: label for label, column in THUMOS14_COLUMNS.items()}
    numbers = {name: re.search(r"_(\d+)$", name) for name in wanted}
    return ([labels.get(column) for column in range(1, UCF101_CLASSES + 1)],
            {name: scores[int(found.group(1)) - 1].tolist() for name, found in numbers.items()
             if found and 1 <= int(found.group(1)) <= len(scores)})


def _probabilities(path, rows, names, log):
    """The rows with scores from 0 to 1.

    Scores below 0 or above 1 in any row mean that all rows are logits, and get a soft-max. But rows of equal sums
    without a negative number are probabilities times a constant, such as UntrimmedNet's, which add those of two
    streams: they are divided by it.
    """
    scores = {name: _scores(row, names) for name, row in rows.items()}
    low, high = (pick(pick(one) for one in scores.values() if len(one)) for pick in (min, max))
    if low >= 0 and high <= 1:
        return rows
    sums = np.array([one.sum() for one in scores.values()])
    if low >= 0 and np.ptp(sums) <= 1e-3 * sums.max():
        log("%s: the scores of each video sum to %g, so they are divided by it" % (path, sums.mean()))
        changed = {name: one / one.sum() for name, one in scores.items()}
    else:
        log("%s: the scores go from %g to %g, so they are taken for logits, and get a soft-max" % (path, low, high))
        exponentials = {name: np.exp(one - one.max()) for name, one in scores.items()}
        changed = {name: one / one.sum() for name, one in exponentials.items()}
    return {name: one.tolist() if names else [dict(old, score=score) for old, score in zip(rows[name], one.tolist())]
            for name, one in changed.items()}


def _scores(row, names):
    """float64 [classes] of a video, from either form; ValueError where they are not finite."""
    scores = np.array([one if names else one["score"] for one in row], np.float64)
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise ValueError("a score is not a finite number")
    return scores


def _best(row, names):
    """[(label, score)] of a video, best first, from either form."""
    if not len(row) or (names and len(names) != len(row)):
        raise ValueError("another number of scores than of classes")
    pairs = zip(names, row) if names else [(label_text(one["label"]), one["score"]) for one in row]
    return sorted([(label, float(score)) for label, score in pairs if label is not None], key=lambda pair: -pair[1])
