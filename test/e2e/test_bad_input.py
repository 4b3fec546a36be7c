"""Users' mistakes: one sentence names them, the status is not zero, and there is no traceback or half-written file."""
import json
import os
import shutil

import pytest
import torch

from models import BMN


@pytest.fixture
def own(workshop):
    """A workshop with its own copy of data/, which a test may spoil."""
    source = os.path.realpath(str(workshop.folder / "data"))
    (workshop.folder / "data").unlink()
    shutil.copytree(source, str(workshop.folder / "data"))
    return workshop


def refused(process, *words):
    """The process ended with one sentence that holds all of the words."""
    assert process.returncode not in (0, None), process.stdout
    assert "Traceback" not in process.stderr
    lines = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, process.stderr
    for word in words:
        assert word in lines[0], lines[0]
    assert "epoch 0 [" not in process.stdout and "Epoch: 0" not in process.stdout       # before the first step


def features(workshop):
    """The files of the feature folder, training videos first."""
    info = workshop.text("data/activitynet_annotations/video_info_new.csv").splitlines()[1:]
    names = [row.split(",")[0] for row in info if ",training," in row]
    return [workshop.folder / "data/activitynet_feature_cuhk/csv_mean_16" / (name + ".csv") for name in names]


def nothing_written(workshop):
    """No checkpoint, result, metrics or temporary file was written."""
    for folder, _, names in os.walk(str(workshop.folder)):
        for name in names:
            assert not name.endswith((".tmp", ".pth.tar")) and name not in ("result_proposal.json", "metrics.jsonl"), (
                os.path.join(folder, name))


@pytest.mark.parametrize("option", ["video_anno", "video_info"])
def test_a_missing_or_unreadable_annotation_file_is_named(own, option):
    refused(own.main("--" + option, "nowhere.file"), option, "nowhere.file", "does not exist")
    name = {"video_anno": "anet_anno_action.json", "video_info": "video_info_new.csv"}[option]
    path = own.folder / "data/activitynet_annotations" / name
    path.write_bytes(path.read_bytes()[:1000] + b"\xff")
    refused(own.main(), option, name)
    nothing_written(own)


def test_a_listed_video_without_annotations_is_named(own):
    path = own.folder / "data/activitynet_annotations/anet_anno_action.json"
    videos = json.loads(path.read_text())
    gone = features(own)[2].name[:-4]
    del videos[gone]
    path.write_text(json.dumps(videos))
    refused(own.main(), "video_anno", "lacks 1 of the 24", gone)


def test_missing_features_are_counted_and_named_before_the_first_step(own):
    paths = features(own)
    for path in paths[3:8]:
        path.unlink()
    refused(own.main(), "5 of", paths[3].name[:-4], "--skip_missing", "csv_mean_16")
    nothing_written(own)
    rows = own.text("data/activitynet_annotations/video_info_new.csv").splitlines()
    unseen = next(row.split(",")[0] for row in rows if ",validation," in row)
    (paths[0].parent / (unseen + ".csv")).unlink()
    process = own.main("--skip_missing", "--train_epochs", 1, "--mode", "full")
    assert process.returncode == 0, process.stderr
    for subset, count in (("train", 19), ("validation", 11)):
        assert "%s subset video numbers: %d" % (subset, count) in process.stdout
    assert "no proposals for 1 of 12 videos: counted as missed" in process.stdout + process.stderr
    assert (own.folder / "output/report.html").exists()
    shutil.rmtree(str(own.folder / "data/activitynet_feature_cuhk"))
    refused(own.main(), "activitynet_feature_cuhk")


@pytest.mark.parametrize("cache", ["auto", "off"])
@pytest.mark.parametrize("spoil,words", [
    (lambda text: text.rsplit("\n", 4)[0] + "\n", ["13 rows"]),
    (lambda text: "\n".join(line.rsplit(",", 1)[0] for line in text.splitlines()) + "\n", ["7", "8", "feat_dim"]),
    (lambda text: text.replace(",", ",abc", 12), []), (lambda text: text[:-20] + "nan\n", []), (lambda text: "", [])])
def test_a_spoilt_feature_file_is_named(own, spoil, words, cache):
    path = features(own)[5]
    path.write_text(spoil(path.read_text()))
    refused(own.main("--feature_cache", cache), path.name, *words)
    nothing_written(own)


def test_wrong_options_are_refused(own):
    refused(own.main("--bach_size", 4), "--bach_size", "--batch_size")
    refused(own.main("--mode", "evaluation"), "--mode", "evaluation")
    refused(own.main("--batch_size", 64), "--batch_size 64", "24")
    nothing_written(own)


def test_a_subset_without_videos_is_refused(own):
    path = own.folder / "data/activitynet_annotations/video_info_new.csv"
    path.write_text(path.read_text().replace(",validation,", ",testing,"))
    refused(own.main(), "video_info", "validation")


def test_a_checkpoint_of_another_configuration_is_refused(own):
    assert own.main("--train_epochs", 1, "--num_sample", 8).returncode == 0
    refused(own.main("--mode", "inference"), "BMN_best.pth.tar", "--num_sample")
    refused(own.main("--mode", "inference", "--pth_path", "nowhere.pth.tar"), "nowhere.pth.tar")
    refused(own.main("--mode", "inference", "--num_sample", 8, "--num_sample_perbin", 2), "--num_sample_perbin")
    assert not (own.folder / "output/result_proposal.json").exists()


@pytest.mark.parametrize("path,words", [("data", "is a folder and not a file"), ("/dev/null", "is a device"),
                                        ("pipe", "is a pipe"), ("nowhere", "does not exist")])
