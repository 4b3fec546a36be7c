"""The command line: every option, its type, what it must satisfy, and one sentence when it does not."""
import argparse
import difflib
import os
import sys

from bmn.defaults import DATA_PATH_NAMES, DEFAULTS, with_defaults
from bmn.errors import UserError

MODES = ("train", "inference", "full", "detection")


def _number(convert, holds, wanted):
    """An argparse type: ``convert`` the text, and insist that the value ``holds``."""
    def parse(text):
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not holds(value):
            raise argparse.ArgumentTypeError("%r is not %s" % (text, wanted))
        return value
    return parse


COUNT = _number(int, lambda v: v >= 1, "a whole number of at least 1")
INDEX = _number(int, lambda v: v >= 0, "a whole number of at least 0")
SEED = _number(int, lambda v: 0 <= v < 2 ** 32, "a whole number from 0 to 4294967295")
FLAG = _number(int, lambda v: v in (0, 1), "0 or 1")
POSITIVE = _number(float, lambda v: 0 < v < float("inf"), "a number above 0")
NOT_NEGATIVE = _number(float, lambda v: 0 <= v < float("inf"), "a number of at least 0")
SHARE = _number(float, lambda v: 0 <= v <= 1, "a number from 0 to 1")
LOSS_SCALE = _number(float, lambda v: v == -1 or 0 < v < float("inf"), "a number above 0, or -1 for dynamic scaling")
WORKERS = _number(int, lambda v: v >= -1, "a whole number of at least 0, or -1 for as many as suit the machine")

# name, type or choices, help
OPTIONS = {
    "what to do": (
        ("mode", MODES, "train; inference: proposals of the validation videos and AR@AN; full: both; "
                        "detection: proposals times classes (--classification_file) and mAP"),
        ("finetune", FLAG, "1: start from the network in --pth_path"),
        ("checkpoint_path", str, "folder of BMN_checkpoint.pth.tar, BMN_best.pth.tar, metrics.jsonl and opts.json"),
        ("pth_path", str, "checkpoint for --finetune 1 and for inference"),
        ("resume", str, "go on from this checkpoint, or 'auto': the last one of --checkpoint_path where there is one"),
    ),
    "optimisation": (
        ("training_lr", POSITIVE, "learning rate of Adam"),
        ("weight_decay", NOT_NEGATIVE, "L2 term of Adam"),
        ("train_epochs", COUNT, "number of epochs"),
        ("batch_size", COUNT, "videos a step, over all ranks together"),
        ("step_size", COUNT, "epochs between two reductions of the learning rate"),
        ("step_gamma", POSITIVE, "factor of such a reduction"),
        ("seed", SEED, "seed of the weights, of the order of the videos and of the sampling in the loss"),
    ),
    "data": (
        ("video_info", str, "CSV file that lists the videos and their subset"),
        ("video_anno", str, "JSON file of durations and annotated segments"),
        ("data_path", str, "folder that holds csv_mean_<T>/<video>.csv (also --data, --feature_path)"),
        ("temporal_scale", _number(int, lambda v: v >= 2, "a whole number of at least 2"),
         "T, positions that a video is rescaled to"),
        ("feat_dim", COUNT, "C, numbers of a feature"),
        ("num_workers", WORKERS, "processes that load data, of each rank; -1: as many as suit the machine"),
        ("feature_cache", str, "auto, off, or a folder: where features are packed once for fast reading"),
        ("feature_cache_dtype", ("float32", "float16"), "precision of the packed features"),
        ("skip_missing", FLAG, "go on without the videos whose features are missing"),
    ),
    "boundary matching": (
        ("num_sample", COUNT, "N, sampled points of a proposal"),
        ("num_sample_perbin", COUNT, "K, points averaged into one of them"),
        ("prop_boundary_ratio", NOT_NEGATIVE, "how far a proposal is widened on either side, as a share of its length"),
    ),
    "proposals and their evaluation": (
        ("post_process_thread", COUNT, "processes of the post-processing"),
        ("soft_nms_alpha", POSITIVE, "width of the Gaussian decay"),
        ("soft_nms_low_thres", SHARE, "IoU above which the shortest proposals suppress others"),
        ("soft_nms_high_thres", SHARE, "the same for proposals as long as the video"),
        ("result_file", str, "JSON file of the proposals"),
        ("save_fig_path", str, "picture of the AR-AN curve"),
        ("save_csv", FLAG, "1: also write output/BMN_results/<video>.csv"),
        ("ground_truth", str, "ground truth in ActivityNet's format; else Evaluation/data/activity_net_1_3_new.json "
                              "where it exists, else derived from --video_info and --video_anno"),
        ("classification_file", str, "classes of whole videos, for --mode detection"),
        ("onnx", str, "run inference on this ONNX file instead of a checkpoint"),
    ),
    "machine": (
        ("device", ("auto", "npu", "cuda", "cpu"), "auto: the first of npu, cuda and cpu that is there"),
        ("DeviceID", str, "card, or cards separated by commas, one for each process of this machine"),
        ("is_distributed", FLAG, "1: one of several processes (torchrun needs neither this nor the next two)"),
        ("local_rank", INDEX, "number of this process on its machine"),
        ("world_size", COUNT, "number of processes"),
        ("opt_level", ("O0", "O1", "O2"), "O0: float32; O1: mixed precision; O2: apex only"),
        ("loss_scale", LOSS_SCALE, "factor on the loss in float16, -1: dynamic"),
        ("profile", str, "folder for a trace of a few training steps"),
    ),
}
TYPES = {name: kind for options in OPTIONS.values() for name, kind, _ in options}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError("%s (python3 main.py --help lists all options)" % message)


