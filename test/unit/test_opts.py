"""The command line: names, defaults, spellings, and one sentence for each mistake."""
import argparse
import contextlib
import importlib
import json
import os
import sys

import pytest
from conftest import ROOT

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


TOOLS = [name[:-3] for name in sorted(os.listdir(os.path.join(ROOT, "tools"))) if name.endswith(".py")]
TOOLS.remove("check_data")      # it has main.py's options


@pytest.mark.parametrize("name", TOOLS)
def test_the_help_of_a_tool_states_every_default(monkeypatch, name):
    if name == "extract_features" and sys.version_info < (3, 10):
        pytest.skip("decoding videos needs a newer Python")
    tool, parsers = importlib.import_module(name), []
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda parser, *_: parsers.append(parser) or sys.exit())
    with contextlib.suppress(SystemExit):
        tool.parse_arguments()
    for action in parsers[0]._actions:
        if action.option_strings and not action.required and action.default not in (None, False, argparse.SUPPRESS):
            assert "(default: " in action.help and "--pth_path" not in action.help
            told = (action.help % vars(action)).split("(default: ")[1].split(")")[0]
            shown = action.default if isinstance(action.default, (list, tuple)) else [action.default]
            assert told == " ".join(map(str, shown)) or (action.default == 0 and "the columns of" in told)


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
    (["stray"], "stray"), (["--batch", "3"], "--batch"), (["--result_file="], "--result_file"),
    (["--save_fig_path", " "], "--save_fig_path"), (["--checkpoint_path="], "--checkpoint_path"),
    (["--output_dir="], "--output_dir"), (["--prop_boundary_ratio", "1e4"], "--prop_boundary_ratio"),
    (["--feat_dim", "99999999999999999999"], "--feat_dim"), (["--num_sample", "99999999999999999999"], "--num_sample"),
    (["--num_sample_perbin", "1000000"], "--num_sample_perbin"), (["--num_sample_perbin", "1024"], "points"),
    (["--temporal_scale", "4097"], "--temporal_scale"), (["--temporal_scale", "4096"], "points"),
    (["--patience", "0"], "--patience"), (["--log_seconds", "0"], "--log_seconds"), (["--save_every", "-1"], "0"),
    (["--soft_nms_low_thres", "0.95"], "--soft_nms_high_thres"),
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


@pytest.mark.parametrize("argv, value", [
    (["--training_lr", "1e-30"], 1e-30), (["--weight_decay", "0"], 0), (["--train_epochs", "1"], 1),
    (["--batch_size", "1"], 1), (["--step_size", "1000000000"], 10 ** 9), (["--step_gamma", "1"], 1),
    (["--seed", "0"], 0), (["--seed", "4294967295"], 2 ** 32 - 1), (["--temporal_scale", "2"], 2),
    (["--temporal_scale", "1000"], 1000), (["--feat_dim", "1"], 1), (["--feat_dim", "65536"], 65536),
    (["--num_workers", "-1"], -1), (["--num_workers", "0"], 0), (["--num_workers", "99999999999999999999"], None),
    (["--num_sample", "1"], 1), (["--num_sample_perbin", "1"], 1), (["--prop_boundary_ratio", "0"], 0),
    (["--prop_boundary_ratio", "16"], 16), (["--post_process_thread", "1"], 1), (["--soft_nms_alpha", "1e-9"], 1e-9),
    (["--soft_nms_low_thres", "0"], 0), (["--soft_nms_high_thres", "1"], 1), (["--loss_scale", "-1"], -1),
    (["--loss_scale", "1"], 1), (["--save_csv", "0"], 0), (["--skip_missing"], 1), (["--skip_missing", "0"], 0),
    (["--local_rank", "0"], 0), (["--world_size", "1"], 1), (["--patience", "1"], 1), (["--log_seconds", "1"], 1),
    (["--save_every", "0"], 0), (["--save_every", "0.5"], 0.5), (["--ground_truth", ""], ""), (["--onnx="], ""),
    (["--resume="], ""), (["--profile="], ""), (["--result_file", "a b"], "a b")])
def test_the_least_and_the_most_of_every_option_is_accepted(argv, value):
    name = argv[0].partition("=")[0][2:]
    found = vars(parse_opt(argv))[name]
    assert found == (int(argv[1]) if value is None else value)


def test_output_dir_moves_every_result_that_is_not_given():
    opt = parse_opt(["--output_dir", "runs/7"])
    assert opt.result_file == os.path.join("runs/7", "result_proposal.json")
    assert opt.save_fig_path == os.path.join("runs/7", "evaluation_result.jpg")
    opt = parse_opt(["--output_dir", "runs/7", "--result_file", "a/b.json"])
    assert opt.result_file == "a/b.json" and opt.save_fig_path == os.path.join("runs/7", "evaluation_result.jpg")


def test_a_window_is_what_the_network_sees():
    opt = parse_opt(["--window", "128", "--max_duration", "64"])
    assert (opt.window, opt.temporal_scale, opt.max_duration, opt.kept) == (128, 128, 64, 100)
    assert parse_opt(["--window", "32", "--temporal_scale", "32"]).temporal_scale == 32
    with pytest.raises(UserError, match=r"--window 128 and --temporal_scale 100: .*leave --temporal_scale out"):
        parse_opt(["--window", "128", "--temporal_scale", "100"])


@pytest.mark.parametrize("stride,holds", [
    ("0.2", 1), ("0.2s", 1), ("5f", 1), ("1e-3", 1), ("0", 0), ("-1", 0), ("f", 0), ("nan", 0), ("inf", 0),
    ("5 frames", 0), ("5fs", 0)])
def test_a_stride_is_in_seconds_or_frames(stride, holds):
    if holds:
        assert parse_opt(["--feature_stride", stride, "--window", "8"]).feature_stride == stride
        with pytest.raises(UserError, match="--feature_stride is for features at their own rate: give --window"):
            parse_opt(["--feature_stride", stride])
        return
    with pytest.raises(UserError, match="is neither seconds, such as"):
        parse_opt(["--feature_stride=" + stride])


@pytest.mark.parametrize("argv", [["--feature_snippet", "16f"], ["--feature_snippet", "16f", "--feature_stride", "0.2"],
                                  ["--feature_snippet", "0.5", "--feature_stride", "4f"]])
def test_a_snippet_has_the_unit_of_the_stride(argv):
    with pytest.raises(UserError, match=r"--feature_snippet .* needs --feature_stride in the same unit"):
        parse_opt([*argv, "--window", "8"])
    assert parse_opt(["--feature_snippet", "16f", "--feature_stride", "4f", "--window", "8"]).feature_snippet == "16f"
