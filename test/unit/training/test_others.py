"""Networks as other programs store them: wrappers, prefixes, averaged weights, names, layouts."""
import collections
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from oracles import by_duration, network_by_definition, sampling_weights_by_definition
from test_checkpoint import SMALL, load_network, refusal, same
from torch.nn import functional as F

from bmn.errors import UserError
from bmn.options import NETWORK_OPTIONS
from bmn.sampling import whole_mask
from bmn.training import checkpoint, others, recorded
from bmn.training.others import OPENTAD
from models import BMN


@pytest.fixture(scope="module")
def tensors():
    torch.manual_seed(3)
    return BMN(SMALL).state_dict()


def mask(layout="mmaction2", bins=3, ratio=0.5, scale=8, samples=4):
    return torch.from_numpy(whole_mask(scale, samples, bins, ratio, layout)).view(scale, -1)


def read(tmp_path, content, **how):
    torch.save(content, str(tmp_path / "x.pth"))
    return checkpoint.read(str(tmp_path / "x.pth"), **how)


# Wrappers and prefixes

@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "model.", "model.module.", "detector.bmn.net."])
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "net", "network", None])
def test_prefixes_and_wrappers_are_taken_off(tmp_path, tensors, prefix, wrapper):
    named = OrderedDict((prefix + name, tensor) for name, tensor in tensors.items())
    content = {wrapper: named, "epoch": 4, "step": torch.tensor(7)} if wrapper else named
    state = read(tmp_path, content)
    assert same(state["state_dict"], tensors) and state["epoch"] == (4 if wrapper else 0)
    assert same(load_network(str(tmp_path / "x.pth"), BMN(SMALL))["state_dict"], tensors)


def test_a_wrapper_in_a_wrapper_and_counters_are_understood(tmp_path, tensors):
    averaged = OrderedDict(("module." + name, tensor) for name, tensor in tensors.items())
    averaged["n_averaged"] = torch.tensor(100)              # as torch.optim.swa_utils has it
    assert same(read(tmp_path, {"model": {"state_dict": averaged}})["state_dict"], tensors)


def test_two_networks_in_one_file_are_refused(tmp_path, tensors):
    torch.save({"model": tensors, "net": tensors}, str(tmp_path / "x.pth"))
    assert "holds several networks (model, net): keep one" in refusal(checkpoint.read, str(tmp_path / "x.pth"))


def test_a_name_without_the_prefix_is_unknown(tmp_path, tensors):
    named = OrderedDict(("module." + name, tensor) for name, tensor in tensors.items())
    torch.save(dict(named, other=torch.zeros(1)), str(tmp_path / "x.pth"))
    assert "has the unknown other" in refusal(load_network, str(tmp_path / "x.pth"), BMN(SMALL))


# Averaged weights

@pytest.mark.parametrize("key", ["state_dict_ema", "ema"])
def test_averaged_weights_are_offered_and_taken(tmp_path, tensors, key):
    averaged = OrderedDict(("module." + name, tensor + 1) for name, tensor in tensors.items())
    content = {"epoch": 2, "state_dict": tensors, key: averaged}
    state = read(tmp_path, content)
    assert same(state["state_dict"], tensors)
    remark, = checkpoint.remarks(state)
    assert "the weights of the last step are taken" in remark and "--ema 1" in remark
    state = read(tmp_path, content, ema=True)
    assert all(torch.equal(state["state_dict"][name], tensor + 1) for name, tensor in tensors.items())
    assert ["averaged (EMA) weights are taken" in line for line in checkpoint.remarks(state)] == [True]
    assert key not in state         # another copy of the network


def test_averaged_weights_that_are_not_there_are_refused(tmp_path, tensors):
    torch.save({"epoch": 2, "state_dict": tensors}, str(tmp_path / "x.pth"))
    assert "has no averaged (EMA) weights: leave out --ema 1" in refusal(
        checkpoint.read, str(tmp_path / "x.pth"), True)


# Odd tensors

