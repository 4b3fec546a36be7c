"""What a checkpoint must hold so that a run can go on from it: every part is checked, whoever wrote the file."""
import math
from typing import Any, Dict, List, Optional

import torch

from bmn.errors import UserError
from bmn.options import INPUT_OPTIONS, NETWORK_OPTIONS
from bmn.training import recorded
from bmn.values import counted

PARTS = {"optimizer": dict, "scheduler": dict, "precision": dict, "best_loss": float, "options": dict, "metrics": list,
         "random_states": list}
CANNOT_CHANGE = ("training_lr", "weight_decay", "step_size", "step_gamma")
NEWER = ("layout", "max_duration")              # version 1.0 did not record them, and had no choice
WITHIN_AN_EPOCH = ("seed", "batch_size")        # these decide which videos the rest of an epoch has
LOSSES = 4                                      # numbers of a row of losses


def check_parts(state: Dict[str, Any]) -> None:
    """Check that a checkpoint, as ``checkpoint.read`` returned it, holds the parts of a run.

    Raises:
        UserError: it holds a network but no run, or a part is of another type.
    """
    missing = [name for name in PARTS if name not in state]
    if missing:
        raise UserError("checkpoint %s holds a network but no state of a run ('%s' is missing): start from it with "
                        "--finetune 1 --pth_path instead of --resume" % (state["path"], missing[0]))
    for name, kind in PARTS.items():
        _insist(isinstance(state[name], kind), state, "its %s is a %s" % (name, type(state[name]).__name__))
    absent = [name for name in NETWORK_OPTIONS + CANNOT_CHANGE + WITHIN_AN_EPOCH
              if name not in state["options"] and name not in NEWER]
    _insist(not absent, state, "its options lack %s" % ", ".join(absent))


def check_values(state: Dict[str, Any], optimizer: torch.optim.Optimizer, options: dict) -> None:
    """Check every value of those parts.

    Args:
        state: what ``checkpoint.read`` returned.
        optimizer: the new run's, with its parameters; nothing has been loaded into it yet.
        options: the options of this run.

    Raises:
        UserError: the run had other options, or a value is not one that a run of ours writes.
    """
    recorded.check_options(state, {name: options[name] for name in CANNOT_CHANGE + INPUT_OPTIONS})
    _check_metrics(state)
    _check_optimizer(state, optimizer)
    _check_scheduler(state, options)
    _check_precision(state)
    for one in state["random_states"]:
        _insist(isinstance(one, dict) and "cpu" in one and all(
            isinstance(part, torch.Tensor) and part.dtype == torch.uint8 for part in one.values()),
            state, "a state of the random numbers is of another kind")
    _insist(state["random_states"], state, "it has no states of the random numbers")
    _insist(str(state.get("contraction", "auto")) in ("auto", "bags", "dense"), state, "its contraction is unknown")
    if state.get("within_epoch") is not None:
        _check_within(state)
        recorded.check_options(state, {name: options[name] for name in WITHIN_AN_EPOCH})


def best_epoch(metrics: List[dict]) -> Optional[int]:
    """The epoch of the lowest validation loss, the first of equals; None where no epoch is done.

    Without labelled validation videos it is the last one.
    """
    if metrics and metrics[-1].get("unlabelled"):
        return len(metrics) - 1
    losses = [one["validation"]["total"] for one in metrics]
    return losses.index(min(losses)) if losses else None


def _insist(holds, state, what):
    if not holds:
        raise UserError("checkpoint %s cannot be resumed, because %s: use another one, or start from its network with "
                        "--finetune 1 --pth_path" % (state["path"], what))


def _is_count(value):
    return type(value) is int and value >= 0


def _is_finite(value):
    return type(value) in (int, float) and math.isfinite(value)


def _check_metrics(state):
    metrics = state["metrics"]
    _insist(_is_count(state["epoch"]) and len(metrics) == state["epoch"], state,
            "it counts %s epochs and has the records of %d" % (state["epoch"], len(metrics)))
    for number, one in enumerate(metrics):
        losses = [one.get(name) if isinstance(one, dict) else None for name in ("train", "validation")]
        _insist(all(isinstance(part, dict) and "total" in part and all(map(_is_finite, part.values()))
                    for part in losses) and one.get("epoch") == number,
                state, "the record of epoch %d is not one of ours" % number)
    best = metrics[best_epoch(metrics)]["validation"]["total"] if metrics else math.inf
    _insist(state["best_loss"] == best, state,
            "its lowest validation loss is %r, but the lowest in its records is %r" % (state["best_loss"], best))


