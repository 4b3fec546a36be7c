"""The scored pairs of a video: decoding the network's maps, and the CSV table of them in the reference's format."""
import csv
import functools
from typing import Sequence, Tuple

import numpy as np

from bmn.errors import UserError
from bmn.files import inside, orjson, replacing
from bmn.inputs import open_text
from bmn.layouts import LAYOUTS
from bmn.parallel import Pool, without_errors

COLUMNS = ("xmin", "xmax", "xmin_score", "xmax_score", "clr_score", "reg_socre", "score")   # spelled as in the format
FOLDER = "BMN_results"         # in --output_dir


@functools.lru_cache(maxsize=8)
def pairs(temporal_scale: int, layout: str = "reference", max_duration: int = 0) -> Tuple[np.ndarray, ...]:
    """Every pair of boundaries s < e that can be a proposal, sorted by s and then e.

    Args:
        temporal_scale: T.
        layout: a name in LAYOUTS. A boundary e = T is only proposed where its probability is that of position T - 1.
        max_duration: D, the longest proposal in positions; 0: T.

    Returns:
        (s, e, xmin, xmax), each [pairs] and read-only: index arrays, and the segments xmin = s/T, xmax = e/T.
    """
    s, e = np.triu_indices(temporal_scale, 1, temporal_scale + 1 - LAYOUTS[layout].end_after)
    if max_duration:
        short = e - s <= max_duration
        s, e = s[short], e[short]
    arrays = s, e, s / temporal_scale, e / temporal_scale
    for array in arrays:
        array.setflags(write=False)
    return arrays


def decode(confidence_map: np.ndarray, start: np.ndarray, end: np.ndarray, layout: str = "reference",
           max_duration: int = 0) -> np.ndarray:
    """Score of every pair s < e: start[s] * end[e] * classification * regression, float32 products in this order.

    Args:
        confidence_map: float32 [B, 2, T, T], channel 0 regression, 1 classification, at [start, end - 1].
        start, end: float32 [B, T].
        layout, max_duration: as in :func:`pairs`. Where the layout says so, end[e - 1] takes the place of end[e].

    Returns:
        float32 [B, pairs], in the order of :func:`pairs`.
    """
    batch, scale = start.shape
    s, e = pairs(scale, layout, max_duration)[:2]
    after = LAYOUTS[layout].end_after
    if max_duration:        # what is too long is not touched
        confidence, cell = confidence_map.reshape(batch, 2, -1), s * scale + e - 1
        score = np.take(start, s, axis=1) * np.take(end, e - 1 + after, axis=1)
        return score * np.take(confidence[:, 1], cell, axis=1) * np.take(confidence[:, 0], cell, axis=1)
    columns = scale - after
    score = start[:, :, None] * end[:, None, after:]            # [B, T, T - after] at [start, end - 1]
    score *= confidence_map[:, 1, :, :columns]
    score *= confidence_map[:, 0, :, :columns]
    return np.take(score.reshape(batch, -1), s * columns + e - 1, axis=1)


def candidates(start: np.ndarray, end: np.ndarray, layout: str, max_duration: int = 0) -> np.ndarray:
    """Which pairs the layout proposes at all: bool [B, pairs], in the order of :func:`pairs`.

    Args:
        start, end: float32 [B, T].
        layout, max_duration: as in :func:`pairs`.
    """
    s, e = pairs(start.shape[1], layout, max_duration)[:2]
    rule = LAYOUTS[layout]
    if not rule.peaks:
        return np.ones((len(start), len(s)), bool)
    starts, ends = _peaks(start, rule.peaks), _peaks(end, rule.peaks)
    starts[:, 0] = ends[:, -1] = True
    return starts[:, s] & ends[:, e - 1 + rule.end_after]


def _peaks(score, where):
    """bool [B, T]: the positions that are a peak, or above half of the highest."""
    padded = np.pad(score, ((0, 0), (1, 1)), "constant", constant_values=-1)
    before, after = padded[:, :-2], padded[:, 2:]
    high = score > 0.5 * score.max(axis=1, keepdims=True)
    if where == "anywhere":
        return high | ((score >= before) & (score >= after))
    chosen = high | ((score > before) & (score > after))
    chosen[:, [0, -1]] = False
    return chosen


