"""The same data set in every form gives the same videos, labels, ground truth and figures; lengths, subsets and ids."""
import csv
import json

import numpy as np
import pytest

from bmn.data.annotations import Annotations, Video, read_videos, remarks, same_subset, scaled_lengths
from bmn.data.ground_truth import ground_truth_of, read_ground_truth
from bmn.data.odd_annotations import odd_annotations
from bmn.errors import UserError
from bmn.options import with_defaults
from dataset import Labels

SUBSETS = ("training", "validation", "testing")


def random_data(rng, count=30):
    """[(name, subset, seconds, [(start, end, label)])]; labels are words, numbers as text, and missing."""
    labels = ["Polo", "铁人三项", "0", "17", ""]
    data = []
    for index in range(count):
        seconds = round(float(rng.uniform(5, 300)), 2)
        actions = []
        for _ in range(rng.randint(0, 4)):
            start, end = np.sort(rng.uniform(-1, seconds * 1.05, 2)).round(2).tolist()
            actions.append((start, end, labels[rng.randint(5)]))
        data.append(("video_%02d" % index, SUBSETS[index % 3], seconds, actions))
    return data


def as_json_label(label, rng):
    """A label as some file may have it: text, a whole number, or none at all."""
    if label == "":
        return [{}, {"label": None}, {"label": ""}][rng.randint(3)]
    return {"label": int(label) if label.isdigit() and rng.rand() < 0.7 else label}


def annotations_of(actions, rng, text=False):
    return [dict({"segment": [str(start), str(end)] if text else [start, end]}, **as_json_label(label, rng))
            for start, end, label in actions]


def write_reference_form(folder, data, rng):
    """Two files with v_ before every name, frame counts that are 0, null or absent, and a list."""
    counts = [{}, {"duration_frame": 0, "feature_frame": 0}, {"duration_frame": None}, {"feature_frame": 0}]
    paths = []
    for number, part in enumerate((data[::2], data[1::2])):
        paths.append(str(folder / ("part%d.json" % number)))
        with open(paths[-1], "w") as handle:
            json.dump({"v_" + name: dict({"duration_second": seconds, "annotations": annotations_of(actions, rng)},
                                         **counts[rng.randint(4)]) for name, _, seconds, actions in part}, handle)
    info = folder / "info.csv"
    info.write_text("video,subset\n" + "".join("v_%s,%s\n" % row[:2] for row in data))
    return {"video_anno": paths, "video_info": str(info)}


def write_entries_with_subsets(folder, data, rng):
    path = folder / "subsets.json"
    path.write_text(json.dumps({"v_" + name: {"duration_second": seconds, "subset": subset,
                                              "annotations": annotations_of(actions, rng)}
                                for name, subset, seconds, actions in data}))
    return {"video_anno": str(path)}


def write_official_form(folder, data, rng):
    path = folder / "database.json"
    path.write_text(json.dumps({"version": "1", "taxonomy": [], "database": {
        name: {"duration": str(seconds) if rng.rand() < 0.3 else seconds, "subset": subset, "url": "", "fps": 25.0,
               "annotations": annotations_of(actions, rng, text=rng.rand() < 0.5)}
        for name, subset, seconds, actions in data}}))
    return {"video_anno": str(path)}


