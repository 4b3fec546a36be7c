"""A training and its state: a saved run goes on exactly, and a state that does not fit is refused."""
import pytest
import torch
from test_checkpoint import refusal

from bmn.errors import UserError
from bmn.machine import amp
from bmn.options import with_defaults
from bmn.training import checkpoint
from bmn.training.training import Training
from models import BMN

SMALL = {"temporal_scale": 8, "num_sample": 4, "num_sample_perbin": 3, "prop_boundary_ratio": 0.5, "feat_dim": 8}
OPTIONS = with_defaults(dict(SMALL, step_size=2))


def new_run(**options):
    torch.manual_seed(3)
    return Training(BMN(dict(SMALL, **options)), amp.Plain("float32"), dict(OPTIONS, **options))


def record(epoch, loss):
    return {"epoch": epoch, "fps": 1.5, "train": {"total": 2.0}, "validation": {"total": loss}}


def train(training, epochs):
    """An epoch is one step here. Returns the losses."""
    losses = []
    for _ in range(epochs):
        loss = sum((output - torch.rand(output.shape)).pow(2).sum()
                   for output in training.network(torch.rand(2, 8, 8)))
        training.precision.step(loss, training.optimizer)
        training.end_epoch(record(training.epochs_done, 0.25 + training.epochs_done))
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint after three steps, and the losses that followed in the run that wrote it."""
    training = new_run()
    train(training, 3)
    path = str(tmp_path_factory.mktemp("written") / checkpoint.LAST)
    checkpoint.save(path, dict(training.state_dict(), random_states=[{"cpu": torch.get_rng_state()}]))
    return path, train(training, 3)


def test_a_resumed_run_equals_the_uninterrupted_one_to_the_last_digit(written):
    path, expected = written
    training, state = new_run(), checkpoint.read(path)
    training.load_state_dict(state)
    torch.set_rng_state(state["random_states"][0]["cpu"])
    assert (state["epoch"], training.epochs_done, training.best_epoch) == (3, 3, 0)
    assert training.metrics[0] == record(0, 0.25) and state["options"] == OPTIONS
    assert train(training, 3) == expected


def test_the_way_to_contract_goes_with_the_run(written):
    training, state = new_run(), dict(checkpoint.read(written[0]), contraction="dense")
    training.load_state_dict(state)
    assert training.contraction == "dense"
    training.network.boundary_matching.contraction = "bags"
    assert training.state_dict()["contraction"] == "bags"
    del state["contraction"]                # version 1.0 had no choice
    training.load_state_dict(state)
    assert training.contraction == "auto"
    with pytest.raises(UserError, match="its contraction is unknown"):
        new_run().load_state_dict(dict(state, contraction=7))


def test_optimizer_steps_are_integers_for_old_pytorch(written):
    steps = {type(value["step"]) for value in checkpoint.read(written[0])["optimizer"]["state"].values()}
    assert steps == {int}


def test_a_network_alone_cannot_be_resumed(tmp_path):
    torch.save({"epoch": 1, "state_dict": BMN(SMALL).state_dict()}, str(tmp_path / "network.pth"))
    assert "--finetune 1" in refusal(new_run().load_state_dict, checkpoint.read(str(tmp_path / "network.pth")))


@pytest.mark.parametrize("option,value,was", [
    ("training_lr", 0.01, 0.001), ("weight_decay", 0.0, 0.0001), ("step_size", 3, 2), ("step_gamma", 0.5, 0.1)])
def test_a_changed_option_of_the_optimisation_is_refused(written, option, value, was):
    sentence = refusal(new_run(**{option: value}).load_state_dict, checkpoint.read(written[0]))
    assert "--%s %s, but here it is %s" % (option, was, value) in sentence


def test_an_optimizer_state_that_does_not_fit_is_refused(written):
    state = checkpoint.read(written[0])
    state["optimizer"]["param_groups"] = []
    assert "its optimizer is not Adam" in refusal(new_run().load_state_dict, state)


def test_the_best_epoch_has_the_lowest_loss():
    training = new_run()
    training.optimizer.step()
    losses = (0.5, 0.7, 0.4, 0.4)
    assert [training.end_epoch(record(*pair)) for pair in enumerate(losses)] == [True, False, True, False]
    assert training.best_epoch == 2 and training.epochs_done == 4 and training.best_record == training.metrics[:3]
    assert new_run().best_record == []


@pytest.mark.parametrize("spoil", [
    lambda training: training.network.x_2d_p[6].bias.data.fill_(float("nan")),
    lambda training: training.network.x_1d_b[2].weight.data.view(-1)[7].fill_(float("-inf")),      # one of many
    lambda training: next(iter(training.optimizer.state.values()))["exp_avg"].view(-1)[-1].fill_(float("nan")),
    lambda training: next(iter(training.optimizer.state.values()))["exp_avg_sq"].fill_(float("inf"))])
def test_a_training_that_has_failed_is_not_saved(spoil):
    training = new_run()
    train(training, 1)
    training.check_finite()
    spoil(training)
    assert "the training has failed in epoch 1" in refusal(training.check_finite)


def test_a_state_that_does_not_fit_leaves_a_sentence(written, monkeypatch):
    """Whatever PyTorch raises, after all the checks that come before."""
    training = new_run()

    def fails(_):
        raise RuntimeError("size mismatch\nin many lines")
    monkeypatch.setattr(training.precision, "load_state_dict", fails)
    sentence = refusal(training.load_state_dict, checkpoint.read(written[0]))
    assert "the state of its run does not fit this one (size mismatch): resume with the options that it was" in sentence
