"""The two annotation files: which videos there are (--video_info) and what happens in them (--video_anno)."""
import csv
import math
from typing import Any, Dict, Iterable, List, Optional, Tuple

from bmn.errors import UserError
from bmn.files import read_json
from bmn.inputs import open_text

NEEDED = ("duration_frame", "duration_second", "feature_frame")


def video_id(name: str) -> str:
    """The id of a video in result and ground-truth files: its name without the prefix v_."""
    return name[2:] if name.startswith("v_") else name


def same_id(names: Iterable[str]) -> Optional[Tuple[str, str]]:
    """Two different names that have the same id in a result file; None where there are no such names."""
    named = {}
    for name in names:
        other = named.setdefault(video_id(name), name)
        if other != name:
            return other, name
    return None


def read_videos(opt: dict, subset: str) -> Dict[str, dict]:
    """The videos of a subset, in the order of the list: {name: annotation entry}.

    Args:
        opt: dict with ``video_info`` and ``video_anno``.
        subset: the word that the subset of these videos contains: "train" finds "training".

    An entry holds duration_second (seconds), duration_frame, feature_frame (frames) and annotations: a list of
    {"segment": [start, end] in seconds, "label"}, which may be empty.

    Raises:
        UserError: a file is missing, unreadable or of another form, two videos have the same id, a video is not
            annotated, or no video is of that subset.
    """
    rows = read_video_list(opt["video_info"])
    listed = {name: None for name, its_subset in rows if subset in its_subset}       # each name once, in order
    clash = same_id(listed)
    if clash:
        raise UserError("--video_info %s lists %s and %s, which are both video %s in a result file: rename one"
                        % (opt["video_info"], *clash, video_id(clash[0])))
    if not listed:
        found = ", ".join(sorted({"'%s'" % one for _, one in rows})[:5]) or "no rows"
        raise UserError("--video_info %s lists no video whose subset has the word '%s' (it has %s): check that column"
                        % (opt["video_info"], subset, found))
    annotated = read_annotations(opt["video_anno"])
    absent = [name for name in listed if name not in annotated]
    if absent:
        raise UserError("--video_anno %s lacks %d of the %d %s videos of --video_info %s (the first: %s): give an "
                        "annotation file and a list that belong together"
                        % (opt["video_anno"], len(absent), len(listed), subset, opt["video_info"],
                           ", ".join(absent[:3])))
    return {name: checked_entry(name, annotated[name], opt["video_anno"]) for name in listed}


def read_video_list(path: str) -> List[Tuple[str, str]]:
    """[(name, subset)] of the rows of a --video_info file.

    Raises:
        UserError: the file is missing or unreadable, lacks the columns video and subset, or has a row without a name.
    """
    try:
        with open_text(path, "--video_info") as handle:
            rows = csv.DictReader(handle)
            missing = [column for column in ("video", "subset") if column not in (rows.fieldnames or ())]
            if missing:
                raise UserError("--video_info %s has no column '%s': its first line must name video and subset, "
                                "separated by commas, but is %r"
                                % (path, missing[0], ",".join(rows.fieldnames or ())[:80]))
            listed = [(row["video"], row["subset"] or "") for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError("--video_info %s is not a CSV text file (%s): give another file" % (path, error)) from None
    if not all(name for name, _ in listed):
        raise UserError("--video_info %s has a row without a name in its column 'video': correct or remove it" % path)
    return listed


def read_annotations(path: str) -> Dict[str, dict]:
    """{name: entry} of a --video_anno file.

    Raises:
        UserError: the file is missing, unreadable, or not a JSON object of objects.
    """
    annotated = read_json(path, "annotation file (--video_anno)")
    if not isinstance(annotated, dict) or not all(isinstance(entry, dict) for entry in annotated.values()):
        raise UserError("--video_anno %s does not hold a JSON object of videos: it should look like "
                        '{"v_name": {"duration_second": ..., "annotations": [...]}}' % path)
    return annotated


def checked_entry(name: str, entry: dict, path: str) -> dict:
    """The annotation entry of a video, checked and completed: it has a list of annotations, each with a label.

    Args:
        name: the video.
        entry: its entry, which this function changes.
        path: the --video_anno file, for error messages.

    Raises:
        UserError: a duration is not a number above 0, or an annotation has no valid segment.
    """
    for key in NEEDED:
        if not is_number(entry.get(key)) or entry[key] <= 0:
            raise UserError("--video_anno %s: video %s has %s = %.80r, but a number above 0 is needed"
                            % (path, name, key, entry.get(key)))
    if entry.get("annotations") is None:
        entry["annotations"] = []
    if not isinstance(entry["annotations"], list):
        raise UserError("--video_anno %s: video %s has annotations of another form, but a list of {\"segment\": "
                        "[start, end], \"label\"} is needed" % (path, name))
    for annotation in entry["annotations"]:
        segment = annotation.get("segment") if isinstance(annotation, dict) else None
        if not is_segment(segment):
            raise UserError("--video_anno %s: video %s has the segment %.80r, but [start, end] in seconds is needed"
                            % (path, name, segment))
        annotation["label"] = str(annotation.get("label") or "")        # only detection needs it
    return entry


def is_segment(value: Any) -> bool:
    """Whether a value from a JSON file is [start, end] with finite numbers; start may be after end."""
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


def is_number(value: Any) -> bool:
    """Whether a value from a JSON file is a finite number."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:       # a whole number too large for a float
        return False