def _check_optimizer(state, optimizer):
    found, ours = state["optimizer"], optimizer.state_dict()
    groups = found.get("param_groups")
    _insist(isinstance(found.get("state"), dict) and isinstance(groups, list) and len(groups) == 1
            and isinstance(groups[0], dict), state, "its optimizer is not Adam as it is used here")
    group, wanted = groups[0], ours["param_groups"][0]
    for name in ("betas", "eps", "weight_decay", "amsgrad"):
        there = group.get(name)
        _insist((list(there) if isinstance(there, (list, tuple)) else there) ==
                (list(wanted[name]) if isinstance(wanted[name], (list, tuple)) else wanted[name]),
                state, "its optimizer has %s = %.60r, and here it is %.60r" % (name, there, wanted[name]))
    for name in set(group) & {"maximize"}:
        _insist(not group[name], state, "its optimizer goes uphill")
    parameters = [parameter for one in optimizer.param_groups for parameter in one["params"]]
    moments, names = found["state"], group.get("params")       # the names are numbers: 0, 1, 2 since PyTorch 1.6
    _insist(isinstance(names, list) and all(map(_is_count, names)) and len(set(names)) == len(parameters) == len(names)
            and set(moments) in (set(), set(names)), state,
            "its optimizer has moments of %s, and there are %d" % (counted(len(moments), "weight"), len(parameters)))
    for number, (name, parameter) in enumerate(zip(names, parameters)):
        if moments:
            _check_moments(state, number, moments[name], parameter)


def _check_moments(state, number, moments, parameter):
    where = "the moments of its weight %d" % number
    _insist(isinstance(moments, dict) and _is_count(moments.get("step")), state, where + " have no number of steps")
    for name in ("exp_avg", "exp_avg_sq"):
        one = moments.get(name)
        _insist(isinstance(one, torch.Tensor) and one.shape == parameter.shape and one.dtype.is_floating_point, state,
                where + " are of another shape or type")
        _insist(bool(torch.isfinite(one).all()) and (name == "exp_avg" or bool((one >= 0).all())), state,
                where + " hold a number that is not finite, or a square below 0")


def _check_scheduler(state, options):
    found, epochs = state["scheduler"], state["epoch"]
    wanted = {"last_epoch": epochs, "step_size": options["step_size"], "gamma": options["step_gamma"],
              "base_lrs": [options["training_lr"]]}
    for name, value in wanted.items():
        _insist(found.get(name) == value, state,
                "its scheduler has %s = %.60r, and a run of ours has %r" % (name, found.get(name), value))
    rate = state["optimizer"]["param_groups"][0].get("lr")
    expected = options["training_lr"] * options["step_gamma"] ** (epochs // options["step_size"])
    _insist(_is_finite(rate) and math.isclose(rate, expected, rel_tol=1e-9), state,
            "its learning rate is %.60r, and after %s it is %r" % (rate, counted(epochs, "epoch"), expected))


def _check_precision(state):
    found = state["precision"]
    kind = found.get("kind")
    _insist(kind in ("none", "scaler", "apex") and _is_count(found.get("skipped")), state,
            "its precision is of an unknown kind")
    scale = found["scaler"].get("scale") if isinstance(found.get("scaler"), dict) else None
    _insist(kind != "scaler" or (_is_finite(scale) and scale > 0), state, "its loss scale is %.60r" % (scale,))


def _check_within(state):
    within = state["within_epoch"]
    _insist(isinstance(within, dict) and _is_count(within.get("steps")) and within["steps"] > 0
            and isinstance(within.get("timing"), dict) and all(map(_is_finite, within["timing"].values()))
            and {"samples", "iterations", "seconds", "data_time", "skipped"} <= set(within["timing"])
            and type(within.get("videos")) is str and isinstance(within.get("losses"), list)
            and len(within["losses"]) == len(state["random_states"]), state, "its record of an epoch begun is damaged")
    for rows in within["losses"]:
        _insist(isinstance(rows, torch.Tensor) and rows.shape == (within["steps"], LOSSES)
                and bool(torch.isfinite(rows).all()), state, "the losses of the epoch begun are damaged")
