import json
import os

import numpy as np
import predict
import pytest
import small_data
import torch

from bmn.data.annotations import Video
from bmn.data.new_videos import are_videos, read_features
from bmn.data.packed_features import header_of
from bmn.data.rescaling import rescale_snippets
from bmn.errors import UserError
from bmn.results import time_axis
from bmn.training import checkpoint
from models import BMN
from post_processing import proposals

NETWORK = {"temporal_scale": 10, "feat_dim": 8, "num_sample": 4}


@pytest.fixture
def network(tmp_path):
    """A network of random weights; checkpoint.pth.tar holds it and its options."""
    torch.manual_seed(0)
    network = BMN(NETWORK)
    checkpoint.write(str(tmp_path / "checkpoint.pth.tar"), {
        "epoch": 1, "state_dict": network.state_dict(), "options": dict(NETWORK, is_distributed=1, world_size=8)})
    return network.eval()


def features(name, rows=10):
    return np.random.RandomState(sum(map(ord, name))).randn(rows, 8)


def expected(network, table):
    """[n, 3] (score, xmin, xmax) of features [T, C]."""
    with torch.no_grad():
        maps = network(torch.from_numpy(table.T[None].astype(np.float32)), valid_only=True)
    return proposals(*(one.numpy() for one in maps), {"soft_nms_alpha": 0.4, "soft_nms_low_thres": 0.5,
                                                      "soft_nms_high_thres": 0.9})[0]


def run(monkeypatch, folder, *arguments):
    monkeypatch.chdir(str(folder))
    monkeypatch.setattr("sys.argv", ["predict.py", "--checkpoint", "checkpoint.pth.tar", "--device", "cpu"]
                        + [str(argument) for argument in arguments])
    predict.main(predict.parse_arguments())


def results(path):
    return {name: np.array([[one["score"]] + one["segment"] for one in rows])
            for name, rows in json.loads(path.read_text())["results"].items()}


def test_one_file_in_seconds(network, tmp_path, monkeypatch, capsys):
    small_data.write_csv(str(tmp_path / "v_a.csv"), features("v_a"))
    np.save(str(tmp_path / "v_a.npy"), features("other"))       # not what was asked for
    run(monkeypatch, tmp_path, "v_a.csv", "--duration", "50", "--output", "out.json", "--top", 3)
    want = expected(network, features("v_a")) * [1, 50, 50]
    np.testing.assert_allclose(results(tmp_path / "out.json")["a"], want, rtol=1e-5)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    table = [list(map(float, line)) for line in lines if line and line[0].isdigit()]
    np.testing.assert_allclose(table, [[rank + 1, row[1], row[2], row[2] - row[1], row[0]]
                                       for rank, row in enumerate(want[:3])], atol=0.006)


def test_raw_features_are_filled_up_as_those_that_the_network_was_trained_on(network, tmp_path, monkeypatch):
    raw = np.random.RandomState(0).randn(23, 6)
    np.save(str(tmp_path / "a.npy"), raw)
    (tmp_path / "lengths.csv").write_text("video,seconds\nv_a,12.5\n")
    run(monkeypatch, tmp_path, "a.npy", "--duration", "lengths.csv", "--output", "out.json")
    rescaled = rescale_snippets(np.pad(raw, ((0, 0), (0, 2)), "constant"), 23 * 16, 12.5, 10)
    np.testing.assert_allclose(results(tmp_path / "out.json")["a"], expected(network, rescaled) * [1, 12.5, 12.5],
                               rtol=1e-4)


def test_a_folder_with_lengths_and_raw_features(network, tmp_path, monkeypatch):
    os.mkdir(str(tmp_path / "new"))
    np.save(str(tmp_path / "new" / "v_a.npy"), features("v_a"))
    np.save(str(tmp_path / "new" / "v_b.npy"), features("v_b", 23).T)       # raw: 23 snippets
    (tmp_path / "lengths.csv").write_text("seconds,video\n30,v_a\n12.5,v_b\n", encoding="utf-8-sig")
    run(monkeypatch, tmp_path, "new", "--duration", "lengths.csv", "--output", "out.json")
    got = results(tmp_path / "out.json")
    np.testing.assert_allclose(got["a"], expected(network, features("v_a")) * [1, 30, 30], rtol=1e-5)
    rescaled = rescale_snippets(features("v_b", 23), 23 * 16, 12.5, 10)
    np.testing.assert_allclose(got["b"], expected(network, rescaled) * [1, 12.5, 12.5], rtol=1e-4)


