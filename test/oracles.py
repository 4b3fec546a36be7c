"""Plain definitions, number by number, that several tests hold the code to."""
import math

import numpy as np


def sampling_weights_by_definition(tscale, num_sample, num_sample_perbin, ratio):
    """The sampling weights of the BM layer: float32 [T, N, T, T], indices t, n, start, end."""
    weights = np.zeros((tscale, num_sample, tscale, tscale))
    count = num_sample * num_sample_perbin
    for start in range(tscale):
        for end in range(start, tscale):
            length = float(end + 1 - start) + 1
            low, high = start - length * ratio, end + 1 + length * ratio
            step = (high - low) / (count - 1.0)
            for i in range(count):
                point = low + step * i
                fraction, below = math.modf(point)
                for position, weight in ((int(below), 1 - fraction), (math.ceil(point), fraction)):
                    if 0 <= position < tscale:
                        weights[position, i // num_sample_perbin, start, end] += weight
    return (1.0 / num_sample_perbin * weights).astype(np.float32)
