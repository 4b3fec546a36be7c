"""The command line: names, defaults, spellings, and one sentence for each mistake."""
import json
import os

import pytest

from bmn.errors import UserError
from bmn.options import OPTIONS, with_defaults
from opts import parse_opt


def test_defaults_of_the_ascend_port():
    opt = vars(parse_opt([]))
    port = {"mode": "train", "finetune": 0, "checkpoint_path": "./checkpoint",
            "pth_path": "./checkpoint/BMN_best.pth.tar", "training_lr": 0.001, "weight_decay": 1e-4, "train_epochs": 10,
            "batch_size": 8, "step_size": 7, "step_gamma": 0.1, "temporal_scale": 100, "num_sample": 32,
            "video_info": "data/activitynet_annotations/video_info_new.csv",
            "video_anno": "data/activitynet_annotations/anet_anno_action.json",
            "data_path": "data/activitynet_feature_cuhk/", "data": "data/activitynet_feature_cuhk/",
            "feature_path": "data/activitynet_feature_cuhk/", "num_sample_perbin": 3, "prop_boundary_ratio": 0.5,
            "feat_dim": 400, "post_process_thread": 8, "soft_nms_alpha": 0.4, "soft_nms_low_thres": 0.5,
            "soft_nms_high_thres": 0.9, "result_file": "./output/result_proposal.json",
            "save_fig_path": "./output/evaluation_result.jpg", "is_distributed": 0, "local_rank": 0, "DeviceID": "0",
            "world_size": 1, "loss_scale": 128, "opt_level": "O1"}
    assert {name: opt[name] for name in port} == port
    json.dumps(opt)                         # as opts.json is written


@pytest.mark.parametrize("name", OPTIONS)
def test_every_default_is_a_value_that_the_option_takes(name):
    default = OPTIONS[name].default
    if default != "":
        assert vars(parse_opt(["--%s=%s" % (name, default)] + ["--classification_file=x"]))[name] == default


def test_the_help_states_every_default(capsys):
    with pytest.raises(SystemExit):
        parse_opt(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for option in OPTIONS.values():
        assert "%s (default: %s)" % (option.help, "none" if option.default == "" else option.default) in text


@pytest.mark.parametrize("argv", [["--opt-level", "O0"], ["--opt_level", "O0"], ["--opt-level=O0"], ["--opt_level=O0"]])
def test_an_option_may_be_spelled_with_dashes_or_underscores(argv):
    assert parse_opt(argv).opt_level == "O0"


def test_local_rank_as_old_launchers_pass_it():
    assert parse_opt(["--local-rank=3"]).local_rank == parse_opt(["--local_rank", "3"]).local_rank == 3


@pytest.mark.parametrize("argv,folder", [
    (["--data", "a", "--data_path", "b", "--feature_path", "c"], "b"), (["--feature_path=c", "--data=a"], "a"),
    (["--feature-path", "c"], "c")])
def test_data_path_comes_before_data_and_data_before_feature_path(argv, folder):
    opt = parse_opt(argv)
    assert opt.data_path == opt.data == opt.feature_path == folder


def test_values_with_dashes_and_equals_signs_stay_as_they_are():
    assert parse_opt(["--result_file=out-put/a=b.json"]).result_file == "out-put/a=b.json"


def test_inference_reads_the_best_checkpoint_of_checkpoint_path():
    assert parse_opt(["--checkpoint_path", "runs/7"]).pth_path == os.path.join("runs/7", "BMN_best.pth.tar")
    assert parse_opt(["--checkpoint_path", "runs/7", "--pth_path", "x.tar"]).pth_path == "x.tar"


@pytest.mark.parametrize("argv,word", [
    (["--bach_size", "3"], "--batch_size"), (["--mode", "tain"], "tain"), (["--batch_size", "0"], "--batch_size"),
    (["--batch_size", "many"], "many"), (["--training_lr", "nan"], "--training_lr"),
    (["--training_lr", "inf"], "--training_lr"), (["--loss_scale", "0"], "--loss_scale"),
    (["--opt_level", "O3"], "O3"), (["--save_csv", "2"], "0 or 1"),
    (["--seed", "4294967296"], "--seed"), (["--temporal_scale", "1"], "--temporal_scale"),
    (["stray"], "stray"), (["--soft_nms_low_thres", "0.95"], "--soft_nms_high_thres"),
    (["--protocol", "kinetics"], "--protocol"), (["--onnx", "nowhere.onnx"], "--mode train"),
    (["--training_subset", " "], "--training_subset"), (["--classes", "0"], "--classes"),
    (["--finetune", "1", "--resume", "auto"], "--resume")])
def test_a_mistake_is_reported_in_one_sentence(argv, word):
    with pytest.raises(UserError) as error:
        parse_opt(argv)
    assert word in str(error.value) and "\n" not in str(error.value)


def test_options_of_the_reference_are_completed():
    opt = with_defaults({"mode": "train", "feature_path": "features/", "temporal_scale": 16})
    assert opt["data_path"] == "features/" and opt["temporal_scale"] == 16 and opt["seed"] == 0
    assert with_defaults({})["data_path"] != "features/" and opt["pth_path"] == "./checkpoint/BMN_best.pth.tar"
