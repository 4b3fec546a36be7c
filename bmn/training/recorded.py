"""Which options the network of a checkpoint has: what was recorded with it, what its tensors tell, what is given."""
from typing import Any, Dict, Optional

from bmn.errors import UserError
from bmn.layouts import LAYOUTS, checked_duration, same_network
from bmn.options import DEFAULTS, RECORDED_OPTIONS
from bmn.sampling import RATIO_TOLERANCE, sampling_differences, told_by_mask


def check_sampling(state: Dict[str, Any], model: Any) -> None:
    """Compare what the names and the sampling weights of others tell with ``model``: no shape shows it.

    Raises:
        UserError: they are of another network.
    """
    differences = sampling_differences(told(state), model)
    if state.get("origin") == "opentad" and model.layout != "opentad":
        differences = [("layout", "opentad", model.layout)]
    for name, there, here in differences:
        raise UserError("checkpoint %s is of a network with --%s %s, as its %s show, but here it is %s: give the same "
                        "value" % (state["path"], name, _layout_of(state, there) if name == "layout" else there,
                                   "sampling weights" if told(state) else "names", here))


def told(state: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """What the sampling weights in ``state`` tell: {option: value}; None where there are none, or of no known rule."""
    mask = state["state_dict"].get("sample_mask")
    return None if mask is None or mask.dim() != 2 else told_by_mask(mask.float().numpy())


def _layout_of(state, layout):
    """The name of a layout that sampling weights tell: of those with the same weights, the one that wrote this file."""
    return layout if layout == "reference" else state.get("origin", "reference2019")


def network_options(state: Dict[str, Any], given: Dict[str, Any]) -> Dict[str, Any]:
    """The options of the network in ``state``: from its tensors and options, else from ``given``, else the defaults.

    Args:
        state: what ``checkpoint.read`` returned.
        given: {option: value}; None means not given, and options that are not the network's are ignored.

    Raises:
        UserError: what is given contradicts the checkpoint, or must be given.
    """
    tensors, shown = state["state_dict"], told(state)
    known = {name: value for name, value in _recorded(state).items() if name in RECORDED_OPTIONS}
    if "x_1d_b.0.weight" in tensors and tensors["x_1d_b.0.weight"].dim() == 3:
        known["feat_dim"] = 4 * tensors["x_1d_b.0.weight"].shape[1]         # 4 groups
    if "x_3d_p.0.weight" in tensors and tensors["x_3d_p.0.weight"].dim() == 5:
        known["num_sample"] = tensors["x_3d_p.0.weight"].shape[2]
    if "sample_mask" in tensors and tensors["sample_mask"].dim() == 2:
        known["temporal_scale"] = len(tensors["sample_mask"])
    open_choices = ()
    if shown is not None:
        open_choices = [name for name in ("layout", "prop_boundary_ratio") if name not in known]
        known.update((name, shown[name]) for name in ("num_sample_perbin", "prop_boundary_ratio") if name not in known)
        known.setdefault("layout", _layout_of(state, shown["layout"]))
    if state.get("origin") == "opentad":
        known["layout"] = "opentad"
        given = dict(given, temporal_scale=given.get("temporal_scale") or given.get("window"))
        if not given["temporal_scale"]:
            raise UserError("checkpoint %s is OpenTAD's, which does not say T and D: give --temporal_scale and, where "
                            "dscale is lower than tscale in its configuration, --max_duration" % state["path"])
    for name in RECORDED_OPTIONS:
        if given.get(name) is None:
            continue
        if known.setdefault(name, given[name]) != given[name] and not (
                name in open_choices and _as_good(name, known[name], given[name])):
            raise UserError("--%s %s is given, but %s was made with %s: leave the option out"
                            % (name, given[name], state["path"], known[name]))
        known[name] = given[name]
    options = {name: known.get(name, DEFAULTS[name]) for name in RECORDED_OPTIONS}
    if options["window"] and "temporal_scale" not in known:
        options["temporal_scale"] = options["window"]
    return dict(options, max_duration=checked_duration(options["temporal_scale"], options["max_duration"]))


def _as_good(name, told, given):
    """Whether sampling weights that tell one value serve another one as well."""
    if name == "layout":
        return same_network(told, given) and given != "opentad"
    return abs(told - given) < RATIO_TOLERANCE


def check_options(state: Dict[str, Any], wanted: Dict[str, Any]) -> None:
    """Compare the options that a checkpoint was made with, because the shapes of its tensors do not show all of them.

    Args:
        state: what ``checkpoint.read`` returned; without "options" nothing is compared.
        wanted: {option: value}.

    Raises:
        UserError: the checkpoint was made with another value of one of the options.
    """
    options = _recorded(state)
    for name, value in wanted.items():
        if not isinstance(options.get(name, value), (bool, int, float, str)):
            raise UserError("checkpoint %s is damaged (its option %s is a %s): fetch it again or use another one"
                            % (state["path"], name, type(options[name]).__name__))
        if options.get(name, value) != value:
            raise UserError("checkpoint %s was made with --%s %s, but here it is %s: give the same value"
                            % (state["path"], name, options[name], value))


def _recorded(state):
    """The options that were stored with the network. Before there were layouts, every network had the reference's."""
    options = state.get("options")
    if not isinstance(options, dict) or not isinstance(options.get("temporal_scale"), int):
        return {}
    options = dict({"layout": "reference", "max_duration": 0, "window": 0, "window_subsample": 1}, **options)
    numbers = [options[name] for name in RECORDED_OPTIONS if name in options and name != "layout"]
    if options["layout"] not in list(LAYOUTS) or not all(isinstance(one, (int, float)) for one in numbers):
        raise UserError("checkpoint %s is damaged (its options are of another form): fetch it again or use another one"
                        % state["path"])
    if options["max_duration"] == options["temporal_scale"]:
        options["max_duration"] = 0
    return options
