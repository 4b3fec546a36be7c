"""Intersection and IoU."""
import numpy as np
import pytest

from bmn.data import segments


def test_known_segments():
    assert segments.intersection(0.0, 2.0, 1.0, 5.0) == 1
    assert segments.intersection(0.0, 1.0, 2.0, 3.0) == 0
    assert segments.iou(0.0, 2.0, 1.0, 5.0) == pytest.approx(0.2)
    assert segments.iou(1.0, 1.0, 0.0, 2.0) == 0            # the data has segments of length 0
    assert segments.iou(0.0, 2.0, 1.0, 1.0) == 0


def test_iou_is_symmetric_and_bounded(rng):
    start, other_start = rng.rand(2, 50, 1), rng.rand(2, 1, 50)
    end, other_end = start + 0.01 + rng.rand(2, 50, 1), other_start + 0.01 + rng.rand(2, 1, 50)
    iou = segments.iou(start, end, other_start, other_end)
    assert iou.shape == (2, 50, 50) and iou.min() >= 0 and iou.max() <= 1
    np.testing.assert_allclose(iou, segments.iou(other_start, other_end, start, end), atol=1e-12)
    np.testing.assert_allclose(segments.iou(start, end, start, end), 1)
