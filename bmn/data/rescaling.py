"""From a row for each snippet to T rows for the video, by the rule of the published features, or evenly."""
import numpy as np
from scipy.interpolate import interp1d

from bmn import extracted

SAMPLES = 3             # samples of a bin
MARGIN = 0.0001         # seconds: samples stay this far inside the outermost snippet centres


def rescale_snippets(raw: np.ndarray, duration_frame: float, duration_second: float, temporal_scale: int,
                     snippet_frames: int = 16) -> np.ndarray:
    """T rows from raw snippets, exactly by the rule of the published csv_mean_100.

    Args:
        raw: [snippets, C], one every ``snippet_frames`` frames.
        duration_frame, duration_second: length of the video in frames and in seconds.
        temporal_scale: T.
        snippet_frames: frames of a snippet.

    Returns:
        float64 [T, C].
    """
    raw = np.asarray(raw, np.float64)
    if len(raw) == 1:
        return np.repeat(raw, temporal_scale, axis=0)
    # Some comparisons in ``reached`` are of equal numbers, so the rounding by the order of these operations matters.
    covered = float(len(raw) * snippet_frames) / duration_frame * duration_second
    step = snippet_frames / (float(duration_frame) / duration_second)
    centre = step / 2 + np.arange(len(raw)) * step
    bins = np.arange(temporal_scale)
    first = np.maximum(centre[0] + MARGIN, 1.0 / temporal_scale * bins * covered)
    last = np.minimum(centre[-1] - MARGIN, 1.0 / temporal_scale * (bins + 1) * covered)
    reached = (last >= centre[0]) & (first <= centre[-1])
    samples = first[:, None] + ((last - first) / (SAMPLES - 1))[:, None] * np.arange(SAMPLES)
    samples = np.clip(samples[reached], centre[0], centre[-1])                          # [reached, 3]
    rescaled = np.zeros((temporal_scale, raw.shape[1]))
    rescaled[reached] = interp1d(centre, raw, axis=0)(samples).mean(axis=1)
    return rescaled


def rescale_extracted(raw: np.ndarray, length: extracted.Length, temporal_scale: int) -> np.ndarray:
    """T rows that cover the whole video, by the same rule, from features that tools/extract_features.py made.

    Before the centre of the first snippet and after that of the last one, their rows stand.

    Args:
        raw: [snippets, C].
        length: of the video, as videos.csv has it.
        temporal_scale: T.

    Returns:
        float64 [T, C].
    """
    raw = np.asarray(raw, np.float64)
    if len(raw) == 1:
        return np.repeat(raw, temporal_scale, axis=0)
    centre = (np.arange(len(raw)) + 0.5) * (length.stride / length.fps)
    bins = np.arange(temporal_scale)[:, None] + np.linspace(0, 1, SAMPLES)              # [T, 3]
    samples = np.clip(bins * (length.seconds / temporal_scale), centre[0], centre[-1])
    return interp1d(centre, raw, axis=0)(samples).mean(axis=1)


def rescale_linearly(raw: np.ndarray, temporal_scale: int) -> np.ndarray:
    """T rows at equal distances from the first row of ``raw`` [snippets, C] to its last: float64 [T, C]."""
    raw = np.asarray(raw, np.float64)
    if len(raw) == 1:
        return np.repeat(raw, temporal_scale, axis=0)
    return interp1d(np.arange(len(raw)), raw, axis=0)(np.linspace(0, len(raw) - 1, temporal_scale))
