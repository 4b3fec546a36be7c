"""Features of video files: one thread decodes and prepares frames while the network computes the snippets before."""
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from bmn import extracted
from bmn.errors import UserError
from bmn.extracted import VIDEO_ENDINGS, Length
from bmn.files import inside, replacing, write_json
from bmn.inputs import open_input
from bmn.progress import Progress
from bmn.values import by_id, counted
from bmn.video import snippets as snippet_rule
from bmn.video.decoding import Film
from bmn.video.snippets import Sampling

AHEAD = 4               # batches that are decoded before the network asks for them
SHORT = 0.05            # part of a video that may be missing at its end without a word
WAIT = 0.2              # seconds after which a thread looks whether the other one is still there
SAME = ("version", "network", "vector", "size", "input", "normalisation", "snippet_frames", "snippet_stride", "fps",
        "frames_looked_at")     # of features.json: who differs in one of these has other features
LEAST = 0.9             # part of a video that its rows cover, below which a line says so


class Recipe(NamedTuple):
    """How features are made.

    Attributes:
        backbone: one of ``backbones.open_backbone``.
        sampling: how snippets are taken.
        looked_at: frames of a snippet that the backbone sees.
        batch: snippets that it computes at once.
        threads: of the decoder.
    """
    backbone: Any
    sampling: Sampling
    looked_at: int
    batch: int
    threads: int

    @classmethod
    def of(cls, backbone: Any, sampling: Sampling, looked_at: int | None, batch: int, threads: int) -> "Recipe":
        """The recipe, where ``looked_at`` is what the user says, or None.

        Raises:
            UserError: the backbone needs another number of frames, or a snippet has fewer.
        """
        if looked_at and backbone.looked_at not in (None, looked_at):
            raise UserError("--frames %d, but the backbone looks at %s: leave --frames out"
                            % (looked_at, counted(backbone.looked_at, "frame")))
        looked_at = looked_at or backbone.looked_at or sampling.length
        snippet_rule.check(sampling, looked_at)
        return cls(backbone, sampling, looked_at, batch, threads)

    def description(self) -> dict:
        """What features.json says, as it reads when it is read again."""
        return json.loads(json.dumps(dict(
            self.backbone.description, snippet_frames=self.sampling.length, snippet_stride=self.sampling.stride,
            fps=self.sampling.fps, frames_looked_at=self.looked_at)))


class Features(NamedTuple):
    """Features of a video: float32 [snippets, C], how long it is, and what the user should know about it, or ""."""
    rows: np.ndarray
    length: Length
    remark: str


def find_videos(path: str) -> dict[str, str]:
    """{name: path} of a video file, or of all in a folder and in its folders.

    Raises:
        UserError: there is none, or two would have the same features.
    """
    if not os.path.exists(path):
        raise UserError("%s does not exist: give a video, or a folder of videos" % path)
    if not os.path.isdir(path):
        return {os.path.splitext(os.path.basename(path))[0]: path}
    found, others = {}, set()
    for folder, folders, files in os.walk(path, followlinks=False):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for file in sorted(files):
            name, ending = os.path.splitext(file)
            if file.startswith("."):
                continue
            if ending.lower() not in VIDEO_ENDINGS:
                others.add(ending)
                continue
            whole = os.path.join(folder, file)
            if found.setdefault(name, whole) != whole:
                raise UserError("%s and %s would both have the features %s.npy: rename one of them"
                                % (found[name], whole, name))
    if not found:
        there = "".join(", but files *%s" % one for one in sorted(others)[:3])
        raise UserError("%s holds no videos (%s)%s: give another folder, or name a video itself"
                        % (path, " ".join(VIDEO_ENDINGS), there))
    by_id(found, path)
    return found


def features_of(videos: dict[str, str], recipe: Recipe) -> Iterator[tuple[str, Features | UserError]]:
    """(name, its features or why it has none) of each video of {name: path}, in order."""
    ahead: queue.Queue = queue.Queue(maxsize=AHEAD)
    ended = threading.Event()

    def put(item):
        while not ended.is_set():
            try:
                return ahead.put(item, timeout=WAIT)
            except queue.Full:
                continue
        raise _Ended

    decoder = threading.Thread(target=_decode_all, name="decoder", daemon=True, args=(videos, recipe, put))
    decoder.start()
    try:
        rows: list = []
        while True:
            name, content = ahead.get()
            if name is None:
                if content is not None:
                    raise content
                return
            if isinstance(content, np.ndarray):
                rows.append(recipe.backbone.vectors(content))
                continue
            if isinstance(content, UserError):
                yield name, content
            else:
                yield name, _finished(name, videos[name], rows, *content)
            rows = []
    finally:
        ended.set()
        decoder.join()


class _Ended(Exception):
    """Nobody waits for frames any more."""


def _finished(name, path, rows, length, remark):
    table = np.concatenate(rows)
    if not np.isfinite(table).all():
        return UserError("video %s: the backbone gives numbers that are not finite: look at the video, or take "
                         "another backbone" % path)
    return Features(np.ascontiguousarray(table, np.float32), length, remark)


def _decode_all(videos, recipe, put):
    """The life of the thread that decodes. After the batches of a video comes (Length, remark), or a UserError."""
    try:
        for name, path in videos.items():
            try:
                put((name, decode(path, recipe, lambda content, name=name: put((name, content)))))
            except UserError as error:
                put((name, error))
        put((None, None))
    except _Ended:
        pass
    except BaseException as error:      # the other thread raises it
        put((None, error))


