"""Annotation files of every form that is understood, and the list of videos (--video_info).

Whatever the form, a video becomes a dict like an entry of the reference's own file: duration_second or duration,
duration_frame, feature_frame, subset, and annotations: a list of {"segment": [start, end], "label"}. What is in it is
looked at later (bmn/data/annotations.py), and only for the videos that a run needs.
"""
import csv
import re
from typing import Dict, Iterable, List, NamedTuple, Tuple, Union

from bmn.errors import UserError
from bmn.files import read_json
from bmn.inputs import open_input, open_text, read_bytes
from bmn.values import by_id, number

DATABASE, ENTRIES, ROWS = "ActivityNet's own form", "the reference's form", "rows of a CSV file"
LENGTHS = ("duration_second", "duration")       # keys of the length in seconds, the first that is there counts
EXAMPLES = ('{"v_name": {"duration_second": 12.3, "annotations": [{"segment": [1.2, 3.4], "label": "..."}]}}, '
            '{"database": {"name": {"duration": 12.3, "subset": "training", "annotations": [...]}}}, '
            "or a CSV file with the columns video, label, start and end")


class AnnotationFile(NamedTuple):
    """The path of a file, its form (one of the three above), and {name: entry}."""
    path: str
    form: str
    videos: Dict[str, dict]


class ListedVideo(NamedTuple):
    """A row of --video_info: name, subset, and the length in seconds as text, "" where the file has no such column."""
    name: str
    subset: str
    seconds: str


def paths_of(video_anno: Union[str, List[str]]) -> List[str]:
    """The paths in the value of --video_anno, which is one path or a list of several."""
    return [video_anno] if isinstance(video_anno, str) else list(video_anno)


def read_annotation_files(video_anno: Union[str, List[str]]) -> List[AnnotationFile]:
    """The files of --video_anno.

    Raises:
        UserError: a file is missing, unreadable or of a form that is not known, or two of them have the same video.
    """
    files, seen = [], {}
    for path in paths_of(video_anno):
        files.append(read_annotation_file(path))
        for key in by_id(files[-1].videos, "--video_anno %s" % path):
            if key in seen:
                raise UserError("--video_anno %s and %s both annotate video %s: give files without common videos"
                                % (seen[key], path, key))
            seen[key] = path
    return files


def read_annotation_file(path: str, option: str = "--video_anno") -> AnnotationFile:
    """One annotation file; ``option`` is the option that named it, for error messages.

    Raises:
        UserError: the file is missing, unreadable or of a form that is not known.
    """
    if not _looks_like_json(path, option):
        return AnnotationFile(path, ROWS, _read_rows(path, option))
    content = read_json(path, "annotation file (%s)" % option)
    form = DATABASE if isinstance(content, dict) and isinstance(content.get("database"), dict) else ENTRIES
    videos = content["database"] if form == DATABASE else content
    if not (isinstance(videos, dict) and all(isinstance(entry, dict) for entry in videos.values())
            and (form == DATABASE or all(_describes_a_video(entry) for entry in videos.values()))):
        found = ", ".join(map(repr, list(content)[:3])) if isinstance(content, dict) else "a list"
        raise UserError("%s %s is JSON of a form that is not known (it begins with %s): it should look like %s"
                        % (option, path, found if isinstance(content, (dict, list)) else "a value", EXAMPLES))
    return AnnotationFile(path, form, videos)


def _describes_a_video(entry):
    return "annotations" in entry or any(key in entry for key in LENGTHS)


def _looks_like_json(path, option):
    """A look at the first bytes. What is neither is read as JSON as well, because that gives the better message."""
    with open_input(path, "annotation file (%s)" % option) as handle:
        beginning = handle.read(4096).decode("utf-8-sig", "replace").lstrip()
    a_table = path.lower().endswith(".csv") or any(mark in beginning.partition("\n")[0] for mark in ",;\t")
    return beginning[:1] in ("{", "[") or not a_table