def test_pictures_show_the_annotated_actions(network, tmp_path, monkeypatch):
    opt = small_data.make(tmp_path, temporal_scale=10, feat_dim=8)
    drawn, prediction = [], time_axis.prediction
    monkeypatch.setattr(time_axis, "prediction", lambda *args: drawn.append(args) or prediction(*args))
    run(monkeypatch, tmp_path, opt["data_path"], "--video_anno", opt["video_anno"], "--plot", "pictures", "--output",
        "out.json")
    assert sorted(os.listdir(str(tmp_path / "pictures"))) == ["v_%s.png" % letter for letter in "abcde"]
    assert (tmp_path / "pictures" / "v_a.png").read_bytes().startswith(b"\x89PNG")
    title, seconds, start, end, confidence_map, found, truth = drawn[0]
    assert title == "v_a" and truth == [(2.0, 5.0, "Juggling clubs")]
    assert start.shape == end.shape == (10,) and confidence_map.shape == (2, 10, 10)
    assert seconds == pytest.approx(288 / 300 * 10)         # 300 frames are 18 whole snippets
    np.testing.assert_allclose(results(tmp_path / "out.json")["a"][0, 1:], found[0, 1:] * seconds)


def test_a_packed_file_is_read(network, tmp_path, monkeypatch):
    from bmn.data.features import open_features
    opt = small_data.make(tmp_path, temporal_scale=10, feat_dim=8)
    packed = open_features(opt, ["v_a", "v_b"], log=lambda line: None)
    run(monkeypatch, tmp_path, packed.path, "--duration", "10", "--output", "out.json")
    want = expected(network, small_data.table("v_b", 10, 8)) * [1, 10, 10]
    np.testing.assert_allclose(results(tmp_path / "out.json")["b"], want, rtol=1e-5)


@pytest.mark.parametrize("arguments,parts", [
    (["nowhere.csv", "--duration", "5"], ["nowhere.csv does not exist"]),
    (["nowhere.mp4", "--page", "p.html"], ["nowhere.mp4 does not exist: give a feature file or a video"]),
    (["empty", "--duration", "5"], ["empty holds no features"]),
    (["v_a.csv", "--duration", "long"], ["--duration long is neither a number of seconds nor a file"]),
    (["v_a.csv", "--duration", "-3"], ["v_a", "-3", "seconds above 0"]),
    (["v_a.csv", "--duration", "other.csv"], ["other.csv", "columns video and seconds"]),
    (["v_a.csv", "--duration", "lengths.csv"], ["lengths.csv does not have the length of video v_a"]),
    (["v_a.csv", "--duration", "short.csv"], ["short.csv does not have the length of video v_a"]),
    (["v_a.csv", "--duration", "binary"], ["--duration binary", "CSV text file"]),
    (["twice", "--duration", "5"], ["a and v_a", "both are video a"]),
    (["v_a.csv", "--duration", "5", "--soft_nms_low_thres", "0.95"], ["--soft_nms_low_thres 0.95 is above"]),
    (["v_a.csv", "--video_anno", "anno.json"], ["anno.json does not have the length of video v_a"]),
    (["wide.csv", "--duration", "5"], ["wide.csv", "10 rows and 9 columns", "--feat_dim 8"]),
    (["v_a.csv", "--duration", "5", "--feat_dim", "12"], ["checkpoint.pth.tar", "--feat_dim"]),
    (["v_a.csv", "--duration", "5", "--checkpoint", "none.pth.tar"], ["none.pth.tar"]),
])
def test_mistakes_in_the_arguments_are_reported(network, tmp_path, monkeypatch, arguments, parts):
    small_data.write_csv(str(tmp_path / "v_a.csv"), features("v_a"))
    small_data.write_csv(str(tmp_path / "wide.csv"), np.ones((10, 9)))
    os.mkdir(str(tmp_path / "empty"))
    (tmp_path / "other.csv").write_text("name,length\nv_a,3\n")
    (tmp_path / "lengths.csv").write_text("video,seconds\nv_b,3\n")
    (tmp_path / "short.csv").write_text("video,seconds\nv_a\n")
    (tmp_path / "binary").write_bytes(b"\x93NUMPY\xff\x00")
    for name in ("a", "v_a"):
        small_data.write_csv(str(tmp_path / "twice" / (name + ".csv")), features(name))
    (tmp_path / "anno.json").write_text("{}")
    with pytest.raises(UserError) as error:
        run(monkeypatch, tmp_path, *arguments, "--output", "out.json")
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("entry", [
    {"duration_frame": -1}, {"duration_frame": "many"}, {"feature_frame": True}, {"annotations": {}},
    {"annotations": [3]}, {"annotations": [{"label": "a"}]}, {"annotations": [{"segment": [1]}]},
])
def test_annotations_that_training_would_refuse_are_refused(network, tmp_path, monkeypatch, entry):
    small_data.write_csv(str(tmp_path / "v_a.csv"), features("v_a"))
    (tmp_path / "anno.json").write_text(json.dumps({"v_a": dict({"duration_second": 9}, **entry)}))
    with pytest.raises(UserError, match=r"--video_anno anno\.json: video v_a has"):
        run(monkeypatch, tmp_path, "v_a.csv", "--video_anno", "anno.json", "--plot", ".")


