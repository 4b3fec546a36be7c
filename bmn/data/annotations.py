"""Which videos there are, how long they are and what happens in them: --video_anno, --video_info, --blocked."""
import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from bmn.data import annotation_files
from bmn.data.odd_annotations import odd_annotations
from bmn.errors import UserError
from bmn.options import DEFAULTS, with_defaults
from bmn.values import by_id, counted, label_text, number, video_id

SNIPPET = 16            # frames of a snippet of ActivityNet's published features; no other place knows this number
WORDS = {"train": "training", "val": "validation", "valid": "validation", "test": "testing"}


class Video(NamedTuple):
    """A video as the rest of the program sees it, whatever file it comes from. Lengths and times are in seconds.

    Attributes:
        seconds: length of the video.
        feature_seconds: length that its features cover, from 0; its labels are scaled by it.
        proposal_seconds: length by which its proposals are scaled.
        actions: (start, end, label) of each annotated action, with start <= end, as the file has them.
        subset: as the file spells it, "" where no file says it.
        reversed_actions: actions that were left out because they end before they start.
        frames: number of frames, None where no file says it.
    """
    seconds: float
    feature_seconds: float
    proposal_seconds: float
    actions: Sequence[Tuple[float, float, str]] = ()
    subset: str = ""
    reversed_actions: int = 0
    frames: Optional[float] = None


