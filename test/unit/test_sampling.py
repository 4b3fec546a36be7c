"""The sampling weights of the layouts, and what weights tell of the network that they belong to."""
from types import SimpleNamespace

import numpy as np
import pytest
from oracles import by_duration, sampling_weights_by_definition

from bmn.sampling import proposals, sampling_differences, sampling_weights, told_by_mask, whole_mask

OPTIONS = [(2, 2, 3, 0.5), (5, 4, 3, 0.5), (7, 3, 2, 1.7), (9, 5, 1, 0.31), (13, 7, 4, 1.0), (20, 32, 3, 0.5)]


@pytest.mark.parametrize("options", OPTIONS)
def test_weights_of_a_map_of_durations_follow_the_definition_bit_for_bit(options):
    wanted = by_duration(sampling_weights_by_definition(*options, after=0), options[0])
    for layout in ("mmaction2", "reference2019", "opentad"):
        np.testing.assert_array_equal(whole_mask(*options, layout), wanted)
    np.testing.assert_array_equal(whole_mask(*options, "reference"), sampling_weights_by_definition(*options))


@pytest.mark.parametrize("max_duration", [1, 3, 6])
def test_a_longest_duration_leaves_out_the_longer_proposals(max_duration):
    everything = sampling_weights(7, 3, 2, 0.5, "opentad")
    short = sampling_weights(7, 3, 2, 0.5, "opentad", max_duration)
    start, end = proposals(7)
    kept = np.flatnonzero(end - start < max_duration)
    np.testing.assert_array_equal(proposals(7, max_duration), (start[kept], end[kept]))
    chosen = np.isin(everything[0], kept)
    for one, other in zip(short[1:], everything[1:]):
        np.testing.assert_array_equal(one, other[chosen])
    np.testing.assert_array_equal(kept[short[0]], everything[0][chosen])


def test_weights_tell_the_options_and_the_layout(rng):
    for trial in range(30):
        scale, samples, bins = (int(rng.choice(choice)) for choice in (
            [7, 10, 20, 33, 50], [2, 3, 4, 8, 16, 32], [1, 2, 3, 4, 5, 8]))
        ratio = float(rng.choice([0, 0.1, 0.25, 0.5, 0.75, 1, 0.3333]))
        layout = str(rng.choice(["reference", "mmaction2"]))
        mask = whole_mask(scale, samples, bins, ratio, layout).reshape(scale, -1)
        told = told_by_mask(mask.astype((np.float32, np.float16)[trial % 2]).astype(np.float32))
        assert told == {"temporal_scale": scale, "num_sample": samples, "num_sample_perbin": bins,
                        "prop_boundary_ratio": pytest.approx(ratio, abs=1e-3), "layout": layout}


@pytest.mark.parametrize("mask", [np.zeros((7, 3 * 49)), np.ones((7, 3 * 49)), np.full((7, 3 * 49), np.nan),
                                  np.random.RandomState(0).rand(7, 3 * 49), np.zeros((7, 50)), np.zeros((7, 0)),
                                  np.zeros((1, 1)), np.zeros(7), np.zeros((7, 7, 7))])
def test_other_numbers_tell_nothing(mask):
    assert told_by_mask(mask.astype(np.float32)) is None


def test_a_difference_is_named_and_layouts_with_the_same_weights_are_none():
    told = told_by_mask(whole_mask(10, 4, 3, 0.5, "mmaction2").reshape(10, -1))
    network = SimpleNamespace(layout="opentad", num_sample_perbin=3, prop_boundary_ratio=0.5)
    assert sampling_differences(told, network) == [] == sampling_differences(None, network)
    network = SimpleNamespace(layout="reference", num_sample_perbin=2, prop_boundary_ratio=0.5)
    assert sampling_differences(told, network) == [("layout", "mmaction2", "reference"), ("num_sample_perbin", 3, 2)]
