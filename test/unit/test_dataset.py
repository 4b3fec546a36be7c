import numpy as np


def test_golden(shared, golden):
    from annotations import read_annotations
    from dataset import Labels
    want = golden("labels.npz")
    videos = read_annotations(shared + "/activitynet_annotations/anet_anno_action.json")
    labels = Labels(100)
    for i, name in enumerate(want["video"]):
        for got, key in zip(labels(videos[name]), ("iou_map", "start", "end")):
            np.testing.assert_array_equal(got, want[key][i])