def score_table(confidence_map: np.ndarray, start: np.ndarray, end: np.ndarray, layout: str = "reference",
                max_duration: int = 0) -> np.ndarray:
    """The table of one video as in its CSV file: float64 [candidates, 7], with the columns COLUMNS.

    Args:
        confidence_map: float32 [2, T, T].
        start, end: float32 [T].
        layout, max_duration: as in :func:`pairs`.
    """
    s, e, xmin, xmax = pairs(len(start), layout, max_duration)
    score = decode(confidence_map[None], start[None], end[None], layout, max_duration)[0]
    columns = (xmin, xmax, start[s], end[e - 1 + LAYOUTS[layout].end_after], confidence_map[1, s, e - 1],
               confidence_map[0, s, e - 1], score)
    table = np.stack([np.asarray(column, np.float64) for column in columns], axis=1)
    return table[candidates(start[None], end[None], layout, max_duration)[0]] if LAYOUTS[layout].peaks else table


def write_table(path: str, confidence_map: np.ndarray, start: np.ndarray, end: np.ndarray, layout: str = "reference",
                max_duration: int = 0) -> None:
    """Write the table of one video. Every number reads back as the float64 that :func:`score_table` gives.

    Args:
        path: the file.
        confidence_map: float32 [2, T, T].
        start, end: float32 [T].
        layout, max_duration: as in :func:`pairs`.

    Raises:
        UserError: the file cannot be written.
    """
    table = score_table(confidence_map, start, end, layout, max_duration)
    if orjson:
        rows = orjson.dumps(table, option=orjson.OPT_SERIALIZE_NUMPY)[2:-2].replace(b"],[", b"\n") + b"\n"
    else:
        import pandas as pd
        rows = pd.DataFrame(table).to_csv(header=False, index=False).encode()
    with replacing(path, durable=False) as temporary, open(temporary, "wb") as handle:
        handle.write(",".join(COLUMNS).encode() + b"\n" + rows)


class CsvExport:
    """Writes ``<folder>/<video>.csv`` in other processes, while the network goes on.

    Args:
        folder: it is made where it is missing.
        processes: how many at most.
        layout, max_duration: as in :func:`pairs`.

    Use it in a ``with`` block. Its end waits until all tables are written; after an error it drops those that are not.
    """

    def __init__(self, folder: str, processes: int, layout: str = "reference", max_duration: int = 0):
        self.folder, self.layout, self.max_duration = folder, layout, max_duration
        self.pool = Pool(self._write, processes, niceness=10,
                         remedy="try a smaller --post_process_thread, or --save_csv 0")

    def add(self, names: Sequence[str], confidence_map: np.ndarray, start: np.ndarray, end: np.ndarray) -> None:
        """Hand over the maps of a batch: names [B], float32 [B, 2, T, T], [B, T], [B, T].

        Raises:
            UserError: an earlier table could not be written, or a process was killed.
        """
        list(without_errors(self.pool.submit([(list(names), confidence_map, start, end)])))

    def __enter__(self) -> "CsvExport":
        return self

    def __exit__(self, kind, error, trace):
        with self.pool:
            if kind is None:
                list(without_errors(self.pool.drain()))

    def _write(self, batch):
        for name, *maps in zip(*batch):
            write_table(inside(self.folder, name, ".csv"), *maps, self.layout, self.max_duration)


def read_table(path: str) -> np.ndarray:
    """The columns xmin, xmax and score of a table: float64 [3, rows].

    Raises:
        UserError: the file is missing or unreadable, has no rows, or is not such a table.
    """
    try:
        with open_text(path, "table of proposals", "run inference with --save_csv 1 first") as handle:
            rows = csv.reader(handle)
            header = next(rows, [])
            wanted = [header.index(column) for column in ("xmin", "xmax", "score")]
            flat = [float(row[column]) for row in rows if row for column in wanted]
    except UserError:
        raise
    except (ValueError, IndexError, csv.Error) as error:
        raise UserError("%s is not a table of proposals (%s): run inference with --save_csv 1 again"
                        % (path, error)) from None
    table = np.array(flat).reshape(-1, 3).T
    if not table.size or not np.isfinite(table).all():
        raise UserError("%s %s: run inference with --save_csv 1 again"
                        % (path, "holds a value that is not finite" if table.size else "has no rows"))
    return table