def write_rows(folder, data, rng):
    """Lengths in the list, headers in another spelling; videos without actions are only in the list."""
    rows, info = folder / "rows.csv", folder / "list.csv"
    with open(str(rows), "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["Video", "Label", "t-start", "T_End"])
        writer.writerows([name, label, start, end] for name, _, _, actions in data for start, end, label in actions)
    info.write_text("video,subset,duration\n" + "".join("v_%s,%s,%s\n" % row[:3] for row in data))
    return {"video_anno": str(rows), "video_info": str(info)}


def write_rows_with_lengths(folder, data, rng):
    """Everything in the rows: a video without actions has a row without times."""
    path = folder / "all.csv"
    with open(str(path), "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["video-id", "start", "end", "label", "duration", "subset"])
        for name, subset, seconds, actions in data:
            writer.writerows([name, start, end, label, seconds, subset] for start, end, label in actions or [("",) * 3])
    return {"video_anno": str(path)}


FORMS = [write_reference_form, write_entries_with_subsets, write_official_form, write_rows, write_rows_with_lengths]


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    """A working directory without files at the default paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("write", FORMS)
def test_every_form_says_the_same(somewhere, rng, write):
    for _ in range(3):
        data = random_data(rng)
        opt = with_defaults(write(somewhere, data, rng))
        for subset, word in (("train", "training"), ("validation", "validation"), ("testing", "testing")):
            wanted = {name: (seconds, actions) for name, its_subset, seconds, actions in data if its_subset == word}
            videos = read_videos(opt, subset)
            assert [name.replace("v_", "") for name in videos] == list(wanted)
            for name, video in videos.items():
                seconds, actions = wanted[name.replace("v_", "")]
                assert video[:3] == (seconds, seconds, seconds) and list(video.actions) == actions
                plain = Video(seconds, seconds, seconds, actions)
                for one, other in zip(Labels(20)(video), Labels(20)(plain)):
                    np.testing.assert_array_equal(one, other)
        truth = ground_truth_of(opt, lambda line: None)
        assert {name: list(its) for name, its in truth.actions.items()} == {
            name: actions for name, subset, _, actions in data if subset == "validation" and actions}
        assert truth.labels - {""} == {label for *_, actions in data for _, _, label in actions} - {""}


def test_a_file_of_the_official_form_is_a_ground_truth(somewhere, rng):
    data = random_data(rng)
    derived = ground_truth_of(with_defaults(write_reference_form(somewhere, data, rng)), lambda line: None)
    given = ground_truth_of(with_defaults({"ground_truth": write_official_form(somewhere, data, rng)["video_anno"]}))
    assert given.actions == derived.actions and given.videos == derived.videos and given.labels == derived.labels


# ---- lengths

@pytest.mark.parametrize("seconds, frames, feature_frames, covered, proposals", [
    (14.07, 418, 400, 400 / 418 * 14.07, 416 / 418 * 14.07),            # ActivityNet's first video
    (10.0, 300, 290, 290 / 300 * 10, 290 / 300 * 10),                   # no snippets of 16 frames
    (6.2, 31, 31, 6.2, 6.2), (6.2, 31, 32, 32 / 31 * 6.2, 32 / 31 * 6.2),   # 5 frames a second
    (12.0, 12, 12, 12.0, 12.0), (12.0, 12, 16, 16.0, 16.0),             # 1 frame a second: 12 // 16 is 0
    (9.0, None, 16, 9.0, 9.0), (9.0, 100, None, 9.0, 9.0), (9.0, None, None, 9.0, 9.0)])
def test_lengths_by_which_labels_and_proposals_are_scaled(seconds, frames, feature_frames, covered, proposals):
    assert scaled_lengths(seconds, frames, feature_frames) == pytest.approx((covered, proposals), rel=1e-12)


def test_the_real_videos_are_scaled_by_the_published_rule(shared):
    """All of them, although the features of some cover less than half of their video."""
    folder = shared + "/activitynet_annotations/"
    with open(folder + "anet_anno_action.json") as handle:
        entries = json.load(handle)
    opt = {"video_info": folder + "video_info_new.csv", "video_anno": folder + "anet_anno_action.json"}
    for subset in ("train", "validation", "testing"):
        for name, video in read_videos(opt, subset).items():
            one = entries[name]
            assert video.feature_seconds == float(one["feature_frame"]) / one["duration_frame"] * one["duration_second"]
            assert video.proposal_seconds == (float(one["duration_frame"] // 16 * 16) / one["duration_frame"]
                                              * one["duration_second"])


def test_the_real_annotations_in_the_official_form(shared, somewhere):
    """Without frame counts, both forms give the same videos; nothing else is lost on the way."""
    folder = shared + "/activitynet_annotations/"
    with open(folder + "anet_anno_action.json") as handle:
        entries = json.load(handle)
    with open(folder + "video_info_new.csv") as handle:
        subsets = {row["video"]: row["subset"] for row in csv.DictReader(handle)}
    bare = {name: {"duration_second": one["duration_second"], "annotations": one["annotations"]}
            for name, one in entries.items()}
    official = {"database": {name[2:]: {"duration": one["duration_second"], "subset": subsets[name],
                                        "annotations": one["annotations"]} for name, one in entries.items()}}
    (somewhere / "bare.json").write_text(json.dumps(bare))
    (somewhere / "official.json").write_text(json.dumps(official))
    for subset in ("train", "validation"):
        one = read_videos({"video_anno": "bare.json", "video_info": folder + "video_info_new.csv"}, subset)
        other = read_videos({"video_anno": "official.json"}, subset)
        assert {name[2:]: video for name, video in one.items()} == other
        assert all(video.feature_seconds == video.proposal_seconds == video.seconds for video in other.values())


# ---- subsets

@pytest.mark.parametrize("wanted, subset, same", [
    ("training", "training", True), ("training", "Training", True), ("training", "train", True),
    ("train", "training", True), ("validation", "val", True), ("val", "Validation", True), ("Test", "testing", True),
    ("Validation", "validation", True), ("Test", "Test", True), ("training", "my training", True),
    ("validation", "training", False), ("training", "validation", False), ("test", "validation", False),
    ("a", "b", False)])
def test_words_of_subsets(wanted, subset, same):
    assert same_subset(wanted, subset) == same


def test_thumos14_trains_on_validation_and_tests_on_test(shared, somewhere):
    opt = with_defaults({"video_anno": shared + "/thumos14_annotations/thumos14.json",
                         "training_subset": "Validation", "validation_subset": "Test"})
    annotations = Annotations(opt)
    train, test = annotations.subset("train"), annotations.subset("validation")
    assert (len(train), len(test)) == (200, 210)
    assert train["video_validation_0000051"].seconds == 169.79 and "video_test_0000004" in test
    lines = remarks(annotations, [train, test])
    assert lines == ["8 actions outside the video: no labels, and counted as missed in the evaluation "
                     "(video_validation_0000364, video_validation_0000856, video_test_0000814, ...)"]
    with pytest.raises(UserError, match=r"--training_subset training: .*no video of that subset, but of 'Test', 'Val"):
        read_videos(dict(opt, training_subset="training"), "train")


def test_a_list_at_the_default_path_that_belongs_to_other_data_decides_nothing(somewhere, rng):
    data = random_data(rng)
    opt = with_defaults(write_official_form(somewhere, data, rng))
    (somewhere / "data" / "activitynet_annotations").mkdir(parents=True)
    (somewhere / opt["video_info"]).write_text("video,subset\nv_other,training\n")
    assert len(read_videos(opt, "train")) == 10
    (somewhere / opt["video_info"]).write_text("video,subset\nv_video_00,validation\n")     # but it is of these data
    assert list(read_videos(opt, "validation")) == ["v_video_00"]


def test_videos_without_a_subset_are_refused(somewhere):
    (somewhere / "anno.json").write_text('{"v_a": {"duration_second": 3}}')
    with pytest.raises(UserError, match=r"anno\.json does not say which subset a video belongs to: give --video_info"):
        read_videos({"video_anno": "anno.json"}, "train")


@pytest.mark.parametrize("text", ["v_video_03\nvideo_06\n\n# a remark\nnobody\n",
                                  '["video_03", "v_video_06", "nobody"]'])
def test_blocked_videos_are_left_out_everywhere(somewhere, rng, text):
    data = random_data(rng)
    (somewhere / "blocked").write_text(text)
    opt = with_defaults(dict(write_official_form(somewhere, data, rng), blocked="blocked",
                             validation_subset="training"))
    wanted = [name for name, subset, *_ in data if subset == "training" and name not in ("video_03", "video_06")]
    annotations = Annotations(opt)
    assert list(annotations.subset("train")) == wanted
    assert remarks(annotations, [annotations.subset("train")])[0] == (
        "--blocked blocked: leaves out the 2 of its 3 videos that the annotations have")
    truth = ground_truth_of(opt, lambda line: None)
    assert truth.videos == len(wanted) and not {"video_03", "video_06"} & set(truth.actions)
    given = ground_truth_of(dict(opt, ground_truth="database.json"))
    assert given.actions == truth.actions


def test_a_ground_truth_with_a_video_under_both_spellings_is_refused(tmp_path):
    entry = {"subset": "validation", "duration": 9.0, "annotations": [{"segment": [1.0, 2.0], "label": "x"}]}
    (tmp_path / "truth.json").write_text(json.dumps({"database": {"v_a": entry, "a": entry}}))
    with pytest.raises(UserError, match=r"--ground_truth .*truth\.json has v_a and a, and both are video a"):
        read_ground_truth(str(tmp_path / "truth.json"), "validation")


# ---- odd actions, and what is no annotation file

def test_actions_that_are_reversed_or_outside_are_told_and_get_no_labels(somewhere):
    actions = [[5.0, 4.0], [2.0, 3.0], [10.5, 12.0], [9.0, 11.0], [-3.0, -1.0]]
    (somewhere / "anno.json").write_text(json.dumps({"a": {"duration_second": 10.0, "subset": "train", "annotations": [
        {"segment": segment, "label": 0} for segment in actions]}}))
    opt = with_defaults({"video_anno": "anno.json"})
    annotations = Annotations(opt)
    video, = annotations.subset("train").values()
    assert [action[:2] for action in video.actions] == list(map(tuple, actions[1:])) and video.reversed_actions == 1
    for one, other in zip(Labels(10)(video), Labels(10)(Video(10.0, 10.0, 10.0, [(2.0, 3.0, "0"), (9.0, 10.0, "0")]))):
        np.testing.assert_array_equal(one, other)
    lines = remarks(annotations, [annotations.subset("train")])
    assert lines == ["1 action with an end before the start: left out (a)",
                     "2 actions outside the video: no labels, and counted as missed in the evaluation (a)"]


@pytest.mark.parametrize("factor, told", [(1, False), (30, True), (1000, True)])
def test_lengths_in_another_unit_are_told(somewhere, rng, factor, told):
    (somewhere / "anno.json").write_text(json.dumps({"v%d" % video: {
        "duration_second": seconds * factor, "subset": "train", "annotations": [
            {"segment": sorted(rng.rand(2) * seconds), "label": 0} for _ in range(3)]}
        for video, seconds in enumerate(rng.uniform(5, 200, 9))}))
    annotations = Annotations(with_defaults({"video_anno": "anno.json"}))
    lines = remarks(annotations, [annotations.subset("train")])
    assert len(lines) == told and all(line.startswith(
        "9 videos with all actions in the first 5 % of the length: are times and lengths in the same unit?")
        for line in lines)


def test_an_action_that_begins_before_its_video_is_told(somewhere):
    (somewhere / "anno.json").write_text(json.dumps({"a": {"duration_second": 10.0, "subset": "train", "annotations": [
        {"segment": [-10.0, 3.0], "label": 0}, {"segment": [4, 9], "label": 0}]}}))
    annotations = Annotations(with_defaults({"video_anno": "anno.json"}))
    assert remarks(annotations, [annotations.subset("train")]) == [
        "1 action with a start before 0 s: the labels begin with the video (a)"]


def test_features_that_cover_another_length_are_told(somewhere):
    (somewhere / "anno.json").write_text(json.dumps({
        name: {"duration_second": 10.0, "duration_frame": 300, "feature_frame": frames, "subset": "train"}
        for name, frames in (("a", 296), ("b", 250), ("c", 320), ("d", 286))}))
    annotations = Annotations(with_defaults({"video_anno": "anno.json"}))
    line, = remarks(annotations, [annotations.subset("train")])
    assert line.startswith("2 videos with features for less than 95 % or more than 105 % of the length: ")
    assert line.endswith("the worst: b, 83 % (b, c)")


@pytest.mark.parametrize("name, content, words", [
    ("a.json", '{"results": {"a": []}}', "form that is not known.*'results'"), ("a.json", "[1]", "form that is not"),
    ("a.json", '{"gts": [], "fps": 5}', "form that is not known"), ("a.json", "5", "form that is not known"),
    ("a.json", '{"database": {"a": 3}}', "form that is not known"), ("a.json", "no JSON", "not valid JSON"),
    ("a.csv", "video,begin,end\na,1,2\n", "no column 'start'"), ("a.csv", "start,end\n1,2\n", "no column 'video'"),
    ("a.csv", "video,start,end\n,1,2\n", "row without the name"),
    ("a.csv", "video,start,end,duration,subset\na,1,2,9,train\na,1,2,8,train\n", "two lengths, 9 and 8"),
    ("a.csv", "video,start,end,duration,subset\na,1,zwei,9,train\n", r"the segment \['1', 'zwei'\]"),
    ("a.csv", "video,start,end,duration,subset\na,1,2,9,train\na,1,2,9,val\n", "video a two subsets, train and val"),
    ("a.csv", "video,start,end,subset\na,1,5,2,5,train\n", r"a row of 6 cells below its 4 columns \('a,1,5,2,5,train"),
    ("a.csv", "video,start,end,start,subset\na,1,2,9,train\n", "two columns 'start'"),
    ("a.csv", "video;start;end\na;1;2\n", "separated by commas, but is 'video;start;end'"),
    ("a.csv", "video\tstart\tend\na\t1\t2\n", "separated by commas, but is"), ("a.csv", "", "no column 'video'"),
    ("a.csv", "video,start,end,duration,subset\na,1,2,9,\na,1,2,,train\na,1,2,0,\n", "two lengths, 9 and 0"),
    ("a.csv", "video,start,end,duration,subset\na,1,2,0,train\n", "video a has the length '0', but a number"),
    ("a.csv", "video,start,end,subset\na,1,2,train\n", "nothing of the length of video a: give it in seconds"),
    ("a.json", '{"database": {"a": {"duration": 0, "subset": "train"}}}', "video a has the length 0, but a number of"),
    ("a.json", '{"database": {"a": {"subset": "train"}}}', "nothing of the length of video a: .* or duration"),
    ("a.json", '{"database": {"a": {"duration": 9, "subset": "train", "duration_frame": -1}}}', "duration_frame = -1"),
    ("a.json", '{"v_a": {"duration_second": 1}, "a": {"duration_second": 1}}', "v_a and a, and both are video a")])
def test_what_is_no_annotation_file_is_refused_in_one_sentence(somewhere, name, content, words):
    (somewhere / name).write_text(content)
    with pytest.raises(UserError, match=words) as error:
        read_videos({"video_anno": name}, "train")
    assert "\n" not in str(error.value) and name in str(error.value)


def test_rows_that_say_the_same_of_a_video_agree(somewhere):
    """Whatever they leave out, and however they spell it."""
    (somewhere / "a.csv").write_text("video,start,end,duration,subset\na,1,2,,\na,1,2,9.0,Train\na,3,4,9,train\n")
    video, = read_videos({"video_anno": "a.csv"}, "train").values()
    assert video == Video(9.0, 9.0, 9.0, [(1.0, 2.0, ""), (1.0, 2.0, ""), (3.0, 4.0, "")], "Train")


def test_two_lengths_in_the_list_of_videos_are_refused(somewhere):
    (somewhere / "a.csv").write_text("video,start,end\na,1,2\n")
    for rows, words in (("a,9,train\na,8,train", "info.csv gives video a two lengths, 9 and 8"),
                        ("a,x,train", "info.csv: video a has the length 'x', but a number"),
                        ("a,,train", "a.csv says nothing of the length of video a")):
        (somewhere / "info.csv").write_text("video,seconds,subset\n" + rows + "\n")
        with pytest.raises(UserError, match=words):
            read_videos({"video_anno": "a.csv", "video_info": "info.csv"}, "train")
    (somewhere / "info.csv").write_text("video,seconds,subset\na,,train\na,9.0,train\na,9,val\n")
    video, = read_videos({"video_anno": "a.csv", "video_info": "info.csv"}, "train train val").values()
    assert video.seconds == 9.0


def test_a_video_in_two_files_is_refused(somewhere):
    for name, video in (("one.json", "v_a"), ("two.json", "a")):
        (somewhere / name).write_text(json.dumps({video: {"duration_second": 1, "subset": "train"}}))
    with pytest.raises(UserError, match=r"one\.json and two\.json both annotate video a"):
        read_videos({"video_anno": ["one.json", "two.json"]}, "train")


@pytest.mark.parametrize("content, words", [
    (b"\xff\xfe\x00v", "is no text .*: give a file with the name of a video on each line"),
    (b'{"v_a": 1}', "is JSON, but no list of names"), (b'["v_a", 3]', "is JSON, but no list of names")])
def test_what_is_no_list_of_blocked_videos_is_refused(somewhere, content, words):
    (somewhere / "blocked").write_bytes(content)
    (somewhere / "anno.json").write_text('{"v_a": {"duration_second": 3}}')
    with pytest.raises(UserError, match="--blocked blocked " + words):
        Annotations(with_defaults({"video_anno": "anno.json", "blocked": "blocked"}))


def test_the_odd_of_a_run_is_among_what_is_odd(somewhere, rng):
    """A run says what bends its figures, check_data.py all of it, in the same words; each line counts what it names."""
    data = random_data(rng)
    opt = with_defaults(dict(write_official_form(somewhere, data, rng), validation_subset="training"))
    annotations = Annotations(opt)
    subsets = [annotations.subset("train"), annotations.subset("validation")]
    lines = remarks(annotations, subsets)
    count = len(subsets[0])
    assert lines[0].startswith("%d videos in both subsets: the figures are also those of videos that" % count)
    found = odd_annotations(annotations, subsets)
    assert set(lines) <= set(map(str, found)) and all(one.names for one in found)
    assert not remarks(annotations, subsets[:1]) or "both subsets" not in remarks(annotations, subsets[:1])[0]


def test_a_subset_that_cannot_be_used_is_none(somewhere, rng):
    opt = with_defaults(write_official_form(somewhere, random_data(rng), rng))
    assert Annotations(opt).subset_or_none("no such") is None
    assert Annotations(opt).subset_or_none("train") == read_videos(opt, "train")
