"""The ground truth of the evaluation: from --ground_truth, else from the annotation files of the run."""
import math
import os
from typing import Any, Callable, Collection, Dict, List, NamedTuple, Optional, Set, Tuple

from bmn.data.annotation_files import length_in_seconds, read_annotation_file, read_blocked
from bmn.data.annotations import Annotations, read_actions, same_subset, subset_word
from bmn.data.feature_files import few
from bmn.errors import UserError
from bmn.files import no_garbage_collection
from bmn.options import DEFAULTS
from bmn.values import by_id, counted, label_text, number, video_id

REFERENCE_FILE = "./Evaluation/data/activity_net_1_3_new.json"      # where the reference keeps it


class GroundTruth(NamedTuple):
    """What proposals and detections are measured against.

    Attributes:
        actions: {id: [(start, end, label)]} in seconds, for the videos of the subset that have an action. The ids are
            spelled as in the file.
        labels: every label of the file, of all subsets.
        source: the option and the file, for messages.
        videos: number of videos of the subset, with and without actions.
        lengths: {id without v_: seconds} of those of them whose length is known.
    """
    actions: Dict[str, List[Tuple[float, float, str]]]
    labels: Set[str]
    source: str
    videos: int
    lengths: Dict[str, float]

    def spelled(self) -> Dict[str, str]:
        """{id without v_: id as the file spells it}."""
        return {video_id(name): name for name in self.actions}

    def aligned(self, results: Dict[str, Any], source: str) -> Dict[str, Any]:
        """{id: value} of a result file with the ids as they are spelled here; other videos keep theirs.

        Raises:
            UserError: the result file, which ``source`` names, has a video twice, with and without v_.
        """
        spelled = self.spelled()
        return {spelled.get(key, name): results[name] for key, name in by_id(results, source).items()}


def ground_truth_file(opt: dict) -> Optional[str]:
    """--ground_truth, else the reference's default file where it exists, else None."""
    return opt["ground_truth"] or (REFERENCE_FILE if os.path.isfile(REFERENCE_FILE) else None)


def ground_truth_of(opt: dict, log: Callable[[str], None] = print) -> GroundTruth:
    """The ground truth of the validation subset, from :func:`ground_truth_file`.

    Where there is no such file, it is derived from the annotation files, and ``log`` gets a line that says so. It gets
    a line for all odd actions too, unless this run says it of the annotations themselves.

    Args:
        opt: complete dict; ground_truth, video_info, video_anno, validation_subset and blocked are read.
        log: called with one line at a time.

    Raises:
        UserError: a file is missing, of another form, or has no video of the subset.
    """
    path = ground_truth_file(opt)
    if path:
        blocked = read_blocked(opt["blocked"]) if opt["blocked"] else ()
        return read_ground_truth(path, subset_word(opt, "validation"), blocked, log)
    if opt["video_anno"] == DEFAULTS["video_anno"] and not os.path.exists(opt["video_anno"]):
        raise UserError("there is no ground truth: give --ground_truth, or --video_anno, from which it is derived "
                        "(there is no %s)" % opt["video_anno"])
    annotations = Annotations(opt)
    files = " and ".join([opt["video_info"]] * (annotations.listed is not None)
                         + [file.path for file in annotations.files])
    log("ground truth: derived from %s (no --ground_truth, no %s)" % (files, REFERENCE_FILE))
    videos = annotations.subset("validation")
    labels = {label for file in annotations.files for label in _labels(file.videos)}
    truth = GroundTruth({video_id(name): video.actions for name, video in videos.items() if video.actions}, labels,
                        annotations.source(), len(videos),
                        {video_id(name): video.seconds for name, video in videos.items()})
    if opt["mode"] not in ("inference", "full"):        # there main.py has the remarks of the annotations
        _say_what_is_odd(truth, {name: video.reversed_actions for name, video in videos.items()}, log)
    return truth


@no_garbage_collection()
def read_ground_truth(path: str, subset: str, blocked: Collection[str] = (),
                      log: Callable[[str], None] = print) -> GroundTruth:
    """The ground truth in a file whose entries say their subset, of any form but best of ActivityNet's own.

    Args:
        path: the file.
        subset: a word as in annotations.same_subset.
        blocked: names of videos to leave out.
        log: called with a line for all odd actions.

    Raises:
        UserError: the file is missing, of another form, or has no video of the subset.
    """
    videos = read_annotation_file(path, "--ground_truth").videos
    by_id(videos, "--ground_truth %s" % path)
    left_out = set(map(video_id, blocked))
    source = "--ground_truth %s" % path
    names = [name for name, entry in videos.items()
             if entry.get("subset") and same_subset(subset, str(entry["subset"])) and video_id(name) not in left_out]
    if not names:
        there = sorted({"'%s'" % entry.get("subset") for entry in videos.values() if entry.get("subset")})
        raise UserError("ground truth %s has no video of the subset '%s' (its videos are of %s): give the file that "
                        "holds this subset, or another --validation_subset"
                        % (path, subset, ", ".join(there[:6]) or "no subset"))
    actions, left_out, lengths = {}, {}, {}
    for name in names:
        actions[name], left_out[name] = read_actions(name, videos[name], source)
        seconds = number(length_in_seconds(videos[name]))
        if seconds is not None and seconds > 0:
            lengths[video_id(name)] = seconds
    truth = GroundTruth({name: its for name, its in actions.items() if its}, set(_labels(videos)), source, len(names),
                        lengths)
    _say_what_is_odd(truth, left_out, log)
    return truth


def _say_what_is_odd(truth, left_out, log):
    """A line for the actions that end before they start, which are left out, begin before 0 s, or lie outside."""
    actions = [(name, start, end, truth.lengths.get(video_id(name), math.inf))
               for name, its in truth.actions.items() for start, end, _ in its]
    odd = {"with an end before the start, left out": [name for name, count in left_out.items() for _ in range(count)],
           "with a start before 0 s": [name for name, start, end, _ in actions if start < 0 <= end],
           "outside the video": [name for name, start, end, seconds in actions if end < 0 or start >= seconds]}
    total = counted(len(actions) + sum(left_out.values()), "action")
    for what, names in odd.items():
        if names:
            log("%s: %d of %s %s (%s)"
                % (truth.source, len(names), total, what, few(list(dict.fromkeys(names)))))


def _labels(videos):
    """Every label that can be read, of videos of any subset, whatever else is wrong with their entries."""
    for entry in videos.values():
        annotations = entry.get("annotations")
        for one in annotations if isinstance(annotations, list) else ():
            try:
                yield label_text(one.get("label") if isinstance(one, dict) else None)
            except ValueError:
                continue
