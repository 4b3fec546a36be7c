"""A data set of a few videos for tests, in the real layout; a number shows its video, channel and position."""
import json
import os

import numpy as np

from bmn.options import with_defaults


def table(name, temporal_scale=10, feat_dim=6):
    """Features of a video, float64 [T, C]; all its numbers differ."""
    key = sum(map(ord, name)) % 97
    return key + np.arange(temporal_scale * feat_dim, dtype=np.float64).reshape(temporal_scale, feat_dim) / 1024


def write_csv(path, numbers):
    """A feature file as published: a header line f0,f1,..., then a row for each position."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as handle:
        handle.write(",".join("f%d" % channel for channel in range(numbers.shape[1])) + "\n")
        handle.writelines(",".join(map(repr, row)) + "\n" for row in numbers.tolist())


def make_long(folder, rows=(37, 9, 64, 5), feat_dim=6, **options):
    """Write THUMOS-14's form and features at their own rate. Returns the complete options to use them as windows.

    Videos v_0, v_1, ... have so many ``rows``, one a second; the last half of them is for validation.
    """
    folder, videos = str(folder), {}
    for number, count in enumerate(rows):
        videos["v_%d" % number] = {
            "subset": "Validation" if number < len(rows) / 2.0 else "Test", "duration": float(count), "fps": 25.0,
            "frame": 25 * count, "annotations": [{"segment": [1.0, min(4.5, count)], "label": "Diving"},
                                                 {"segment": [count / 2.0, count - 0.5], "label": "Billiards"}]}
        os.makedirs(os.path.join(folder, "rows"), exist_ok=True)
        np.save(os.path.join(folder, "rows", "v_%d.npy" % number), table("v_%d" % number, count, feat_dim))
    with open(os.path.join(folder, "long.json"), "w") as handle:
        json.dump({"database": videos}, handle)
    return with_defaults(dict({
        "mode": "train", "video_info": "", "video_anno": os.path.join(folder, "long.json"), "window": 10,
        "training_subset": "Validation", "validation_subset": "Test", "data_path": os.path.join(folder, "rows"),
        "feat_dim": feat_dim, "result_file": os.path.join(folder, "output", "result_proposal.json")}, **options))


def make(folder, training=("v_a", "v_b", "v_c"), validation=("v_d", "v_e"), temporal_scale=10, feat_dim=6):
    """Write annotations and features. Returns the complete options to use them."""
    folder = str(folder)
    subsets = [(name, "training") for name in training] + [(name, "validation") for name in validation]
    videos = {name: {"duration_second": 10.0, "duration_frame": 300, "feature_frame": 288,
                     "annotations": [{"segment": [2.0, 5.0], "label": "Juggling clubs"}]} for name, _ in subsets}
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "anno.json"), "w") as handle:
        json.dump(videos, handle)
    with open(os.path.join(folder, "info.csv"), "w") as handle:
        handle.write("video,subset\n" + "".join("%s,%s\n" % row for row in subsets))
    for name in videos:
        write_csv(os.path.join(folder, "features", "csv_mean_%d" % temporal_scale, name + ".csv"),
                  table(name, temporal_scale, feat_dim))
    return with_defaults({
        "mode": "train", "video_info": os.path.join(folder, "info.csv"),
        "video_anno": os.path.join(folder, "anno.json"), "data_path": os.path.join(folder, "features"),
        "temporal_scale": temporal_scale, "feat_dim": feat_dim,
        "result_file": os.path.join(folder, "output", "result_proposal.json")})
