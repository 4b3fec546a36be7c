import json
import os

import numpy as np
import predict
import prepare_features
import pytest
import small_data
import torch

import checkpoint
import figures
from errors import UserError
from models import BMN
from post_processing import proposals

NETWORK = {"temporal_scale": 10, "feat_dim": 8, "num_sample": 4}


@pytest.fixture
def network(tmp_path):
    """A network of random weights, its checkpoint with its options in checkpoint.pth.tar."""
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
    predict.main()


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


def test_a_folder_its_lengths_and_raw_features(network, tmp_path, monkeypatch):
    os.mkdir(str(tmp_path / "new"))
    np.save(str(tmp_path / "new" / "v_a.npy"), features("v_a"))
    np.save(str(tmp_path / "new" / "v_b.npy"), features("v_b", 23).T)       # raw: 23 snippets
    (tmp_path / "lengths.csv").write_text("seconds,video\n30,v_a\n12.5,v_b\n")
    run(monkeypatch, tmp_path, "new", "--duration", "lengths.csv", "--output", "out.json")
    got = results(tmp_path / "out.json")
    np.testing.assert_allclose(got["a"], expected(network, features("v_a")) * [1, 30, 30], rtol=1e-5)
    rescaled = prepare_features.rescale_snippets(features("v_b", 23), 23 * 16, 12.5, 10)
    np.testing.assert_allclose(got["b"], expected(network, rescaled) * [1, 12.5, 12.5], rtol=1e-4)


def test_pictures_show_the_annotated_actions(network, tmp_path, monkeypatch):
    opt = small_data.make(tmp_path, temporal_scale=10, feat_dim=8)
    drawn, prediction = [], figures.prediction
    monkeypatch.setattr(figures, "prediction", lambda *args: drawn.append(args) or prediction(*args))
    run(monkeypatch, tmp_path, opt["data_path"], "--video_anno", opt["video_anno"], "--plot", "pictures", "--output",
        "out.json")
    assert sorted(os.listdir(str(tmp_path / "pictures"))) == ["v_%s.png" % letter for letter in "abcde"]
    assert (tmp_path / "pictures" / "v_a.png").read_bytes().startswith(b"\x89PNG")
    title, seconds, start, end, confidence_map, found, truth = drawn[0]
    assert title == "v_a" and truth == [(2.0, 5.0, "Juggling clubs")]
    assert start.shape == end.shape == (10,) and confidence_map.shape == (2, 10, 10)
    assert seconds == pytest.approx(288 / 300 * 10)         # 300 frames are 18 whole snippets
    np.testing.assert_allclose(results(tmp_path / "out.json")["a"][0, 1:], found[0, 1:] * seconds)


def test_a_packed_file(network, tmp_path, monkeypatch):
    from features import open_features
    opt = small_data.make(tmp_path, temporal_scale=10, feat_dim=8)
    packed = open_features(opt, ["v_a", "v_b"], log=lambda line: None)
    run(monkeypatch, tmp_path, packed.place, "--duration", "10", "--output", "out.json")
    want = expected(network, small_data.table("v_b", 10, 8)) * [1, 10, 10]
    np.testing.assert_allclose(results(tmp_path / "out.json")["b"], want, rtol=1e-5)


@pytest.mark.parametrize("arguments,parts", [
    (["nowhere.csv", "--duration", "5"], ["nowhere.csv does not exist"]),
    (["empty", "--duration", "5"], ["empty holds no features"]),
    (["v_a.csv", "--duration", "long"], ["v_a", "'long'", "seconds above 0"]),
    (["v_a.csv", "--duration", "-3"], ["v_a", "-3", "seconds above 0"]),
    (["v_a.csv", "--duration", "other.csv"], ["other.csv", "columns video and seconds"]),
    (["v_a.csv", "--duration", "lengths.csv"], ["lengths.csv", "v_a", "None"]),
    (["v_a.csv", "--video_anno", "anno.json"], ["anno.json", "v_a", "None"]),
    (["wide.csv", "--duration", "5"], ["wide.csv", "10 rows and 9 columns", "--feat_dim 8"]),
    (["v_a.csv", "--duration", "5", "--feat_dim", "12"], ["checkpoint.pth.tar", "--feat_dim"]),
    (["v_a.csv", "--duration", "5", "--checkpoint", "none.pth.tar"], ["none.pth.tar"]),
])
def test_what_is_told(network, tmp_path, monkeypatch, arguments, parts):
    small_data.write_csv(str(tmp_path / "v_a.csv"), features("v_a"))
    small_data.write_csv(str(tmp_path / "wide.csv"), np.ones((10, 9)))
    os.mkdir(str(tmp_path / "empty"))
    (tmp_path / "other.csv").write_text("name,length\nv_a,3\n")
    (tmp_path / "lengths.csv").write_text("video,seconds\nv_b,3\n")
    (tmp_path / "anno.json").write_text("{}")
    with pytest.raises(UserError) as error:
        run(monkeypatch, tmp_path, *arguments, "--output", "out.json")
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert not (tmp_path / "out.json").exists()
