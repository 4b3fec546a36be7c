"""A checkpoint is resumed only if every part of it is what a run of ours writes."""
import copy
import math

import pytest
import torch
from test_checkpoint import refusal
from test_training import new_run, train, written  # noqa: F401  (a fixture)

from bmn.training import checkpoint

NAN = float("nan")


@pytest.fixture
def state(written):  # noqa: F811
    """The content of a checkpoint after three epochs."""
    return checkpoint.read(written[0])


def third(state):
    """The name of the third weight in the state of the optimizer; before PyTorch 1.6 it is no small number."""
    return state["optimizer"]["param_groups"][0]["params"][2]


def moments(state):
    return state["optimizer"]["state"][third(state)]


SPOILT = {
    "metrics []": lambda state: state.update(metrics=[]),
    "metrics abc": lambda state: state.update(metrics="abc"),
    "one record too many": lambda state: state["metrics"].append(state["metrics"][0]),
    "records out of order": lambda state: state["metrics"].reverse(),
    "a record without validation": lambda state: state["metrics"][1].pop("validation"),
    "a record that is not finite": lambda state: state["metrics"][1]["validation"].update(total=NAN),
    "a record of text": lambda state: state["metrics"][1]["train"].update(total="2"),
    "a record that is no dict": lambda state: state["metrics"].__setitem__(0, 5),
    "epoch True": lambda state: state.update(epoch=True),
    "epoch -1": lambda state: state.update(epoch=-1),
    "best_loss NaN": lambda state: state.update(best_loss=NAN),
    "best_loss of another run": lambda state: state.update(best_loss=0.1),
    "no options": lambda state: state.update(options={}),
    "options that are a list": lambda state: state.update(options=[1]),
    "no moments of a weight": lambda state: state["optimizer"]["state"].pop(third(state)),
    "moments of a weight too many": lambda state: state["optimizer"]["state"].update({99: moments(state)}),
    "NaN moments": lambda state: moments(state)["exp_avg"].view(-1)[0].fill_(NAN),
    "infinite squares": lambda state: moments(state)["exp_avg_sq"].view(-1)[0].fill_(math.inf),
    "a square below 0": lambda state: moments(state)["exp_avg_sq"].view(-1)[0].fill_(-1),
    "moments of another shape": lambda state: moments(state).update(exp_avg=torch.zeros(3)),
    "moments of whole numbers": lambda state: moments(state).update(exp_avg=moments(state)["exp_avg"].long()),
    "moments that are numbers": lambda state: moments(state).update(exp_avg=0.0),
    "a step of text": lambda state: moments(state).update(step="3"),
    "moments that are a list": lambda state: state["optimizer"]["state"].update({third(state): [1]}),
    "a weight that is named twice": lambda state: state["optimizer"]["param_groups"][0].update(
        params=[third(state)] * len(state["optimizer"]["param_groups"][0]["params"])),
    "a weight whose name is a list": lambda state: state["optimizer"]["param_groups"][0]["params"].__setitem__(2, [2]),
    "a weight whose name is text": lambda state: (
        state["optimizer"]["state"].update(x=state["optimizer"]["state"].pop(third(state))),
        state["optimizer"]["param_groups"][0]["params"].__setitem__(2, "x")),
    "two groups": lambda state: state["optimizer"]["param_groups"].append({}),
    "another weight decay": lambda state: state["optimizer"]["param_groups"][0].update(weight_decay=0.5),
    "other betas": lambda state: state["optimizer"]["param_groups"][0].update(betas=(0.5, 0.5)),
    "amsgrad": lambda state: state["optimizer"]["param_groups"][0].update(amsgrad=True),
    "uphill": lambda state: state["optimizer"]["param_groups"][0].update(maximize=True),
    "another learning rate": lambda state: state["optimizer"]["param_groups"][0].update(lr=0.5),
    "a learning rate of text": lambda state: state["optimizer"]["param_groups"][0].update(lr="0.0001"),
    "a scheduler of another step size": lambda state: state["scheduler"].update(step_size=7),
    "a scheduler of another epoch": lambda state: state["scheduler"].update(last_epoch=1),
    "a scheduler of another rate": lambda state: state["scheduler"].update(base_lrs=[1.0]),
    "no scheduler": lambda state: state.update(scheduler={}),
    "a scheduler that is a list": lambda state: state.update(scheduler=[]),
    "an unknown precision": lambda state: state.update(precision={"kind": "x", "skipped": 0}),
    "a precision without a scale": lambda state: state.update(precision={"kind": "scaler", "skipped": 0}),
    "a NaN scale": lambda state: state.update(precision={"kind": "scaler", "skipped": 0, "scaler": {"scale": NAN}}),
    "no random numbers": lambda state: state.update(random_states=[]),
    "random numbers of another kind": lambda state: state.update(random_states=[{"cpu": torch.zeros(5)}]),
    "random numbers that are text": lambda state: state.update(random_states=["x"]),
    "an epoch begun that is text": lambda state: state.update(within_epoch="x"),
    "an epoch begun without losses": lambda state: state.update(within_epoch={"steps": 2}),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_value_that_no_run_writes_is_refused(state, what):
    SPOILT[what](state)
    training = new_run()
    sentence = refusal(training.load_state_dict, state)
    assert state["path"] in sentence and ("--finetune 1" in sentence or "--" in sentence)


def within(**other):
    timing = {"samples": 8, "iterations": 2, "seconds": 1.5, "data_time": 0.5, "skipped": 0}
    return dict({"steps": 2, "timing": timing, "losses": [torch.ones(2, 4)], "videos": "ab"}, **other)


@pytest.mark.parametrize("other", [
    {"steps": 0}, {"steps": True}, {"timing": {"samples": 8}}, {"losses": []}, {"losses": [torch.ones(3, 4)]},
    {"losses": [torch.full((2, 4), NAN)]}, {"losses": [torch.tensor([[1, 1, 1, 1], [1, 1, NAN, 1]])]}, {"videos": 5}])
def test_an_epoch_begun_is_checked_too(state, other):
    new_run().load_state_dict(dict(state, within_epoch=within()))
    assert "of an epoch begun" in refusal(new_run().load_state_dict, dict(state, within_epoch=within(**other))) or (
        "losses of the epoch begun" in refusal(new_run().load_state_dict, dict(state, within_epoch=within(**other))))


@pytest.mark.parametrize("option, value", [("seed", 5), ("batch_size", 3)])
def test_an_epoch_begun_goes_on_only_with_the_same_videos_in_its_steps(state, option, value):
    new_run(**{option: value}).load_state_dict(copy.deepcopy(state))        # between epochs they may change
    sentence = refusal(new_run(**{option: value}).load_state_dict, dict(state, within_epoch=within()))
    assert "--%s" % option in sentence


def test_nothing_foreign_reaches_the_scheduler(state):
    state["scheduler"]["optimizer"] = state["scheduler"]["foreign"] = 5
    training = new_run()
    training.load_state_dict(state)
    assert training.scheduler.optimizer is training.optimizer and not hasattr(training.scheduler, "foreign")
    train(training, 1)