def test_tensors_of_other_dimensions_and_without_values_are_refused(tmp_path, tensors):
    for name in tensors:
        for odd in (torch.zeros(()), torch.zeros(3), torch.zeros(2, 0)):
            torch.save(dict(tensors, **{name: odd}), str(tmp_path / "x.pth"))
            assert "is of another network: %s is" % name in refusal(load_network, str(tmp_path / "x.pth"), BMN(SMALL))
            recorded.network_options(checkpoint.read(str(tmp_path / "x.pth")), {})
    for odd in (torch.zeros(()), torch.zeros(8), torch.zeros(0, 5), torch.zeros(2, 2, 2)):
        torch.save(dict(tensors, sample_mask=odd), str(tmp_path / "x.pth"))
        assert "sample_mask is" in refusal(load_network, str(tmp_path / "x.pth"), BMN(SMALL))
    try:
        torch.save(dict(tensors, **{"x_1d_p.0.bias": torch.zeros(256, device="meta")}), str(tmp_path / "x.pth"))
    except RuntimeError:
        return      # this PyTorch has no such tensors, or cannot store them
    refusal(load_network, str(tmp_path / "x.pth"), BMN(SMALL))


def test_paddlevideo_is_named(tmp_path):
    arrays = {"b_conv1.weight": np.zeros(3, np.float32), "p_conv2d4.bias": np.zeros(2, np.float32)}
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps(arrays, 2))
    assert "is PaddleVideo's BMN, which is another network" in refusal(checkpoint.read, str(tmp_path / "x.pdparams"))


# Layouts

@pytest.mark.parametrize("half", [False, True])
def test_a_network_by_duration_is_not_served_as_one_of_today(tmp_path, tensors, half):
    weights = mask().half() if half else mask()
    state = read(tmp_path, {"meta": {}, "state_dict": dict(tensors, sample_mask=weights, bm_mask=torch.ones(8, 8))})
    sentence = refusal(checkpoint.put_network, state, BMN(SMALL))
    assert "--layout mmaction2, as its sampling weights show, but here it is reference" in sentence
    options = recorded.network_options(state, {})
    assert options == dict(SMALL, layout="mmaction2", max_duration=0, window=0, window_subsample=1)
    model = BMN(options)
    checkpoint.put_network(state, model)
    assert same(model.state_dict(), tensors)
    assert recorded.network_options(state, {"layout": "reference2019"})["layout"] == "reference2019"
    for given in ("reference", "opentad"):
        assert "--layout %s is given, but" % given in refusal(recorded.network_options, state, {"layout": given})
    del state["origin"]
    assert recorded.network_options(state, {})["layout"] == "reference2019"


@pytest.mark.parametrize("value", ["8", None, [8]])
@pytest.mark.parametrize("name", NETWORK_OPTIONS)
def test_recorded_options_of_another_form_are_refused(tmp_path, tensors, name, value):
    state = read(tmp_path, {"epoch": 1, "state_dict": tensors, "options": dict(SMALL)})
    state["options"] = dict(SMALL, **{name: value})
    if name == "temporal_scale":        # a record of another program, which says nothing of ours
        recorded.check_options(state, SMALL)
    else:
        assert "is damaged (its options are of another form)" in refusal(recorded.check_options, state, SMALL)


@pytest.mark.parametrize(("name", "there"), [("num_sample_perbin", 2), ("prop_boundary_ratio", 0.25)])
def test_sampling_weights_tell_the_options_that_no_shape_shows(tmp_path, tensors, name, there):
    bins, ratio = (there, 0.5) if name == "num_sample_perbin" else (3, there)
    state = read(tmp_path, {"epoch": 1, "state_dict": dict(tensors, sample_mask=mask("reference", bins, ratio))})
    assert "--%s %s, as its sampling weights show" % (name, there) in refusal(
        checkpoint.put_network, state, BMN(SMALL))
    assert recorded.network_options(state, {})[name] == there
    assert "--%s %s is given" % (name, SMALL[name]) in refusal(recorded.network_options, state, {name: SMALL[name]})
    assert recorded.network_options(state, {"prop_boundary_ratio": ratio + 1e-5})["prop_boundary_ratio"] == ratio + 1e-5


def test_sampling_weights_of_an_unknown_rule_are_told(tmp_path, tensors):
    state = read(tmp_path, dict(tensors, sample_mask=torch.ones(8, 256)))
    checkpoint.put_network(state, BMN(SMALL))
    remark, = checkpoint.remarks(state)
    assert "of a rule that is not known here" in remark


