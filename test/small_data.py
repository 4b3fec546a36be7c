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