def _spelling(argument):
    """``--opt-level=O1`` -> ``--opt_level=O1``: a multi-word option is accepted with - and with _."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _parser(description):
    parser = _Parser(prog=os.path.basename(sys.argv[0]), allow_abbrev=False, description=description,
                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for name, kind, text in options:
            how = {"choices": kind} if isinstance(kind, tuple) else {"type": kind}
            if name == "skip_missing":      # a bare --skip_missing is the natural way to say it
                how.update(nargs="?", const=1)
            default = None if name in ("data_path", "pth_path") else DEFAULTS[name]
            group.add_argument("--" + name, default=default, help=text, **how)
    for alias in DATA_PATH_NAMES[1:]:
        parser.add_argument("--" + alias, help=argparse.SUPPRESS)
    return parser


def parse_opt(argv=None, description="BMN: temporal action proposals on Ascend NPUs, CUDA and CPU"):
    """Parse the command line (``sys.argv`` where ``argv`` is None) into a Namespace with every option of DEFAULTS.

    ``description`` heads the help of a tool that takes the same options.

    Raises:
        UserError: an unknown option, a value of the wrong type or range, options that contradict each other.
    """
    argv = sys.argv[1:] if argv is None else argv
    given, unknown = _parser(description).parse_known_args([_spelling(argument) for argument in argv])
    if unknown:
        known = sorted("--" + name for options in OPTIONS.values() for name, _, _ in options)
        close = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
        raise UserError("unknown option %s%s (python3 main.py --help lists all options)"
                        % (unknown[0], ", did you mean %s?" % close[0] if close else ""))
    opt = with_defaults({name: value for name, value in vars(given).items() if value is not None})
    if given.pth_path is None:              # inference reads the best of its own run unless told otherwise
        opt["pth_path"] = os.path.join(opt["checkpoint_path"], "BMN_best.pth.tar")
    for alias in DATA_PATH_NAMES:           # whoever reads one of the three names sees the same folder
        opt[alias] = opt["data_path"]
    check_together(opt)
    return argparse.Namespace(**opt)


def check_together(opt):
    """UserError where options contradict each other or name files that are not there. ``opt``: complete dict."""
    if opt["finetune"] and opt["resume"]:
        raise UserError("--finetune 1 starts anew from --pth_path and --resume goes on with a run: give one of them")
    if opt["soft_nms_low_thres"] > opt["soft_nms_high_thres"]:
        raise UserError("--soft_nms_low_thres %g is above --soft_nms_high_thres %g: exchange them"
                        % (opt["soft_nms_low_thres"], opt["soft_nms_high_thres"]))
    if opt["mode"] == "detection" and not opt["classification_file"]:
        raise UserError("--mode detection needs --classification_file: the classes of whole videos")
    if opt["onnx"] and opt["mode"] != "inference":
        raise UserError("--onnx serves --mode inference, found --mode %s" % opt["mode"])
    for name in ("onnx", "classification_file", "ground_truth"):
        if opt[name] and not os.path.isfile(opt[name]):
            raise UserError("--%s %s does not exist: check the path" % (name, opt[name]))
    if opt["finetune"] and opt["mode"] in ("train", "full") and not os.path.isfile(opt["pth_path"]):
        raise UserError("--pth_path %s does not exist: --finetune 1 starts from that checkpoint" % opt["pth_path"])