@pytest.mark.parametrize(("made_with", "used_with", "name"), [
    ({}, {"layout": "mmaction2"}, "layout"), ({"layout": "mmaction2"}, {}, "layout"),
    ({"layout": "opentad", "max_duration": 3}, {"layout": "opentad"}, "max_duration")])
def test_a_recorded_layout_is_compared(tmp_path, tensors, made_with, used_with, name):
    checkpoint.save(str(tmp_path / "x"), {"epoch": 1, "state_dict": tensors, "options": dict(SMALL, **made_with)})
    sentence = refusal(load_network, str(tmp_path / "x"), BMN(dict(SMALL, **used_with)))
    there = dict({"layout": "reference", "max_duration": 0}, **made_with)[name]
    assert "was made with --%s %s" % (name, there) in sentence
    load_network(str(tmp_path / "x"), BMN(dict(SMALL, **made_with)))


# OpenTAD

def opentad_tensors(channels, samples):
    generator = torch.Generator().manual_seed(5)
    shapes = {"projection.convs.0.conv": (256, channels // 4, 3), "projection.convs.1.conv": (256, 64, 3),
              "roi_head.proposal_roi_extractor.reduce_dim.0": (128, 256, 3),
              "roi_head.proposal_roi_extractor.conv3d.0": (512, 128, samples, 1),
              "roi_head.proposal_roi_extractor.conv2d.0": (128, 512, 1, 1),
              "roi_head.proposal_head.head.0.0": (128, 128, 3, 3), "roi_head.proposal_head.head.1.0": (128, 128, 3, 3),
              "roi_head.proposal_head.head.2": (2, 128, 1, 1)}
    for head in "01":
        shapes["rpn_head.tem.%s.0.conv" % head] = (256, 64, 3)
        shapes["rpn_head.tem.%s.1.conv" % head] = (1, 256, 1)
    assert set(shapes) == set(OPENTAD)
    found = OrderedDict()
    for layer, shape in shapes.items():
        bound = (3 / np.prod(shape[1:])) ** 0.5
        found[layer + ".weight"] = (torch.rand(*shape, generator=generator) * 2 - 1) * bound
        found[layer + ".bias"] = torch.rand(shape[0], generator=generator) - 0.5
    return found


def opentad_by_definition(parameter, opt, x):
    """OpenTAD's BMN with its own 128 channels: [B, 2, D, T] (classification, regression), start, end."""
    def conv(name, x, function=F.conv1d, **how):
        return function(x, parameter[name + ".weight"], parameter[name + ".bias"], **how)
    base = F.relu(conv("projection.convs.1.conv", F.relu(conv(
        "projection.convs.0.conv", x, padding=1, groups=4)), padding=1, groups=4))
    start, end = (torch.sigmoid(conv("rpn_head.tem.%s.1.conv" % head, F.relu(conv(
        "rpn_head.tem.%s.0.conv" % head, base, padding=1, groups=4))))[:, 0] for head in "01")
    weights = torch.from_numpy(by_duration(sampling_weights_by_definition(
        opt["temporal_scale"], opt["num_sample"], 3, 0.5, after=0), opt["max_duration"] or opt["temporal_scale"]))
    extractor = "roi_head.proposal_roi_extractor."
    sampled = torch.einsum("bct,tnij->bcnij", F.relu(conv(extractor + "reduce_dim.0", x=base, padding=1)), weights)
    rows, columns = sampled.shape[-2:]
    cells = F.relu(conv(extractor + "conv3d.0", sampled.flatten(3), F.conv2d)).squeeze(2)
    cells = F.relu(conv(extractor + "conv2d.0", cells.view(len(x), 512, rows, columns), F.conv2d))
    for layer in "01":
        cells = F.relu(conv("roi_head.proposal_head.head.%s.0" % layer, cells, F.conv2d, padding=1))
    return torch.sigmoid(conv("roi_head.proposal_head.head.2", cells, F.conv2d)), start, end


@pytest.mark.parametrize("max_duration", [0, 5])
def test_opentads_network_is_served_exactly(tmp_path, max_duration):
    theirs = opentad_tensors(8, 4)
    state = read(tmp_path, {"epoch": 7, "state_dict_ema": OrderedDict(("module." + name, tensor)
                                                                    for name, tensor in theirs.items()),
                            "state_dict": OrderedDict((name, tensor * 0) for name, tensor in theirs.items())}, ema=True)
    assert "give --temporal_scale" in refusal(recorded.network_options, state, {})
    opt = recorded.network_options(state, {"temporal_scale": 9, "max_duration": max_duration})
    assert (opt["layout"], opt["feat_dim"], opt["num_sample"]) == ("opentad", 8, 4)
    model, x = BMN(opt).eval(), torch.randn(2, 8, 9, generator=torch.Generator().manual_seed(1))
    checkpoint.put_network(state, model)
    with torch.no_grad():
        found, wanted = model(x, valid_only=True), opentad_by_definition(theirs, opt, x)
    for start in range(9):
        for duration in range(max_duration or 9):
            if start + duration < 9:
                np.testing.assert_allclose(found[0][:, :, start, start + duration],
                                           wanted[0][:, :, duration, start].flip(1), atol=1e-6)
    for one, other in zip(found[1:], wanted[1:]):
        np.testing.assert_allclose(one, other, atol=1e-6)
    for one, other in zip(found[1:], network_by_definition(dict(model.named_parameters()), opt, x)[1:]):
        np.testing.assert_allclose(one, other.detach(), atol=1e-6)
    assert "--layout opentad, as its names show, but here it is mmaction2" in refusal(
        checkpoint.put_network, state, BMN(dict(opt, layout="mmaction2")))


def test_another_network_of_opentad_is_refused(tmp_path):
    theirs = opentad_tensors(8, 4)
    torch.save({"state_dict": dict(theirs, **{"neck.0.weight": torch.zeros(1)})}, str(tmp_path / "x.pth"))
    assert "has the layer neck.0, which its BMN has not" in refusal(checkpoint.read, str(tmp_path / "x.pth"))
    del theirs["rpn_head.tem.1.1.conv.bias"]
    torch.save({"state_dict": theirs}, str(tmp_path / "x.pth"))
    assert "lacks layers of its BMN" in refusal(checkpoint.read, str(tmp_path / "x.pth"))


def test_zeros_that_fill_up_the_channels_stay_zero_in_a_training(tmp_path):
    state = read(tmp_path, {"state_dict": opentad_tensors(8, 4)})
    model = BMN(recorded.network_options(state, {"temporal_scale": 9}))
    checkpoint.put_network(state, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        sum(output.sum() for output in model(torch.randn(2, 8, 9))).backward()
        optimizer.step()
    assert (model.x_1d_p[0].weight[128:] == 0).all() and (model.x_3d_p[0].weight[:, 128:] == 0).all()
    assert (model.x_1d_p[0].weight[:128] != 0).all()


def test_what_a_training_framework_keeps_beside_the_weights_is_left_out(tmp_path, tensors):
    """mmengine's files hold a record of the losses, of a class of its own with arrays inside."""
    hub = {"log_scalars": {"train/loss": collections.deque([np.float64(0.5), np.arange(3)])}}
    state = read(tmp_path, {"meta": {"epoch": 9, "seed": np.int64(3)}, "message_hub": hub,
                            "state_dict": dict(tensors, sample_mask=mask())})
    assert state["origin"] == "mmaction2" and any("left out" in line for line in checkpoint.remarks(state))
    assert same({name: state["state_dict"][name] for name in tensors}, tensors)


def test_an_option_of_another_type_in_a_checkpoint_is_refused():
    state = {"path": "x.pth", "options": dict(temporal_scale=10, feature_stride=["5f"], max_duration=10)}
    with pytest.raises(UserError, match=r"x\.pth is damaged \(its option feature_stride is a list\)"):
        recorded.check_options(state, {"feature_stride": "5f"})
    recorded.check_options(state, {"max_duration": 0})      # as long as the video is no limit
    with pytest.raises(UserError, match="was made with --max_duration 0, but here it is 4"):
        recorded.check_options(state, {"max_duration": 4})


@pytest.mark.parametrize("names, short", [
    (["module.fc.weight", "module.fc.bias"], ["fc.weight", "fc.bias"]),
    (["module.model.a", "module.model.b"], ["a", "b"]), (["module.fc.weight", "other.bias"], None), (["fc"], None)])
def test_the_layers_of_another_network_are_named_without_what_is_common_to_all(names, short):
    tensors = collections.OrderedDict((name, torch.zeros(1)) for name in names)
    assert list(others.with_own_names(tensors)) == (short or names)