def _read_rows(path, option):
    """{name: entry} of a CSV file with a row for each action."""
    columns = {"video": ("video", "video_id"), "label": ("label",), "start": ("start", "t_start"),
               "end": ("end", "t_end")}
    header, rows = _read_csv(path, option)
    plain = {re.sub(r"[ -]", "_", column.strip().lower()): column for column in header}
    found = {}
    for wanted, names in columns.items():
        found[wanted] = next((plain[name] for name in names if name in plain), None)
        if found[wanted] is None and wanted != "label":
            raise UserError("%s %s has no column '%s': its first line must name video, label, start and end, separated "
                            "by commas, but is %r" % (option, path, wanted, ",".join(header)[:80]))
    length = next((plain[name] for name in ("duration", "seconds", "duration_second") if name in plain), None)
    videos = {}
    for row in rows:
        name = (row[found["video"]] or "").strip()
        if not name:
            raise UserError("%s %s has a row without the name of a video: correct or remove it" % (option, path))
        entry = videos.setdefault(name, {"annotations": []})
        for key, column, what in (("subset", plain.get("subset"), "subsets"), ("duration_second", length, "lengths")):
            value = (row.get(column) or "").strip()
            if value and not _same(entry.setdefault(key, value), value):
                raise UserError("%s %s gives video %s two %s, %s and %s: correct one"
                                % (option, path, name, what, entry[key], value))
        if row[found["start"]] or row[found["end"]]:        # a row without times only says that there is such a video
            entry["annotations"].append({"segment": [row[found["start"]], row[found["end"]]],
                                         "label": row[found["label"]] if found["label"] else None})
    return videos


def _same(value, other):
    """Whether two cells of a CSV file say the same: 9 and 9.0 do, Test and test as well."""
    return value.lower() == other.lower() or (number(value) is not None and number(value) == number(other))


def read_video_list(path: str) -> List[ListedVideo]:
    """The rows of a --video_info file.

    Raises:
        UserError: the file is missing or unreadable, lacks the columns video and subset, has a row without a name, or
            gives a video two lengths.
    """
    header, rows = _read_csv(path, "--video_info")
    missing = [column for column in ("video", "subset") if column not in header]
    if missing:
        raise UserError("--video_info %s has no column '%s': its first line must name video and subset, separated by "
                        "commas, but is %r" % (path, missing[0], ",".join(header)[:80]))
    length = next((column for column in ("seconds", "duration") if column in header), None)
    listed = [ListedVideo(row["video"], row["subset"] or "", (row[length] or "").strip() if length else "")
              for row in rows]
    if not all(video.name for video in listed):
        raise UserError("--video_info %s has a row without a name in its column 'video': correct or remove it" % path)
    lengths = lengths_in_rows(((video.name, video.seconds) for video in listed), "--video_info %s" % path)
    return [video._replace(seconds=lengths.get(video.name, "")) for video in listed]


def lengths_in_rows(rows: Iterable[Tuple[str, str]], source: str) -> Dict[str, str]:
    """{video: length} of rows (video, length as text, which may be empty); ``source`` names the option and the file.

    Raises:
        UserError: a video has two lengths.
    """
    lengths = {}
    for name, seconds in rows:
        if seconds and not _same(lengths.setdefault(name, seconds), seconds):
            raise UserError("%s gives video %s two lengths, %s and %s: correct one"
                            % (source, name, lengths[name], seconds))
    return lengths


def _read_csv(path, option) -> Tuple[List[str], List[dict]]:
    """(column names, rows) of a CSV file."""
    try:
        with open_text(path, option) as handle:
            rows = csv.DictReader(handle)
            header = list(rows.fieldnames or ())
            twice = [column for index, column in enumerate(header) if column and column in header[:index]]
            if twice:
                raise UserError("%s %s has two columns '%s': remove or rename one" % (option, path, twice[0]))
            rows = list(rows)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError("%s %s is not a CSV text file (%s): give another file" % (option, path, error)) from None
    longer = next((row for row in rows if any(row.get(None, ()))), None)
    if longer is not None:      # a comma within a cell moves all cells behind it
        cells = [longer[column] for column in header] + longer[None]
        raise UserError("%s %s has a row of %d cells below its %d columns (%.80r): put text with a comma into "
                        "quotation marks, and write numbers with a point"
                        % (option, path, len(cells), len(header), ",".join(cells)))
    return header, rows


def read_blocked(path: str) -> List[str]:
    """The names of --blocked: one on each line, or a JSON list. Lines that are empty or begin with # are left out.

    Raises:
        UserError: the file is missing or unreadable, or a JSON file holds anything but names.
    """
    try:
        text = read_bytes(path, "--blocked").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("--blocked %s is no text (%s): give a file with the name of a video on each line, or a JSON "
                        "list of names" % (path, error)) from None
    if text.lstrip()[:1] in ("[", "{", '"'):
        names = read_json(path, "--blocked")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError("--blocked %s is JSON, but no list of names: it should look like [\"name\", ...]" % path)
    else:
        names = [line.strip() for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [name for name in names if name]


def length_in_seconds(entry: dict) -> object:
    """What an entry says of its length in seconds, unchecked; None where it says nothing."""
    return next((entry[key] for key in LENGTHS if entry.get(key) is not None), None)


def frame_count(entry: dict, key: str) -> object:
    """What an entry says of a number of frames, unchecked; None where it is absent, null or 0, which is unknown."""
    value = entry.get(key)
    return None if value is None or number(value) == 0 else value
