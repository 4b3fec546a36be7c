"""What lies beside features that were extracted from videos: videos.csv, how long they are, and features.json, how.

``videos.csv`` has a row for each video: video, seconds, frames, fps, snippets, stride. The first four are those of the
file; row i of the features begins i * stride frames after its beginning. ``features.json`` names the backbone and the
sampling, so that features of other videos can be made in the same way.
"""
import csv
import os
from typing import Dict, Iterable, List, NamedTuple, Optional

from bmn.errors import UserError
from bmn.files import read_json, replacing, write_json
from bmn.inputs import open_text
from bmn.values import number

VIDEOS, DESCRIPTION = "videos.csv", "features.json"
VIDEO_ENDINGS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".ogv", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts",
                 ".wmv", ".flv", ".3gp")        # of video files, those first that browsers play
COLUMNS = ("video", "seconds", "frames", "fps", "snippets", "stride")


class Length(NamedTuple):
    """A row of videos.csv."""
    seconds: float
    frames: int
    fps: float
    snippets: int
    stride: float


def is_list(file: str, there: Iterable[str]) -> bool:
    """Whether a file of a feature folder is this list and no table of features; ``there`` are all files of it."""
    return file == VIDEOS and DESCRIPTION in there


def made_in(folder: str) -> bool:
    """Whether tools/extract_features.py made the features in ``folder``."""
    return all(os.path.isfile(os.path.join(folder, name)) for name in (VIDEOS, DESCRIPTION))


def read_lengths(folder: str) -> Dict[str, Length]:
    """{video: Length} of videos.csv in ``folder``; {} where nothing was extracted there.

    Raises:
        UserError: the file cannot be read, or is another one.
    """
    path = os.path.join(folder, VIDEOS)
    if not made_in(folder):
        return {}
    lengths = {}
    try:
        with open_text(path, "list of extracted videos") as handle:
            for row in csv.DictReader(handle):
                values = [number(row.get(name)) for name in COLUMNS[1:]]
                if None in values or min(values) <= 0:
                    raise ValueError("video %.80r has no lengths" % row.get("video"))
                length = Length(values[0], int(values[1]), values[2], int(values[3]), values[4])
                if lengths.setdefault(row["video"], length) != length:
                    raise ValueError("video %.80r has two rows that differ" % row["video"])
    except (ValueError, KeyError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError("%s is not what tools/extract_features.py writes (%s): remove it, and extract again"
                        % (path, error)) from None
    return lengths


def lengths_of(folder: str, names: List[str]) -> Dict[str, Length]:
    """{video: Length} of the videos ``names``, all of which have features in ``folder``; {} as in read_lengths.

    Raises:
        UserError: the list lacks one of them.
    """
    known = read_lengths(folder)
    absent = [name for name in names if name not in known]
    if known and absent:
        raise UserError("%s lacks %d of %d videos that have features beside it (%s): finish the extraction, or remove "
                        "their files" % (os.path.join(folder, VIDEOS), len(absent), len(names), absent[0]))
    return {name: known[name] for name in names} if known else {}


def write_lengths(folder: str, lengths: Dict[str, Length]) -> None:
    """Replace videos.csv in one step.

    Raises:
        UserError: it cannot be written.
    """
    with replacing(os.path.join(folder, VIDEOS), durable=False) as temporary, \
            open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as handle:
        rows = csv.writer(handle, lineterminator="\n")
        rows.writerow(COLUMNS)
        for name, one in sorted(lengths.items()):
            rows.writerow([name, "%.6f" % one.seconds, one.frames, "%.9g" % one.fps, one.snippets, "%.9g" % one.stride])


def find_description(*places: str) -> Optional[str]:
    """The first features.json in these folders, or beside these files; None where there is none."""
    for place in places:
        path = os.path.join(place if os.path.isdir(place) else os.path.dirname(place), DESCRIPTION)
        if os.path.isfile(path):
            return path
    return None


def read_description(path: str) -> dict:
    """The content of features.json.

    Raises:
        UserError: it cannot be read, or does not name a backbone and how snippets are taken.
    """
    found = read_json(path, "description of features")
    if not isinstance(found, dict) or not isinstance(found.get("backbone"), str) or not all(
            isinstance(found.get(name), int) and found[name] > 0 for name in ("snippet_frames", "snippet_stride")):
        raise UserError("%s does not say how features were extracted (backbone, snippet_frames, snippet_stride): give "
                        "one that tools/extract_features.py wrote" % path)
    return found


def carry_description(source: Optional[str], folder: str) -> None:
    """Make features.json in ``folder`` a copy of ``source``; where that is None, it has none afterwards.

    Raises:
        UserError: it cannot be read, or not be written.
    """
    target = os.path.join(folder, DESCRIPTION)
    if source is None:
        if os.path.isfile(target):
            os.remove(target)
    elif os.path.realpath(source) != os.path.realpath(target):
        write_json(target, read_description(source))