def scaled_lengths(seconds: float, frames: Optional[float], feature_frames: Optional[float]) -> Tuple[float, float]:
    """(seconds that the features cover, seconds that scale the proposals) of a video.

    Where a number of frames is not known (None), the features cover the whole video. Otherwise labels are scaled by
    what the features cover. Proposals are scaled by the whole snippets of 16 frames in the video, as the reference and
    everything that was compared with it do, if the features are made of such snippets. But where that is half of what
    the features cover or less (which no video of ActivityNet comes near), they are no such features, and the length
    that they cover is used.
    """
    if frames is None or feature_frames is None:
        return seconds, seconds
    covered = float(feature_frames) / frames * seconds
    if feature_frames % SNIPPET:
        return covered, covered
    published = float(frames // SNIPPET * SNIPPET) / frames * seconds
    return covered, published if published > covered / 2 else covered


def same_subset(wanted: str, subset: str) -> bool:
    """Whether ``subset`` is meant by the word ``wanted``: without case, as a whole word or contained in it."""
    wanted, subset = wanted.lower(), subset.lower()
    return WORDS.get(wanted, wanted) == WORDS.get(subset, subset) or wanted in subset


def subset_word(opt: dict, subset: str) -> str:
    """The word of the data set for ``subset``: that of --training_subset for "train", of --validation_subset for
    "validation", and else ``subset`` itself."""
    return {"train": opt["training_subset"], "validation": opt["validation_subset"]}.get(subset, subset)


class Annotations:
    """What --video_anno, --video_info and --blocked say together.

    Args:
        opt: complete dict of options; video_anno, video_info, blocked, training_subset and validation_subset are read.

    Attributes:
        files: the annotation files, as annotation_files.AnnotationFile.
        listed: the rows of --video_info, or None where it decides nothing.

    Raises:
        UserError: a file is missing, unreadable or of another form, or two names have the same id.
    """

    def __init__(self, opt: dict):
        self.opt, self._read = opt, {}
        self.files = annotation_files.read_annotation_files(opt["video_anno"])
        self._found = {video_id(name): (name, file) for file in self.files for name in file.videos}
        self.listed = self._read_list(opt["video_info"])
        self.blocked = set(map(video_id, annotation_files.read_blocked(opt["blocked"]))) if opt["blocked"] else set()

    def _read_list(self, path):
        """A list that is not given or, at its default path, is not there or belongs to other data, decides nothing."""
        by_default = path == DEFAULTS["video_info"]
        if not path or (by_default and not os.path.exists(path)):
            return None
        listed = annotation_files.read_video_list(path)
        if by_default and any(self._has_subsets()) and not any(video_id(video.name) in self._found for video in listed):
            return None
        by_id((video.name for video in listed), "--video_info %s" % path)
        return listed

    def _has_subsets(self):
        return (isinstance(entry.get("subset"), str) and bool(entry["subset"])
                for file in self.files for entry in file.videos.values())

    def source(self) -> str:
        """The options that were read, for messages."""
        paths = " ".join(file.path for file in self.files)
        return "--video_anno %s" % paths + ("" if self.listed is None else " --video_info %s" % self.opt["video_info"])

    def subsets(self) -> Dict[str, str]:
        """{name: subset as it is spelled} of all videos but the blocked ones, in the order of the list or file."""
        if self.listed is not None:
            rows = [(video.name, video.subset) for video in self.listed]
        else:
            rows = [(name, str(entry.get("subset") or "")) for file in self.files
                    for name, entry in file.videos.items()]
        named = {}
        for name, subset in rows:       # a name that is listed twice counts once, at its first place
            if video_id(name) not in self.blocked:
                named.setdefault(name, []).append(subset)
        return {name: " ".join(found) for name, found in named.items()}

    def subset(self, subset: str) -> Dict[str, Video]:
        """{name: Video} of a subset, in the order of the list or file.

        Args:
            subset: "train" and "validation" mean what --training_subset and --validation_subset say; any other word
                is itself the subset.

        Raises:
            UserError: no video is of that subset, one of them is not annotated, or its entry is invalid.
        """
        if subset not in self._read:        # a run asks several times, and its entries are checked once
            self._read[subset] = self._read_subset(subset)
        return self._read[subset]

    def _read_subset(self, subset):
        wanted, subsets = subset_word(self.opt, subset), self.subsets()
        names = [name for name, its_subset in subsets.items() if same_subset(wanted, its_subset)]
        if not names:
            raise UserError(self.no_such_subset(subset))
        absent = [name for name in names if video_id(name) not in self._found]
        if absent and not all(file.form == annotation_files.ROWS for file in self.files):
            raise UserError("--video_anno %s lacks %d of the %d %s videos of --video_info %s (the first: %s): give "
                            "annotations and a list that belong together"
                            % (" ".join(file.path for file in self.files), len(absent), len(names), wanted,
                               self.opt["video_info"], ", ".join(absent[:3])))
        lengths = {video.name: video.seconds for video in self.listed or ()}
        return {name: self._video(name, subsets[name], lengths.get(name)) for name in names}

    def subset_or_none(self, subset: str) -> Optional[Dict[str, Video]]:
        """The same as :meth:`subset`, but None where there is no such subset or its entries cannot be used."""
        try:
            return self.subset(subset)
        except UserError:
            return None

    def has(self, subset: str) -> bool:
        """Whether a video is of a subset; the argument is that of :meth:`subset`."""
        return any(same_subset(subset_word(self.opt, subset), one) for one in self.subsets().values())

    def no_such_subset(self, subset: str) -> str:
        """The sentence for a subset that is not there."""
        wanted, subsets = subset_word(self.opt, subset), self.subsets()
        option = {"train": "--training_subset %s" % wanted, "validation": "--validation_subset %s" % wanted}.get(
            subset, "'%s'" % wanted)
        there = sorted(set(subsets.values()) - {""})
        where = "--video_info %s" % self.opt["video_info"] if self.listed is not None else self.source()
        if not there:
            return ("%s does not say which subset a video belongs to: give --video_info, a CSV file with the columns "
                    "video and subset" % where)
        return "%s: %s has no video of that subset, but of %s: name one of these" % (
            option, where, ", ".join("'%s'" % one for one in there[:6]))

    def _video(self, name, subset, listed_length):
        """The Video ``name``; ``listed_length`` is its length in the list, or None."""
        its_name, file = self._found.get(video_id(name), (name, self.files[0]))
        entry = file.videos.get(its_name, {})
        if annotation_files.length_in_seconds(entry) is None and listed_length:
            source = "--video_info %s" % self.opt["video_info"]
            entry = dict(entry, duration_second=length_of(listed_length, name, source))
        return read_entry(its_name, entry, "--video_anno %s" % file.path, subset)


def read_videos(opt: dict, subset: str) -> Dict[str, Video]:
    """The videos of a subset: see :class:`Annotations` and its method subset; ``opt`` may lack options."""
    return Annotations(with_defaults(opt)).subset(subset)


def read_entry(name: str, entry: dict, source: str, subset: str = "") -> Video:
    """A Video from its entry in an annotation file.

    Args:
        name: the video.
        entry: as bmn/data/annotation_files.py describes it.
        source: the option and the file, for error messages.
        subset: as the files spell it.

    Raises:
        UserError: its length is missing or no number above 0, or an annotation has no valid segment or label.
    """
    seconds = length_of(annotation_files.length_in_seconds(entry), name, source)
    frames = {key: annotation_files.frame_count(entry, key) for key in ("duration_frame", "feature_frame")}
    for key, value in frames.items():
        if value is not None:
            frames[key] = number(value)
            if frames[key] is None or frames[key] <= 0:
                raise UserError("%s: video %s has %s = %.80r, but a number above 0 is needed"
                                % (source, name, key, value))
    actions, left_out = read_actions(name, entry, source)
    return Video(seconds, *scaled_lengths(seconds, *frames.values()), actions, subset, left_out,
                 frames["duration_frame"] or _frames(entry, seconds))


def length_of(value: Any, name: str, source: str) -> float:
    """The length of a video in seconds from what a file says of it; None and "" mean that it says nothing.

    Raises:
        UserError: it says nothing, or the length is no number above 0. ``source`` names the option and the file.
    """
    seconds = number(value)
    if value is None or value == "":
        raise UserError("%s says nothing of the length of video %s: give it in seconds, in JSON as duration_second or "
                        "duration, in a CSV file in a column duration" % (source, name))
    if seconds is None or seconds <= 0:
        raise UserError("%s: video %s has the length %.80r, but a number of seconds above 0 is needed"
                        % (source, name, value))
    return seconds


def _frames(entry, seconds):
    """What ActivityNet's own form says of the frames of a video; None where it says nothing."""
    frames, rate = (number(entry.get(key)) for key in ("frame", "fps"))
    return frames if frames and frames > 0 else seconds * rate if rate and rate > 0 else None


def read_actions(name: str, entry: dict, source: str) -> Tuple[List[Tuple[float, float, str]], int]:
    """([(start, end, label)] of an entry, number of those that were left out because they end before they start).

    Raises:
        UserError: an annotation has no valid segment or label.
    """
    annotations = entry.get("annotations")
    if not isinstance(annotations, (list, type(None))):
        raise UserError("%s: video %s has annotations of another form, but a list of {\"segment\": [start, end], "
                        "\"label\"} is needed" % (source, name))
    actions = []
    for one in annotations or ():
        segment = one.get("segment") if isinstance(one, dict) else None
        times = list(map(number, segment)) if isinstance(segment, list) else []
        if len(times) != 2 or None in times:
            raise UserError("%s: video %s has the segment %.80r, but [start, end] in seconds is needed"
                            % (source, name, segment))
        try:
            actions.append((float(times[0]), float(times[1]), label_text(one.get("label"))))
        except ValueError as error:
            raise UserError("%s: video %s: %s" % (source, name, error)) from None
    kept = [action for action in actions if action[0] <= action[1]]
    return kept, len(actions) - len(kept)


def remarks(annotations: Annotations, subsets: Sequence[Dict[str, Video]]) -> List[str]:
    """What a run says at its start about its subsets: a line for --blocked, and for each thing that bends its figures.
    """
    lines = []
    if annotations.blocked:
        there = annotations.blocked & {video_id(name) for file in annotations.files for name in file.videos}
        lines.append("--blocked %s: leaves out the %d of its %s that the annotations have"
                     % (annotations.opt["blocked"], len(there), counted(len(annotations.blocked), "video")))
    return lines + [str(one) for one in odd_annotations(annotations, subsets) if one.bends]
