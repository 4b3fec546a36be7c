"""Rescaling snippets to T positions, compared with the rule bin by bin."""
import numpy as np
import pytest
from oracles import plain_rescaling

from bmn.data.rescaling import rescale_linearly, rescale_snippets


@pytest.mark.parametrize("snippets", [1, 2, 3, 7, 10, 12, 24, 50, 101])
@pytest.mark.parametrize("frames,seconds", [(300, 10.0), (2303, 92.18), (418, 14.07)])
def test_rescaling_follows_the_rule_of_the_published_features(rng, snippets, frames, seconds):
    raw = rng.randn(snippets, 5)
    for size in (20, 24, 100):      # 20 and 10 snippets: a tie decides whether the outermost bins are reached
        got, want = rescale_snippets(raw, frames, seconds, size), plain_rescaling(raw, frames, seconds, size)
        np.testing.assert_array_equal(got.any(axis=1), want.any(axis=1))
        np.testing.assert_allclose(got, want, atol=1e-11)


def test_bins_beyond_the_outermost_snippets_are_zero(rng):
    got = rescale_snippets(rng.randn(5, 4), 80, 2.0, 100)       # a snippet has 20 bins: its centre is 10 bins away
    empty = ~got.any(axis=1)
    assert 18 <= empty.sum() <= 20 and empty[:9].all() and empty[-9:].all() and not empty[10:90].any()


def test_linear_rescaling(rng):
    raw = rng.randn(7, 4)
    got = rescale_linearly(raw, 13)
    np.testing.assert_allclose(got[::2], raw, atol=1e-12)
    np.testing.assert_allclose(got[1::2], (raw[1:] + raw[:-1]) / 2, atol=1e-12)
    np.testing.assert_array_equal(rescale_linearly(raw[:1], 5), np.repeat(raw[:1], 5, axis=0))
