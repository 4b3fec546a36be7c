"""videos.csv and features.json beside features: written, read, and no features themselves."""
import json
import os

import numpy as np
import pytest

from bmn import extracted
from bmn.data.folder_features import FolderFeatures
from bmn.errors import UserError
from bmn.extracted import Length

LENGTHS = {"a,b": Length(4.004, 120, 29.97003, 7, 16.0), "v_x": Length(0.5, 3, 6.0, 1, 3.0)}
DESCRIPTION = {"backbone": "x", "snippet_frames": 16, "snippet_stride": 16}


def test_lengths_are_read_as_they_were_written(tmp_path):
    assert extracted.read_lengths(str(tmp_path)) == {}
    extracted.write_lengths(str(tmp_path), LENGTHS)
    assert extracted.read_lengths(str(tmp_path)) == {}          # nobody knows whose list this is
    (tmp_path / "features.json").write_text(json.dumps(DESCRIPTION))
    assert extracted.read_lengths(str(tmp_path)) == LENGTHS
    assert extracted.lengths_of(str(tmp_path), ["v_x"]) == {"v_x": LENGTHS["v_x"]}
    with pytest.raises(UserError, match="lacks 1 of 2 videos that have features beside it"):
        extracted.lengths_of(str(tmp_path), ["v_x", "v_y"])


@pytest.mark.parametrize("row", ["a,1,x,1,1,1", "a,1,25,25,0,16", "a,1", "a,inf,25,25,1,16",
                                 "a,1,25,25,1,16\na,2,50,25,1,16"])
def test_a_row_that_says_no_length_is_refused(tmp_path, row):
    (tmp_path / "features.json").write_text(json.dumps(DESCRIPTION))
    (tmp_path / "videos.csv").write_text("video,seconds,frames,fps,snippets,stride\n%s\n" % row)
    with pytest.raises(UserError, match=r"videos\.csv is not what"):
        extracted.read_lengths(str(tmp_path))


def test_the_list_is_no_table_of_features(tmp_path):
    np.save(str(tmp_path / "a.npy"), np.zeros((3, 4)))
    (tmp_path / "videos.csv").write_text("f0,f1\n1,2\n")
    assert sorted(FolderFeatures(str(tmp_path), 0, 0).names()) == ["a", "videos"]
    (tmp_path / "features.json").write_text(json.dumps(DESCRIPTION))
    assert sorted(FolderFeatures(str(tmp_path), 0, 0).names()) == ["a"]
    np.save(str(tmp_path / "videos.npy"), np.zeros((3, 4)))     # of a video that is called so
    assert sorted(FolderFeatures(str(tmp_path), 0, 0).names()) == ["a", "videos"]


def test_a_description_is_carried_and_an_old_one_goes(tmp_path):
    source, target = tmp_path / "features", tmp_path / "checkpoint"
    os.mkdir(str(source)), os.mkdir(str(target))
    (source / "features.json").write_text(json.dumps(DESCRIPTION))
    assert extracted.find_description(str(tmp_path), str(source / "a.npy")) == str(source / "features.json")
    extracted.carry_description(str(source / "features.json"), str(target))
    assert extracted.read_description(str(target / "features.json")) == DESCRIPTION
    extracted.carry_description(str(target / "features.json"), str(target))
    assert (target / "features.json").exists()
    extracted.carry_description(extracted.find_description(str(tmp_path / "none")), str(target))
    assert not (target / "features.json").exists()


@pytest.mark.parametrize("content", ["[]", "{}", '{"backbone": 3}', '{"backbone": "x", "snippet_frames": 0}', "x"])
def test_a_description_that_says_too_little_is_refused(tmp_path, content):
    (tmp_path / "features.json").write_text(content)
    with pytest.raises(UserError, match=r"features\.json"):
        extracted.read_description(str(tmp_path / "features.json"))
