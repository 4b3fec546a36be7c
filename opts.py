"""The command line: argparse over the table of options in bmn/options.py."""
import argparse
import difflib
import os
import sys
from typing import List, Optional, Sequence

from bmn.errors import UserError
from bmn.options import DATA_PATH_NAMES, DEFAULTS, GROUPS, OPTIONS, Option, Parser, with_defaults

POINTS = 10 ** 8    # sampled points of all proposals, N * K * T * T; a million at the defaults
FEW = 2 ** 14       # proposals whose points are at least held at once, however few there are


def parse_opt(argv: Optional[List[str]] = None,
              description: str = "BMN: temporal action proposals on Ascend NPUs, CUDA and CPU",
              more: Sequence[Option] = ()) -> argparse.Namespace:
    """Parse the command line (``sys.argv`` where ``argv`` is None) into a Namespace with every option.

    ``description`` heads the help of a tool that takes the same options, and ``more`` of its own.

    Raises:
        UserError: an unknown option, a value of the wrong type or range, options that contradict each other.
    """
    argv = sys.argv[1:] if argv is None else argv
    given, unknown = _parser(description, more).parse_known_args([_spelling(argument) for argument in argv])
    if unknown:
        close = difflib.get_close_matches(unknown[0].partition("=")[0], sorted("--" + name for name in OPTIONS), n=1)
        raise UserError("unknown option %s%s (python3 main.py --help lists all options)"
                        % (unknown[0], ", did you mean %s?" % close[0] if close else ""))
    given = {name: value[0] if isinstance(value, list) and len(value) == 1 else value
             for name, value in vars(given).items()}
    if given.get("window") and given.get("temporal_scale", given["window"]) != given["window"]:
        raise UserError("--window %d and --temporal_scale %d: the network sees a window, so leave --temporal_scale out"
                        % (given["window"], given["temporal_scale"]))
    opt = dict({option.name: option.default for option in more}, **with_defaults(given))
    opt.update((name, opt["data_path"]) for name in DATA_PATH_NAMES)    # whoever reads one of them sees the same folder
    check_together(opt)
    return argparse.Namespace(**opt)


def _parser(description, more):
    """A parser whose result has only the options that were given."""
    parser = Parser(prog=os.path.basename(sys.argv[0]), allow_abbrev=False, description=description,
                     argument_default=argparse.SUPPRESS)
    for title, options in [*GROUPS.items(), ("this tool alone", more)]:
        group = parser.add_argument_group(title)
        for option in options:
            how = option.check
            if option.name == "skip_missing":       # a bare --skip_missing is the natural way to say it
                how.update(nargs="?", const=1)
            if option.several:
                how.update(nargs="+")
            default = "none" if option.default == "" else option.default
            group.add_argument("--" + option.name, help="%s (default: %s)" % (option.help, default), **how)
    for alias in DATA_PATH_NAMES[1:]:
        parser.add_argument("--" + alias, help=argparse.SUPPRESS)
    return parser


def _spelling(argument):
    """``--opt-level=O1`` -> ``--opt_level=O1``: a multi-word option is accepted with - and with _."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def check_together(opt: dict) -> None:
    """Check a complete dict of options.

    Raises:
        UserError: options contradict each other.
    """
    if opt["finetune"] and opt["resume"]:
        raise UserError("--finetune 1 starts a new run from --pth_path, and --resume goes on with a run: give only one")
    if opt["soft_nms_low_thres"] > opt["soft_nms_high_thres"]:
        raise UserError("--soft_nms_low_thres %g is above --soft_nms_high_thres %g: swap them"
                        % (opt["soft_nms_low_thres"], opt["soft_nms_high_thres"]))
    if opt["num_sample"] * opt["num_sample_perbin"] * max(opt["temporal_scale"] ** 2, FEW) > POINTS:
        raise UserError("--num_sample %d, --num_sample_perbin %d and --temporal_scale %d give more points of proposals "
                        "than a machine can hold: lower one of them"
                        % (opt["num_sample"], opt["num_sample_perbin"], opt["temporal_scale"]))
    of_windows = [name for name in ("feature_stride", "window_subsample") if opt[name] != DEFAULTS[name]]
    if of_windows and not opt["window"]:
        raise UserError("--%s is for features at their own rate: give --window with it, or leave it out"
                        % of_windows[0])
    if opt["feature_snippet"] and opt["feature_stride"].endswith("f") != opt["feature_snippet"].endswith("f"):
        raise UserError("--feature_snippet %s needs --feature_stride in the same unit, and it is '%s': give both in "
                        "seconds, or both in frames" % (opt["feature_snippet"], opt["feature_stride"]))
    if opt["onnx"] and opt["mode"] != "inference":
        raise UserError("--onnx works only with --mode inference, but this is --mode %s" % opt["mode"])