def test_names_and_labels_that_look_like_formulas_are_drawn(network, tmp_path, monkeypatch):
    small_data.write_csv(str(tmp_path / "v_$x_{$.csv"), features("v_a"))
    actions = [{"segment": [1, 2], "label": label} for label in ("$x_{$", 3)]
    (tmp_path / "anno.json").write_text(json.dumps({"v_$x_{$": {"duration_second": 9, "annotations": actions}}))
    run(monkeypatch, tmp_path, "v_$x_{$.csv", "--video_anno", "anno.json", "--plot", ".")
    assert (tmp_path / "v_$x_{$.png").exists()


@pytest.mark.parametrize("option,value", [
    ("temporal_scale", "0"), ("num_sample", "0"), ("prop_boundary_ratio", "nan"), ("soft_nms_alpha", "0"),
    ("soft_nms_high_thres", "1.5"), ("top", "-2")])
def test_values_that_main_py_refuses_are_refused(tmp_path, monkeypatch, option, value):
    with pytest.raises(UserError, match="^argument --%s: '%s' is not .*--help lists all options" % (option, value)):
        run(monkeypatch, tmp_path, "v_a.csv", "--duration", "5", "--" + option, value)
    with pytest.raises(UserError, match=r"^argument --video_anno: not allowed with argument --duration"):
        run(monkeypatch, tmp_path, "v_a.csv", "--duration", "5", "--video_anno", "x.json")


@pytest.mark.parametrize("rows,columns", [(30, 8), (8, 30)])
def test_raw_arrays_where_T_equals_C(rows, columns):
    """Time is the axis that is not C long, even where the other one is as long as T."""
    raw = np.random.RandomState(0).randn(30, 8)

    class Source:
        path = "somewhere"

        def table(self, name):
            return (raw if rows == 30 else raw.T), False

    opt = {"temporal_scale": 8, "feat_dim": 8}
    got = read_features(Source(), "v_a", Video(9.0, 9.0, 9.0), opt, 8)
    np.testing.assert_allclose(got.T, rescale_snippets(raw, 30 * 16, 9.0, 8), rtol=1e-6)


