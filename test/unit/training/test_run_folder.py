"""The files of a run in its folder: the best checkpoint is that of this run, whatever lies there under its name."""
import json
import os
import shutil

import pytest
import torch
from test_checkpoint import refusal
from test_training import new_run, record, train

from bmn.errors import UserError
from bmn.options import BEST
from bmn.training import checkpoint, run_folder


def save(training, folder, is_best):
    run_folder.save(str(folder), dict(training.state_dict(), random_states=[]), is_best)


def run_of(folder, losses):
    """A run whose epochs have these validation losses."""
    training = new_run()
    for loss in losses:
        train(training, 1)
        training.metrics[-1] = record(len(training.metrics) - 1, loss)
        save(training, folder, training.best_epoch == len(training.metrics) - 1)
    return training


def best_of(folder):
    return checkpoint.read(str(folder / BEST))


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    return tmp_path / "here", tmp_path / "there"


def go_on(source, folder):
    """Resume from the last checkpoint in ``source`` with ``folder`` as --checkpoint_path."""
    state = checkpoint.read(str(source / run_folder.LAST))
    training = new_run()
    training.load_state_dict(dict(state, random_states=[{"cpu": torch.get_rng_state()}]))
    run_folder.complete(str(folder), state, training.best_record)
    return training


def test_the_record_is_json(folders):
    run_of(folders[0], [0.5, 0.25])
    lines = (folders[0] / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["validation"]["total"] for line in lines] == [0.5, 0.25]
    training = new_run()
    training.metrics = [record(0, float("nan"))]
    with pytest.raises(ValueError, match="not JSON compliant"):
        save(training, folders[0], False)


@pytest.mark.parametrize("losses", [[0.5, 0.25, 0.75], [0.25, 0.5, 0.75], [0.75, 0.5, 0.25]])
def test_a_run_that_goes_on_elsewhere_takes_its_best_network_along(folders, losses):
    here, there = folders
    run_of(here, losses)
    run_of(there, [0.1])                                # another run was here, with a lower loss
    training = go_on(here, there)
    run_folder.check_is_of(best_of(there), training.best_record)
    assert best_of(there)["epoch"] == losses.index(0.25) + 1
    assert len((there / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_run_whose_best_network_is_gone_does_not_go_on(folders):
    here, there = folders
    run_of(here, [0.25, 0.5])
    os.remove(str(here / BEST))
    sentence = refusal(go_on, here, there)
    assert "the best network of the run" in sentence and "of epoch 0" in sentence
    run_of(there, [0.25, 0.125])
    shutil.copy(str(there / BEST), str(here / BEST))    # one of another run does not serve
    assert "is not in" in refusal(go_on, here, here)


def test_a_kill_between_the_two_checkpoints_is_repaired(folders):
    here, _ = folders
    training = run_of(here, [0.5, 0.75])
    train(training, 1)
    training.metrics[-1] = record(2, 0.25)
    checkpoint.save(str(here / run_folder.LAST), dict(training.state_dict(), random_states=[]))
    assert best_of(here)["epoch"] == 1
    training = go_on(here, here)
    assert best_of(here)["epoch"] == 3
    run_folder.check_is_of(best_of(here), training.best_record)


def test_the_network_of_another_run_is_not_evaluated(folders):
    here, there = folders
    ours = run_of(here, [0.5])
    run_of(there, [0.25])
    shutil.copy(str(there / BEST), str(here / BEST))
    assert "is not the best network of this run" in refusal(run_folder.check_is_of, best_of(here), ours.best_record)


def test_an_epoch_goes_on_with_the_same_videos_only(monkeypatch):
    names = ["v_a", "v_b"]
    run_folder.check_same_videos(None, names)
    begun = {"videos": run_folder._digest(names)}
    run_folder.check_same_videos(begun, names)
    for others in (["v_b", "v_a"], ["v_a"], ["v_a", "v_b", "v_c"], ["v_av_b"], []):
        with pytest.raises(UserError, match="goes on within an epoch, but the training videos are others now"):
            run_folder.check_same_videos(begun, others)
