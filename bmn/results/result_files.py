"""Files in ActivityNet's result format: {"version", "results": {id: [{"score", "segment"}]}, "external_data"}."""
import itertools
import json
from typing import Dict, Iterable, List, Optional, Tuple

import numpy as np

from bmn.errors import UserError
from bmn.files import no_garbage_collection, read_json, replacing
from bmn.values import counted, label_text, number, seconds_text, video_id

EXAMPLE = '{"results": {id: [{"score": 0.9, "segment": [start, end]}]}}'
BEYOND = 1.05       # a proposal that begins later than this part of its video is told; features may cover a bit more
FAR = 10            # so many times nearer or farther than the last action, the last proposal is told


def write_results(path: str, results: Iterable[Tuple[str, str]]) -> None:
    """Write a result file; ``path`` is replaced in one step.

    Args:
        path: the file.
        results: yields (id, JSON text of its list), one video at a time, because together they have a million dicts.

    Raises:
        UserError: the file cannot be written.
    """
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        handle.write('{"version": "VERSION 1.3", "results": {')
        for index, (name, text) in enumerate(results):
            handle.write("%s%s: %s" % (", " if index else "", json.dumps(name), text))
        handle.write('}, "external_data": {}}')


def proposals_as_json(rows: np.ndarray) -> str:
    """The text that json.dumps makes of the proposals of a video, in half the time, because many seconds are equal.

    Args:
        rows: float64 [n, 3] (score, start, end).
    """
    seconds = rows[:, 1:].ravel().tolist()
    digits = {second: repr(second) for second in set(seconds)}
    return "[%s]" % ", ".join(
        '{"score": %r, "segment": [%s, %s]}' % (score, digits[start], digits[end])
        for score, start, end in zip(rows[:, 0].tolist(), seconds[::2], seconds[1::2]))


def read_proposals(path: str) -> Dict[str, np.ndarray]:
    """Proposals of a result file: {id: float64 [n, 3]} (score, start, end in seconds), in the file's order.

    Raises:
        UserError: the file is missing, of another form, or holds no proposal.
    """
    with no_garbage_collection():
        return _read(path)[1]       # a function, so that its local objects are gone before collection starts again


def read_detections(path: str) -> Optional[Dict[str, List[Tuple[str, float, List[float]]]]]:
    """Detections of a result file: {id: [(label, score, [start, end])]}; None where its rows have no labels.

    Raises:
        UserError: as in :func:`read_proposals`, or some of its rows have labels and others have none.
    """
    return read_both(path)[1]


def read_both(path: str) -> Tuple[Dict[str, np.ndarray], Optional[Dict[str, list]]]:
    """(what :func:`read_proposals` returns, what :func:`read_detections` returns): the rows of the file as they are.

    Raises:
        UserError: as in :func:`read_detections`.
    """
    results, tables = _read(path)
    try:
        labels = {name: [label_text(one.get("label")) for one in rows] for name, rows in results.items()}
    except ValueError as error:
        raise UserError("result file %s: %s" % (path, error)) from None
    labelled = sum(bool(label) for its_labels in labels.values() for label in its_labels)
    if not labelled:
        return tables, None
    if labelled < sum(map(len, labels.values())):
        raise UserError("result file %s has rows with a label and rows without one: give detections, which all have "
                        "one, or proposals, which have none" % path)
    return tables, {name: [(label, score, segment)
                           for label, (score, *segment) in zip(labels[name], tables[name].tolist())]
                    for name in results}


def _read(path):
    """(the lists of the file, {id: float64 [n, 3]})."""
    content = read_json(path, "result file")
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict):
        raise UserError("result file %s holds no object 'results': it should look like %s" % (path, EXAMPLE))
    try:        # all at once, because half a million proposals looked at singly take seconds
        score = np.array([one["score"] for rows in results.values() for one in rows])
        segments = [one["segment"] for rows in results.values() for one in rows]
        segment = np.array(list(itertools.chain.from_iterable(segments)))
        flawed = set(map(len, segments)) - {2} or any(
            one.dtype.kind not in "fiu" or one.ndim != 1 for one in (score, segment))
        table = None if flawed else np.column_stack([score, segment.reshape(-1, 2)]).astype(np.float64)
    except (KeyError, TypeError, ValueError, AttributeError):
        table = None
    if table is None or not np.isfinite(table).all():
        raise UserError("result file %s: %s; a file should look like %s" % (path, _flaw(results), EXAMPLE))
    if not len(table):
        raise UserError("result file %s holds no proposal: run --mode inference again" % path)
    return results, dict(zip(results, np.split(table, np.cumsum([len(rows) for rows in results.values()])[:-1])))


def _flaw(results):
    """What is wrong with the first proposal that cannot be used, and where it is."""
    for name, rows in results.items():
        if not isinstance(rows, list):
            return "video %s has %.80r, but a list of proposals is needed" % (name, rows)
        for place, one in enumerate(rows, 1):
            where = "proposal %d of video %s" % (place, name)
            if not isinstance(one, dict):
                return "%s is %.80r, but an object with score and segment is needed" % (where, one)
            for key in ("score", "segment"):
                if key not in one:
                    return "%s has no %s" % (where, key)
            if not _is_number(one["score"]):
                return "%s has the score %.80r, but a finite number is needed" % (where, one["score"])
            segment = one["segment"]
            if not (isinstance(segment, list) and len(segment) == 2 and all(map(_is_number, segment))):
                return "%s has the segment %.80r, but [start, end] in seconds is needed, two finite numbers" % (
                    where, segment)
    return "some of its numbers are too large"


def _is_number(value):
    """Unlike in annotations, text is none: the official evaluators would sort it as text."""
    return not isinstance(value, str) and number(value) is not None


def odd_times(proposals: Dict[str, np.ndarray], actions: Dict[str, List[tuple]], lengths: Dict[str, float],
              source: str) -> List[str]:
    """A line for everything about the times of proposals that bends their figures: they may be in another unit.

    Args:
        proposals: {id: float64 [n, 3]} (score, start, end), of which at least one is of a video in ``actions``.
        actions: {id: [(start, end, label)]}, the ground truth.
        lengths: {id without v_: seconds} of the videos whose length is known.
        source: names the proposals.
    """
    names = [name for name, rows in proposals.items() if len(rows)]
    counts = np.array([len(proposals[name]) for name in names])                             # [V]
    first = np.cumsum(counts) - counts
    _, start, end = np.concatenate([proposals[name] for name in names]).T                   # [n] each
    length = np.repeat([lengths.get(video_id(name), np.inf) for name in names], counts)
    lines = []
    for odd, what in ((end < start, "with an end before the start"), (
            (start > BEYOND * length) | ((end < 0) & (start <= end)), "outside the video")):
        if odd.any():
            where = [names[video] for video in np.flatnonzero(np.logical_or.reduceat(odd, first))]
            lines.append("%s: %d of %s %s (the first in %s): are they [start, end] in seconds?"
                         % (source, odd.sum(), counted(len(odd), "proposal"), what, ", ".join(where[:3])))
    last = dict(zip(names, np.maximum.reduceat(end, first).tolist()))
    pairs = [(last[name], max(one[1] for one in its)) for name, its in actions.items() if name in last]
    ours, theirs = np.median(np.array(pairs), axis=0)
    if ours < theirs / FAR or ours > theirs * FAR or (max(last.values()) <= 1 and theirs > 2):
        lines.append("%s: in the median video its last proposal ends at %s s, and the last action of the ground "
                     "truth at %s s: are both files in seconds?" % (source, seconds_text(ours), seconds_text(theirs)))
    return lines
