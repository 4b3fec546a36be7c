"""The scored pairs of a video: decoding the network's maps, and the CSV table that the reference keeps of them."""
import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import csv
import functools
import multiprocessing
import os
import signal
import threading
import time

import numpy as np

from bmn.errors import UserError
from bmn.files import replacing
from bmn.results.decimals import decimal_text

COLUMNS = ("xmin", "xmax", "xmin_score", "xmax_score", "clr_score", "reg_socre", "score")   # the file format's spelling
FOLDER = os.path.join("output", "BMN_results")
PENDING = 4             # batches for each process that may wait, before the network has to


@functools.lru_cache(maxsize=8)
def pairs(temporal_scale):
    """Every pair of positions s < e, by s then e: index arrays s, e and segments xmin = s/T, xmax = e/T, [T(T-1)/2]."""
    s, e = np.triu_indices(temporal_scale, 1)
    arrays = s, e, s / temporal_scale, e / temporal_scale
    for array in arrays:
        array.setflags(write=False)
    return arrays


def decode(confidence_map, start, end):
    """Score of every pair s < e: start[s] * end[e] * classification * regression, float32 products in this order.

    Args:
        confidence_map: float32 [B, 2, T, T], channel 0 regression, 1 classification, at [start, end - 1].
        start, end: float32 [B, T].

    Returns:
        float32 [B, T(T-1)/2], in the order of :func:`pairs`.
    """
    batch, scale = start.shape
    s, e = pairs(scale)[:2]
    score = start[:, :, None] * end[:, None, 1:]                # [B, T, T-1] at [start, end - 1]
    score *= confidence_map[:, 1, :, :-1]
    score *= confidence_map[:, 0, :, :-1]
    return np.take(score.reshape(batch, -1), s * (scale - 1) + e - 1, axis=1)


def score_table(confidence_map, start, end):
    """The table of one video, as its CSV file holds it: float64 [T(T-1)/2, 7], columns as COLUMNS.

    Args:
        confidence_map: float32 [2, T, T]. start, end: float32 [T].
    """
    s, e, xmin, xmax = pairs(len(start))
    columns = (xmin, xmax, start[s], end[e], confidence_map[1, s, e - 1], confidence_map[0, s, e - 1],
               decode(confidence_map[None], start[None], end[None])[0])
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


def write_table(path, confidence_map, start, end):
    """Write the table of one video: the text of ``repr`` of every float64 of :func:`score_table`.

    Args:
        path: the file.
        confidence_map: float32 [2, T, T]. start, end: float32 [T].

    Raises:
        UserError: the file cannot be written.
    """
    s, e = pairs(len(start))[:2]
    score = decode(confidence_map[None], start[None], end[None])[0]
    text = np.concatenate([_segment_text(len(start)), decimal_text(start, b",")[s], decimal_text(end, b",")[e],
                           decimal_text(confidence_map[1, s, e - 1], b","),
                           decimal_text(confidence_map[0, s, e - 1], b","), decimal_text(score, b"\n")], axis=1)
    with replacing(path, durable=False) as temporary, open(temporary, "wb") as handle:
        handle.write(",".join(COLUMNS).encode() + b"\n" + text.tobytes().translate(None, b"\0"))


@functools.lru_cache(maxsize=2)
def _segment_text(temporal_scale):
    """The first two columns, as :func:`decimals.decimal_text`; their float64 values are not those of a float32."""
    xmin, xmax = pairs(temporal_scale)[2:]
    rows = ["%r,%r," % row for row in zip(xmin.tolist(), xmax.tolist())]
    width = max(map(len, rows))
    return np.frombuffer("".join(row.ljust(width, "\0") for row in rows).encode(), np.uint8).reshape(-1, width)


class CsvExport:
    """Writes ``<folder>/<video>.csv`` on processes of its own, while the network goes on.

    Args:
        folder: made if need be.
        processes: how many.

    Use it in a ``with`` block: its end waits until all is written.
    """

    def __init__(self, folder, processes):
        self.folder, self.limit = folder, PENDING * processes
        context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
        self.pool = concurrent.futures.ProcessPoolExecutor(processes, context, _start_helper, (os.getpid(),))
        self.waiting = collections.deque()

    def add(self, names, confidence_map, start, end):
        """Take the maps of a batch: names [B], float32 [B, 2, T, T], [B, T], [B, T].

        Raises:
            UserError: an earlier table could not be written.
        """
        with _lost_helper_is_reported():
            self.waiting.append(self.pool.submit(_write_tables, self.folder, list(names), confidence_map, start, end))
            while self.waiting and (self.waiting[0].done() or len(self.waiting) > self.limit):
                self.waiting.popleft().result()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        """Wait for all; after an error of the caller write no more."""
        try:
            with _lost_helper_is_reported():
                while self.waiting and kind is None:
                    self.waiting.popleft().result()
        finally:
            for one in self.waiting:
                one.cancel()
            self.pool.shutdown()


def _write_tables(folder, names, confidence_map, start, end):
    for name, *maps in zip(names, confidence_map, start, end):
        write_table(os.path.join(folder, name + ".csv"), *maps)


def _start_helper(parent):
    """A helper yields to the network, leaves Ctrl-C to its parent, and does not outlive it."""
    os.nice(10)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def leave_with_parent():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


@contextlib.contextmanager
def _lost_helper_is_reported():
    try:
        yield
    except concurrent.futures.process.BrokenProcessPool:
        raise UserError("a process that wrote tables died, perhaps for lack of memory: try a smaller "
                        "--post_process_thread, or --save_csv 0") from None


def read_table(path):
    """The columns xmin, xmax and score of a table: float64 [3, rows].

    Raises:
        UserError: the file is missing, unreadable, without rows, or holds something else.
    """
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            rows = csv.reader(handle)
            header = next(rows, [])
            wanted = [header.index(column) for column in ("xmin", "xmax", "score")]
            flat = [float(row[column]) for row in rows if row for column in wanted]
    except FileNotFoundError:
        raise UserError("%s does not exist: run inference with --save_csv 1 first" % path) from None
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise UserError("%s is not a table of proposals (%s): run inference with --save_csv 1 again"
                        % (path, error)) from None
    table = np.array(flat).reshape(-1, 3).T
    if not table.size or not np.isfinite(table).all():
        raise UserError("%s %s: run inference with --save_csv 1 again"
                        % (path, "holds a value that is not finite" if table.size else "has no rows"))
    return table
