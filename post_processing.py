"""From the network's maps to scored proposals, by the soft-NMS rule of the reference, exactly, and the result file."""
import concurrent.futures
import json
import multiprocessing
import os

import numpy as np

from annotations import read_videos, video_id
from defaults import with_defaults
from errors import UserError
from files import replacing
from segments import iou, proposal_seconds

COLUMNS = ("xmin", "xmax", "xmin_score", "xmax_score", "clr_score", "reg_socre", "score")   # the file format's spelling
CSV_FOLDER = "./output/BMN_results"
KEPT = 101              # soft-NMS stops here,
WRITTEN = 100           # and the result file takes these


def pairs(temporal_scale):
    """Every pair of positions s < e, by s then e: two index arrays [T(T-1)/2]; the segment is [s/T, e/T]."""
    return np.triu_indices(temporal_scale, 1)


def decode(confidence_map, start, end):
    """Score of every pair s < e: start[s] * end[e] * classification * regression, float32 products in this order.

    Args:
        confidence_map: float32 [B, 2, T, T], channel 0 regression, 1 classification, at [start, end - 1].
        start, end: float32 [B, T].

    Returns:
        float32 [B, T(T-1)/2], in the order of :func:`pairs`.
    """
    s, e = pairs(start.shape[1])
    return start[:, s] * end[:, e] * confidence_map[:, 1, s, e - 1] * confidence_map[:, 0, s, e - 1]


def score_table(confidence_map, start, end):
    """The table of one video, as its CSV file holds it: float64 [T(T-1)/2, 7], columns as COLUMNS.

    Args:
        confidence_map: float32 [2, T, T]. start, end: float32 [T].
    """
    scale = len(start)
    s, e = pairs(scale)
    columns = (s / scale, e / scale, start[s], end[e], confidence_map[1, s, e - 1], confidence_map[0, s, e - 1],
               decode(confidence_map[None], start[None], end[None])[0])
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


def soft_nms(xmin, xmax, score, opt):
    """Best proposals of one video after soft-NMS: float64 [n <= 100, 3] (score, xmin, xmax), best first.

    Args:
        xmin, xmax, score: [n].
        opt: dict with soft_nms_alpha, soft_nms_low_thres, soft_nms_high_thres.
    """
    order = np.argsort(-score, kind="stable")
    xmin, xmax, score = xmin[order], xmax[order], score[order].astype(np.float64)
    if len(score) == 1:
        return np.stack([score, xmin, xmax], axis=1)
    current, kept = score.copy(), []
    for _ in range(min(KEPT, len(score) - 1)):
        best = int(current.argmax())
        kept.append((current[best], xmin[best], xmax[best]))
        overlap = iou(xmin, xmax, xmin[best], xmax[best])
        limit = opt["soft_nms_low_thres"] + (opt["soft_nms_high_thres"] - opt["soft_nms_low_thres"]) * (
            xmax[best] - xmin[best])
        hit = overlap > limit
        current[hit] *= np.exp(-np.square(overlap[hit]) / opt["soft_nms_alpha"])
        current[best] = -1
    return np.array(kept[:WRITTEN])


def proposals(confidence_map, start, end, opt):
    """Best proposals of each video of a batch after soft-NMS.

    Args:
        confidence_map: float32 [B, 2, T, T]. start, end: float32 [B, T].
        opt: dict with the soft_nms options.

    Returns:
        list of B float64 arrays [n <= 100, 3]: score, xmin, xmax (fractions of the video), best first.
    """
    scale = start.shape[1]
    s, e = pairs(scale)
    return [soft_nms(s / scale, e / scale, score, opt) for score in decode(confidence_map, start, end)]


def write_result(path, videos, proposals_of):
    """Write the result file, ordered as ``videos``.

    Args:
        path: the file, appears whole or not at all.
        videos: {name: annotation entry}, for the durations.
        proposals_of: {name: float64 [n, 3]} (score, xmin, xmax).

    Raises:
        UserError: the file cannot be written.
    """
    results = {}
    for name, video in videos.items():
        score, xmin, xmax = proposals_of[name].T
        seconds = proposal_seconds(video)
        rows = zip(score.tolist(), (np.maximum(xmin, 0) * seconds).tolist(), (np.minimum(xmax, 1) * seconds).tolist())
        results[video_id(name)] = [{"score": its_score, "segment": [first, last]} for its_score, first, last in rows]
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        handle.write(json.dumps({"version": "VERSION 1.3", "results": results, "external_data": {}}))


def read_csv(name, folder=CSV_FOLDER):
    """The columns xmin, xmax and score of a video's table: three float64 arrays [n].

    Raises:
        UserError: the file is missing, unreadable, empty, or holds something else.
    """
    import pandas
    path = os.path.join(folder, name + ".csv")
    try:
        table = pandas.read_csv(path, usecols=["xmin", "xmax", "score"], dtype=np.float64, float_precision="round_trip")
    except FileNotFoundError:
        raise UserError("%s does not exist: run inference with --save_csv 1 first" % path) from None
    except (OSError, ValueError) as error:
        raise UserError("%s is not a table of proposals (%s): run inference with --save_csv 1 again"
                        % (path, " ".join(str(error).split()))) from None
    columns = [table[column].to_numpy() for column in ("xmin", "xmax", "score")]
    if not len(table) or not np.isfinite(columns).all():
        raise UserError("%s %s: run inference with --save_csv 1 again"
                        % (path, "holds a value that is not a number" if len(table) else "has no rows"))
    return columns


def _proposals_of_files(names, opt):
    return {name: soft_nms(*read_csv(name), opt) for name in names}


def BMN_post_processing(opt):
    """Turn output/BMN_results/<video>.csv of the validation videos into the result file, on several processes.

    Args:
        opt: dict; video_info, video_anno, result_file, post_process_thread and the soft_nms options are read.

    Raises:
        UserError: an annotation file or a table is missing or broken, or the result file cannot be written.
    """
    opt = with_defaults(opt)
    videos = read_videos(opt, "validation")
    names = list(videos)
    workers = min(opt["post_process_thread"], len(names))
    parts = [names[i::workers] for i in range(workers)]
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
    merged = {}
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        for part in pool.map(_proposals_of_files, parts, [opt] * workers):
            merged.update(part)
    write_result(opt["result_file"], videos, merged)
