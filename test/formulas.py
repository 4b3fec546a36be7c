"""The formulas of the golden figures' inputs; they give the same numbers in every version of every library."""
import numpy as np


def wave(shape, key, scale=1.0):
    """Numbers in [-scale, scale) that look random, float32, in C order."""
    i = np.arange(1, int(np.prod(shape)) + 1, dtype=np.float64)
    x = np.sin(12.9898 * i + 78.233 * key) * 43758.5453
    return ((2 * (x - np.floor(x)) - 1) * scale).reshape(shape).astype(np.float32)


def smooth(shape, key):
    """A wave smoothed along every axis but the first, squeezed into (0, 1): it looks like a network's output."""
    v = wave(shape, key).astype(np.float64)
    for axis in range(1, v.ndim):
        for _ in range(6):
            v = (np.roll(v, 1, axis) + v + np.roll(v, -1, axis)) / 3
    return (1 / (1 + np.exp(-12 * v))).astype(np.float32)


def wave_parameters(shapes):
    """{name: float32 array} for {name: shape}, by the rule of the golden figures."""
    return {name: wave(shapes[name], 1 + k, (3.0 / _fan_in(shapes[name])) ** 0.5)
            for k, name in enumerate(sorted(shapes))}


def _fan_in(shape):
    return int(np.prod(shape[1:])) if len(shape) > 1 else 64