def test_what_is_no_file_is_called_what_it_is(workshop, path, words):
    os.mkfifo(str(workshop.folder / "pipe"))
    for option, more in (("--pth_path", ()), ("--onnx", ()), ("--ground_truth", ()), ("--resume", ("--mode", "train")),
                         ("--classification_file", ("--mode", "detection"))):
        refused(workshop.main("--mode", "inference", *more, option, path), option + " " + path, words)
    if path != "data" and path != "nowhere":
        refused(workshop.main("--data_path", path), "--data_path " + path, words)


def test_an_unwritable_output_is_refused(own):
    (own.folder / "occupied").write_text("a file, no folder")
    refused(own.main("--checkpoint_path", "occupied/here"), "occupied/here")
    refused(own.main("--mode", "full", "--result_file", "occupied/result.json"), "occupied/result.json")
    refused(own.main("--mode", "full", "--save_fig_path", "occupied/figure.jpg"), "occupied/figure.jpg")
    refused(own.main("--mode", "full", "--save_fig_path", "figure.xyz"), "figure.xyz", "no picture format")
    refused(own.main("--mode", "full", "--output_dir", "occupied"), "occupied")
    refused(own.main("--mode", "full", "--result_file="), "--result_file")
    refused(own.main("--mode", "full", "--result_file", "/dev/null"), "/dev/null", "no regular file")
    refused(own.main("--mode", "full", "--result_file", "x.png", "--save_fig_path", "./x.png"), "same file")
    anno = "data/activitynet_annotations/anet_anno_action.json"
    refused(own.main("--mode", "full", "--result_file", anno), "--video_anno", "--result_file", "same file")
    nothing_written(own)


@pytest.mark.parametrize("path", ["checkpoint/BMN_best.pth.tar", "checkpoint/BMN_checkpoint.pth.tar",
                                  "checkpoint/metrics.jsonl", "checkpoint/opts.json", "output/report.html",
                                  "output/result_proposal.json", "output/evaluation_result.jpg"])
def test_a_folder_in_the_place_of_a_file_is_refused(own, path):
    (own.folder / path).mkdir(parents=True)
    refused(own.main("--mode", "full"), os.path.basename(path), "it is a folder")
    nothing_written_but(own, path)


def nothing_written_but(workshop, path):
    (workshop.folder / path).rmdir()
    nothing_written(workshop)


def test_broken_ground_truth_is_found_before_the_training(own):
    (own.folder / "truth.json").write_text('{"database": {}}')
    refused(own.main("--mode", "full", "--ground_truth", "truth.json"), "ground truth truth.json")
    refused(own.main("--mode", "full", "--ground_truth", "data"), "--ground_truth data", "folder")
    nothing_written(own)


def test_names_that_lead_out_of_the_output_folder_are_refused(own):
    """They come from a packed file and a list that somebody else made."""
    lists = own.folder / "data/activitynet_annotations"
    victim = own.folder / "victim.csv"
    victim.write_text("mine")
    name = features(own)[0].name[:-4]
    evil = "../../victim"
    for path in (lists / "video_info_new.csv", lists / "anet_anno_action.json"):
        path.write_text(path.read_text().replace(name, evil).replace(",training,", ",validation,"))
    from bmn.data.packed_features import PackedFeatures, header_of
    names = [row.split(",")[0] for row in own.text("data/activitynet_annotations/video_info_new.csv").splitlines()[1:]]
    with open(str(own.folder / "foreign.safetensors"), "wb") as handle:
        handle.write(header_of({one: [0, 0] for one in names}, 16, 8, "float32") + bytes(4 * 16 * 8 * len(names)))
    assert evil in PackedFeatures(str(own.folder / "foreign.safetensors"), 16, 8)
    state = {"epoch": 1, "state_dict": BMN({"temporal_scale": 16, "feat_dim": 8}).state_dict()}
    torch.save(state, str(own.folder / "network.pth"))
    process = own.main("--mode", "inference", "--pth_path", "network.pth", "--data_path", "foreign.safetensors")
    refused(process, evil, "rename it in the data")
    assert victim.read_text() == "mine"


def test_folders_and_files_whose_names_are_no_text(workshop):
    """Bytes that are no UTF-8, as an old file server or an archive leaves them."""
    own = os.fsdecode(b"caf\xe9 \xff")
    try:
        shutil.copytree(os.path.realpath(str(workshop.folder / "data")), str(workshop.folder / own))
    except OSError:
        pytest.skip("this disk has no such names")
    where = ("--data_path", own + "/activitynet_feature_cuhk", "--video_info",
             own + "/activitynet_annotations/video_info_new.csv", "--video_anno",
             own + "/activitynet_annotations/anet_anno_action.json")
    strict = {"PYTHONIOENCODING": "utf-8:strict", "LC_ALL": "C.UTF-8"}
    done = workshop.main("--mode", "full", "--train_epochs", 1, *where, "--checkpoint_path", own + "/checkpoint",
                         "--result_file", own + "/output/result.json", "--save_fig_path", own + "/output/a.jpg",
                         "--feature_cache", own + "/cache", **strict)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert os.path.isfile(str(workshop.folder / own / "output" / "report.html"))
    video = os.fsdecode(b"v_\xe9.csv")
    shutil.copy(str(features(workshop)[0]), str(workshop.folder / own / video))
    done = workshop.run("tools/predict.py", own + "/" + video, "--duration", 30, "--plot", own + "/plots",
                        "--checkpoint", own + "/checkpoint/BMN_best.pth.tar", "--output", own + "/out.json", **strict)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    refused(workshop.main("--mode", "inference", "--pth_path", own, **strict), "is a folder")
