"""The sample videos: what the annotations say is what moves, and the same seed makes the same videos."""
import numpy as np
import pytest

pytest.importorskip("av", reason="videos need PyAV (requirements-video.txt)")

import make_sample_videos as sample

from bmn.video.decoding import Film


def test_actions_and_distractors_lie_apart_within_the_video():
    for seed in range(100):
        frames, actions, distractors = sample.plan(np.random.RandomState(seed))
        spans = sorted([action[:2] for action in actions] + distractors)
        assert spans and spans[0][0] > 0 and spans[-1][1] <= frames
        assert all(first[1] < second[0] for first, second in zip(spans, spans[1:]))
        assert all(last - first >= int(2.5 * sample.RATE) for first, last in spans)
    assert sample.plan(np.random.RandomState(3)) == sample.plan(np.random.RandomState(3))


def test_the_picture_moves_as_planned_and_is_written_whole(tmp_path):
    actions, distractors = [(20, 40, "falling")], [(50, 60)]
    made = list(sample.pictures(np.random.RandomState(0), 70, actions, distractors))
    grey = np.array([picture.mean(2) for picture in made])
    moved = [np.abs(np.roll(one, (4, 0), (0, 1)) - other).mean() < np.abs(one - other).mean() / 2
             for one, other in zip(grey, grey[1:])]
    assert sum(moved[20:38]) >= 16 and not any(moved[:18]) and not any(moved[41:48] + moved[61:])
    sample.write_video(str(tmp_path / "a.mp4"), iter(made))
    film = Film(str(tmp_path / "a.mp4"))
    assert film.span.frames == 70 and film.span.fps == pytest.approx(12.5)
