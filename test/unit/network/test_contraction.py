"""The choice between bags and a dense product by measuring, on a clock that the test turns."""
from types import SimpleNamespace

import pytest
import torch

from bmn.machine.amp import Plain
from bmn.network.contraction import ROUNDS, choose_contraction, fastest
from models import BMN

SMALL = {"temporal_scale": 6, "feat_dim": 4, "num_sample": 3}


class Machine:
    """A runtime of a card that takes as long as it is told for each way."""

    kind, is_main = "cuda", True

    def __init__(self, told=None):
        self.lines, self.told, self.states = [], told, []

    def agreed(self, found):
        return self.told or found

    def log(self, text):
        self.lines.append(text)

    def synchronize(self):
        pass

    def random_state(self):
        return torch.get_rng_state()

    def set_random_state(self, state):
        self.states.append(state)


@pytest.mark.parametrize("slow", ["bags", "dense"])
def test_the_fastest_way_is_found_by_its_median(slow):
    now, steps = [0.0], []

    def step(way):
        steps.append(way)
        now[0] += (2.0 if way == slow else 1.0) + (50.0 if steps.count(way) in (1, 3) else 0)      # one outlier
    found = fastest(["bags", "dense"], step, lambda: None, lambda: now[0])
    assert found[slow] == 2 and min(found, key=found.get) != slow
    assert steps == ["bags"] * (1 + ROUNDS) + ["dense"] * (1 + ROUNDS)


def test_a_way_that_fails_is_left_out_unless_all_do():
    def step(way):
        if way == "dense":
            raise RuntimeError("out of memory")
    assert list(fastest(["bags", "dense"], step, lambda: None)) == ["bags"]
    with pytest.raises(RuntimeError, match="out of memory"):
        fastest(["dense"], step, lambda: None)


@pytest.mark.parametrize("training", [True, False])
def test_the_choice_is_logged_and_changes_no_gradient_and_no_random_number(training):
    network, machine = BMN(SMALL), Machine()
    state = torch.get_rng_state()
    choose_contraction(network, machine, Plain("float32"), 2, training)
    assert network.boundary_matching.contraction in ("bags", "dense")
    line, = machine.lines
    assert line.startswith("boundary matching: %s (measured: bags " % network.boundary_matching.contraction)
    assert torch.equal(machine.states[0], state) and torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in network.parameters())


def test_other_ranks_take_what_rank_0_found():
    network, machine = BMN(SMALL), Machine(told={"bags": 2.0, "dense": 1.0})
    machine.is_main = False
    choose_contraction(network, machine, Plain("float32"), 2, True)
    assert network.boundary_matching.contraction == "dense"


@pytest.mark.parametrize("recorded", ["bags", "dense"])
def test_a_run_that_goes_on_keeps_its_way(recorded):
    network, machine = BMN(SMALL), Machine(told={"bags": 2.0, "dense": 1.0} if recorded == "bags" else None)
    choose_contraction(network, machine, Plain("float32"), 2, True, recorded)
    assert network.boundary_matching.contraction == recorded
    assert machine.lines == ["boundary matching: %s, as in the run that goes on (--bm_contraction decides otherwise)"
                             % recorded]


@pytest.mark.parametrize("kind,wanted", [("cpu", "auto"), ("cuda", "bags")])
def test_a_recorded_way_that_is_none_here_is_not_kept(monkeypatch, kind, wanted):
    network, machine = BMN(dict(SMALL, bm_contraction=wanted)), Machine()
    machine.kind = kind
    choose_contraction(network, machine, Plain("float32"), 2, True, "dense")
    assert network.boundary_matching.contraction == wanted


@pytest.mark.parametrize("wanted,kind", [("bags", "cuda"), ("dense", "cuda"), ("auto", "cpu")])
def test_nothing_is_measured_where_there_is_no_choice(wanted, kind):
    network, machine = BMN(dict(SMALL, bm_contraction=wanted)), Machine()
    machine.kind = kind
    choose_contraction(network, machine, Plain("float32"), 2, True)
    assert network.boundary_matching.contraction == wanted and not machine.lines


def test_a_device_without_bags_or_with_too_many_weights_has_one_way(monkeypatch):
    from bmn.network import boundary_matching
    matching, here = BMN(SMALL).boundary_matching, SimpleNamespace(type="cpu")
    assert matching.ways(here, torch.float32) == ["bags", "dense"]
    monkeypatch.setattr(boundary_matching, "DENSE_AT_MOST", 1)
    assert matching.ways(here, torch.float32) == ["bags"]
    monkeypatch.setattr(boundary_matching, "_has_bags", lambda *about: False)
    assert matching.ways(here, torch.float32) == ["dense"]
