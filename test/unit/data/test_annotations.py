"""The annotation files: subsets, order, and each way in which they can be wrong."""
import csv
import json

import pytest

from bmn.data.annotations import read_videos
from bmn.errors import UserError

ENTRY = {"duration_second": 10.0, "duration_frame": 300, "feature_frame": 288,
         "annotations": [{"segment": [1, 2.5], "label": "Fencing"}]}


def files(folder, rows=(("v_a", "training"), ("v_b", "validation")), entries=None, header="video,subset"):
    info, anno = folder / "info.csv", folder / "anno.json"
    info.write_text("\n".join([header] + [",".join(row) for row in rows]) + "\n")
    anno.write_text(json.dumps({name: ENTRY for name, _ in rows} if entries is None else entries))
    return {"video_info": str(info), "video_anno": str(anno)}


def test_the_real_files_are_read(shared):
    folder = shared + "/activitynet_annotations/"
    opt = {"video_info": folder + "video_info_new.csv", "video_anno": folder + "anet_anno_action.json"}
    with open(opt["video_info"]) as handle:
        order = [row["video"] for row in csv.DictReader(handle) if row["subset"] == "validation"]
    assert list(read_videos(opt, "validation")) == order and len(order) == 4728
    assert len(read_videos(opt, "train")) == 9649
    assert all(list(video.actions) == [] for video in read_videos(opt, "testing").values())


def test_subset_is_a_word_of_the_column_and_the_order_of_the_file_stays(tmp_path):
    opt = files(tmp_path, [("v_b", "training"), ("v_a", "my training"), ("v_c", "validation")])
    assert list(read_videos(opt, "train")) == ["v_b", "v_a"]


def test_a_prefix_is_removed_only_once(tmp_path):
    assert len(read_videos(files(tmp_path, [("v_v_a", "training"), ("v_a", "training")]), "train")) == 2


def test_an_entry_without_annotations_has_none(tmp_path):
    bare = {key: ENTRY[key] for key in ("duration_second", "duration_frame", "feature_frame")}
    opt = files(tmp_path, [("v_a", "testing"), ("v_b", "testing")], {"v_a": bare, "v_b": dict(bare, annotations=None)})
    assert [list(video.actions) for video in read_videos(opt, "testing").values()] == [[], []]


@pytest.mark.parametrize("change,words", [
    (dict(header="name,subset"), ["video_info", "'video'"]),
    (dict(rows=[("v_b", "validation")]), ["--training_subset training", "no video", "'validation'"]),
    (dict(entries={"v_b": ENTRY}), ["lacks 1 of the 1", "v_a"]), (dict(entries=[ENTRY]), ["video_anno"]),
    (dict(entries={"v_a": dict(ENTRY, duration_frame=-1)}), ["v_a", "duration_frame", "-1"]),
    (dict(entries={"v_a": dict(ENTRY, duration_second=True)}), ["v_a has the length True"]),
    (dict(entries={"v_a": dict(ENTRY, duration_second="1_0")}), ["v_a has the length '1_0'"]),
    (dict(entries={"v_a": dict(ENTRY, duration_second=None)}), ["nothing of the length of video v_a"]),
    (dict(entries={"v_a": dict(ENTRY, duration_second=10 ** 400)}), ["v_a has the length 1000"]),
    (dict(rows=[("v_a", "training"), ("v_b", "training"), ("a", "training")]), ["v_a and a", "both are video a"]),
    (dict(rows=[("v_a", "training"), ("a", "training")], entries={"v_a": ENTRY}), ["video_info", "v_a and a"]),
    (dict(rows=[("", "training")]), ["video_info", "without a name"]),
    (dict(entries={"v_a": dict(ENTRY, feature_frame="many")}), ["v_a", "feature_frame", "many"]),
    (dict(entries={"v_a": dict(ENTRY, annotations=[{"segment": [1], "label": "x"}])}), ["v_a", "segment"]),
    (dict(entries={"v_a": dict(ENTRY, annotations=[{"segment": [1, 2], "label": [1]}])}), ["v_a", "label [1]"]),
    (dict(entries={"v_a": dict(ENTRY, annotations={"segment": [1, 2]})}), ["v_a", "annotations"]),
    (dict(entries={"v_a": dict(ENTRY, annotations=[{"segment": [1, float("nan")]}])}), ["v_a", "segment"])])
def test_mistakes_name_the_file_and_the_video(tmp_path, change, words):
    with pytest.raises(UserError) as error:
        read_videos(files(tmp_path, **change), "train")
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_a_byte_order_mark_is_skipped(tmp_path):
    opt = files(tmp_path)
    for path in opt.values():
        with open(path, "rb") as handle:
            content = handle.read()
        with open(path, "wb") as handle:
            handle.write(b"\xef\xbb\xbf" + content)        # as Excel writes it
    assert list(read_videos(opt, "train")) == ["v_a"]


def test_a_label_is_not_needed(tmp_path):
    opt = files(tmp_path, entries={"v_a": dict(ENTRY, annotations=[{"segment": [1, 2]}])})
    assert read_videos(opt, "train")["v_a"].actions == [(1, 2, "")]


def test_missing_and_binary_files_are_reported(tmp_path):
    opt = files(tmp_path)
    for key in opt:
        with pytest.raises(UserError, match=key):
            read_videos(dict(opt, **{key: str(tmp_path / "nowhere")}), "train")
    (tmp_path / "info.csv").write_bytes(b"video,subset\n\xff\xfe\x00,training\n")
    with pytest.raises(UserError, match="video_info"):
        read_videos(opt, "train")
