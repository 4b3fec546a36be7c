"""One HTML page of videos and their proposals, to click at: the player, the time line, a table.

The page is one file. What it shows is in it as JSON; page.html, page.css and page.js beside this module are put
together here. The videos stay where they are, and the page names them relative to itself.
"""
import html
import json
import os
import urllib.parse
from typing import Dict, List, NamedTuple, Optional, Sequence

import numpy as np

from bmn.extracted import VIDEO_ENDINGS
from bmn.files import replacing
from bmn.values import by_id, video_id


class PageVideo(NamedTuple):
    """A video on a page.

    Attributes:
        name: as it is called.
        path: its file, None where there is none.
        seconds: length of the time line.
        proposals: [n, 3] (score, start, end in seconds), best first.
        actions: (start, end, label) of each known action, in seconds.
        start, end: [T], probability at equal steps from 0 on; None where there is no network.
    """
    name: str
    path: Optional[str]
    seconds: float
    proposals: np.ndarray
    actions: Sequence[tuple] = ()
    start: Optional[np.ndarray] = None
    end: Optional[np.ndarray] = None


def write_page(path: str, videos: List[PageVideo], title: str = "Proposals") -> None:
    """Write the page; names and labels stay text, whatever is in them.

    Raises:
        UserError: it cannot be written.
    """
    data = json.dumps([_as_json(video, os.path.dirname(os.path.abspath(path))) for video in videos], allow_nan=False)
    for sign in "<>&":                  # so that no text can end the script or begin another
        data = data.replace(sign, "\\u%04x" % ord(sign))
    page = _part("page.html")
    for name, content in (("TITLE", html.escape(title)), ("CSS", _part("page.css")), ("JS", _part("page.js"))):
        page = page.replace("@%s@" % name, content)
    before, after = page.split("@DATA@")
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace") as handle:
        handle.write(before + data + after)


def link_to(page: str, name: str) -> str:
    """The address of a video on a page in the same folder."""
    return urllib.parse.quote(os.path.basename(page)) + "#" + _quoted(name)


def find_files(folder: str, names: List[str]) -> Dict[str, str]:
    """{name: path} of those videos that have a file in ``folder`` or in its folders; with and without v_ is the same.

    Raises:
        UserError: two of ``names`` are the same video.
    """
    wanted, found = by_id(names, folder), {}
    for inner, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files, key=_rank, reverse=True):
            name = wanted.get(video_id(os.path.splitext(file)[0]))
            if name is not None and _rank(file) < len(VIDEO_ENDINGS):
                found[name] = os.path.join(inner, file)         # of several, the one that browsers play best
    return found


def _rank(file):
    ending = os.path.splitext(file)[1].lower()
    return VIDEO_ENDINGS.index(ending) if ending in VIDEO_ENDINGS else len(VIDEO_ENDINGS)


def _as_json(video, folder):
    curve = {"start": video.start, "end": video.end}
    return {"name": video.name, "seconds": float(video.seconds),
            "src": video.path and _quoted(os.path.relpath(video.path, folder)),
            "proposals": [[float("%.6g" % score), round(start, 3), round(end, 3)]
                          for score, start, end in np.asarray(video.proposals, float).tolist()],
            "actions": [[float(start), float(end), str(label)] for start, end, label in video.actions],
            **{name: [] if values is None else np.asarray(values, float).round(4).tolist()
               for name, values in curve.items()}}


def _quoted(path):
    """A relative path as an address; a name of odd bytes keeps them."""
    return urllib.parse.quote(os.fsencode(path).replace(os.fsencode(os.sep), b"/"))


def _part(name):
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), name), encoding="utf-8") as handle:
        return handle.read()