def decode(path: str, recipe: Recipe, put: Callable[[np.ndarray], Any]) -> tuple[Length, str]:
    """``put`` the batches [n, frames, 3, h, w] of a video, ready for the network; returns its (Length, remark).

    Raises:
        UserError: it cannot be decoded.
    """
    film, sampling = Film(path, recipe.threads), recipe.sampling
    rate = sampling.fps or film.span.fps
    taken, count = [], 0
    for snippet in snippet_rule.snippets(film.on_grid(rate), sampling, recipe.looked_at,
                                          lambda picture: recipe.backbone.prepare(picture.rgb())):
        taken.append(np.stack(snippet))
        count += 1
        if len(taken) == recipe.batch:
            put(np.stack(taken))
            taken = []
    if taken:
        put(np.stack(taken))
    return _length(film, sampling, rate, count)


def _length(film, sampling, rate, count):
    """(Length, remark) of a video of which ``count`` snippets were taken."""
    seconds = film.seconds
    fps = film.span.fps
    frames = max(1, round(seconds * fps))
    stride = min(sampling.stride * fps / rate, frames)      # a video shorter than a cell is one cell
    length = Length(seconds, frames, fps, count, stride)
    if film.span.announced - seconds > max(1.0, SHORT * film.span.announced):
        return length, ("its pictures end after %.1f of %.1f s%s: the features are those of this part"
                        % (seconds, film.span.announced, ", where it is damaged" if film.problems else ""))
    if film.problems:
        return length, "%s of it could not be decoded, and the picture before stands there" % counted(
            film.problems, "packet")
    covered = count * stride / frames
    if covered < LEAST:
        return length, ("only %.0f %% of its %s lie in snippets of %g: lower --snippet_stride if the rest matters"
                        % (100 * covered, counted(frames, "frame"), stride))
    return length, ""


def difference(there: dict, here: dict) -> str:
    """What makes two descriptions those of different features, for a message; "" where nothing does."""
    for key in SAME:
        if there.get(key) != here.get(key):
            return "%s: %.60s there, %.60s here" % (key, there.get(key), here.get(key))
    return ""


class Folder:
    """A folder of features: ``<video>.npy``, videos.csv and features.json, which always fit together.

    Args:
        path: the folder.
        description: what features.json is to say.

    Raises:
        UserError: it holds features of another kind, or cannot be written.
    """

    def __init__(self, path: str, description: dict):
        self.path, self.lengths = path, {}
        there = extracted.find_description(path)
        if there:
            known = extracted.read_description(there)
            other = difference(known, description)
            if other:
                raise UserError("--output %s has features that were extracted in another way (%s): give another folder"
                                % (path, other))
            self.lengths = extracted.read_lengths(path)
        else:
            strangers = [file for file in os.listdir(path) if file.endswith(".npy") or file == extracted.VIDEOS]
            if strangers:
                raise UserError("--output %s has %s but no %s, so nobody knows how it was made: give another folder"
                                % (path, strangers[0], extracted.DESCRIPTION))
            write_json(os.path.join(path, extracted.DESCRIPTION), description)

    def has(self, name: str) -> bool:
        """Whether the features of a video are there and whole."""
        length = self.lengths.get(name)
        if length is None:
            return False
        try:
            with open_input(inside(self.path, name, ".npy"), "feature file") as handle:
                np.lib.format.read_magic(handle)
                (rows, columns), _, dtype = np.lib.format.read_array_header_1_0(handle)
                size = os.fstat(handle.fileno()).st_size - handle.tell()
                return rows == length.snippets and size == rows * columns * dtype.itemsize
        except (UserError, ValueError, OSError):
            return False

    def put(self, name: str, found: Features) -> None:
        """Write the features of a video, and then its row; UserError where they cannot be written."""
        with replacing(inside(self.path, name, ".npy"), durable=False) as temporary, open(temporary, "wb") as handle:
            np.save(handle, found.rows)
        self.lengths[name] = found.length
        extracted.write_lengths(self.path, self.lengths)


def extract(videos: dict[str, str], folder: Folder, recipe: Recipe, seconds: float, check: Callable[[], None],
            log: Callable[[str], None] = print) -> list[str]:
    """Write the features of all videos of {name: path} that ``folder`` does not have.

    Args:
        videos, recipe: as in :func:`features_of`.
        folder: where they go.
        seconds: between two lines of progress.
        check: called before each write: raises UserError where the folder belongs to another process by now.
        log: called with one line at a time.

    Returns:
        a sentence for each video that has no features.
    """
    missing = {name: path for name, path in videos.items() if not folder.has(name)}
    if len(missing) < len(videos):
        log("features of %d of %s are there already" % (len(videos) - len(missing), counted(len(videos), "video")))
    flaws = []
    with Progress("extracting", len(missing), "video", seconds, log, per_minute=True) as bar:
        for name, found in features_of(missing, recipe):
            if isinstance(found, UserError):
                flaws.append(str(found))
            else:
                check()
                folder.put(name, found)
                if found.remark:
                    log("video %s: %s" % (missing[name], found.remark))
            bar.add()
    return flaws