def test_a_bad_file_is_reported_before_anything_is_computed(network, tmp_path, monkeypatch):
    for name in ("v_a", "v_b"):
        small_data.write_csv(str(tmp_path / "new" / (name + ".csv")), features(name))
    (tmp_path / "new" / "v_b.csv").write_text("f0,f1\n1,x\n")
    with pytest.raises(UserError, match=r"v_b\.csv has 'x'"):
        run(monkeypatch, tmp_path, "new", "--duration", "5", "--plot", "pictures")
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x"])
def test_names_in_a_packed_file_lead_to_no_picture_outside_the_folder(network, tmp_path, monkeypatch, name):
    name = name.replace("/x", str(tmp_path / "x")) if name == "/x" else name
    with open(str(tmp_path / "foreign.safetensors"), "wb") as handle:
        handle.write(header_of({name: [0, 0]}, 10, 8, "float32") + features("v_a").T.astype("<f4").tobytes())
    (tmp_path / "x.png").write_text("mine")
    before = sorted(os.listdir(str(tmp_path)))
    with pytest.raises(UserError, match="would not lie in pictures: rename it in the data"):
        run(monkeypatch, tmp_path, "foreign.safetensors", "--duration", "50", "--plot", "pictures")
    assert (tmp_path / "x.png").read_text() == "mine"
    assert sorted(os.listdir(str(tmp_path))) == before


@pytest.mark.parametrize("options, words", [
    (["--plot", "v_a.csv/here"], "cannot write"), (["--output", "v_a.csv"], "FEATURES and --output are the same file"),
    (["--output", "checkpoint.pth.tar"], "--checkpoint and --output are the same file"),
    (["--output", ""], "cannot write"), (["--output", "out", "--plot", "out"], None)])
def test_outputs_are_looked_at_before_the_network(network, tmp_path, monkeypatch, options, words):
    small_data.write_csv(str(tmp_path / "v_a.csv"), features("v_a"))
    monkeypatch.setattr(predict, "open_network", lambda args: pytest.fail("too late"))
    with pytest.raises(UserError if words else pytest.fail.Exception, match=words or "too late"):
        run(monkeypatch, tmp_path, "v_a.csv", "--duration", "50", *options)


def test_a_video_without_proposals_is_told(capsys):
    video = Video(3.0, 3.0, 3.0)
    predict.print_table("v_a", video, np.empty((0, 3)), 10)
    predict.print_table("v_b", video, np.array([[0.5, 0.0, 1.0]]), 10)
    of_a, of_b = capsys.readouterr().out.split("v_b")
    assert "no proposals: it is so short" in of_a and "no proposals" not in of_b


@pytest.mark.parametrize("files, videos", [
    (["a.mp4"], True), (["b/a.MKV", "actions.csv"], True), (["a.mp4", "a.npy"], False), (["a.mp4", "b.npy"], False),
    (["a.mp4", "a.csv"], False), (["a.csv"], False), ([], False)])
def test_a_folder_of_videos_is_told_from_one_of_features(tmp_path, files, videos):
    os.mkdir(str(tmp_path / "b"))
    for file in files:
        (tmp_path / file).write_text("")
    assert are_videos(str(tmp_path)) == videos


def test_features_need_a_length_and_the_page_its_folder(network, tmp_path, monkeypatch):
    small_data.write_csv(str(tmp_path / "v_a.csv"), features("v_a"))
    with pytest.raises(UserError, match="give --duration or --video_anno"):
        run(monkeypatch, tmp_path, "v_a.csv")
    with pytest.raises(UserError, match="--videos films is no folder"):
        run(monkeypatch, tmp_path, "v_a.csv", "--duration", "50", "--videos", "films", "--page", "a.html")
    with pytest.raises(UserError, match="FEATURES and --page are the same file"):
        run(monkeypatch, tmp_path, "v_a.csv", "--duration", "50", "--page", "v_a.csv")


def test_the_page_of_features_names_the_videos_beside_it(network, tmp_path, monkeypatch, capsys):
    for name in ("v_a", "v_b"):
        small_data.write_csv(str(tmp_path / "new" / (name + ".csv")), features(name))
    os.mkdir(str(tmp_path / "films"))
    (tmp_path / "films" / "a.mp4").write_text("")
    run(monkeypatch, tmp_path, "new", "--duration", "50", "--videos", "films", "--page", "pages/a.html")
    page = (tmp_path / "pages" / "a.html").read_text(encoding="utf-8")
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [one["src"] for one in data] == ["../films/a.mp4", None]
    want = expected(network, features("v_a")) * [1, 50, 50]
    np.testing.assert_allclose(data[0]["proposals"], want, rtol=1e-4, atol=6e-4)
    assert "no file for 1 of 2 videos (v_b)" in capsys.readouterr().out
