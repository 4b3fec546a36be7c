"""Files appear whole or not at all, and the user is told what is wrong with them."""
import json
import os

import pytest

from bmn import files
from bmn.errors import UserError
from bmn.files import check_distinct, check_writable, read_json, replacing, write_json


def test_a_file_is_replaced_in_one_step_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new folder" / "a b.json"
    write_json(str(path), {"n": 1})
    with replacing(str(path)) as temporary:
        with open(temporary, "w") as handle:
            handle.write('{"n": 2}')
        assert json.loads(path.read_text()) == {"n": 1}     # the old file stays until the new one is whole
    assert json.loads(path.read_text()) == {"n": 2}
    assert os.listdir(str(path.parent)) == ["a b.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask    # not private, as temporary files are


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(str(path), 1)
    with pytest.raises(ZeroDivisionError), replacing(str(path)) as temporary:
        with open(temporary, "w") as handle:
            handle.write("half")
        raise ZeroDivisionError
    assert path.read_text() == "1" and os.listdir(str(tmp_path)) == ["x.json"]


def test_an_input_file_is_not_overwritten(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "x")
    check_distinct(str(tmp_path / "x"), str(tmp_path / "y"))
    for one in ("x", "link", "../%s/x" % tmp_path.name):
        with pytest.raises(UserError, match="give another name"):
            check_distinct(str(tmp_path / "x"), os.path.join(str(tmp_path), one))


def test_unwritable_places_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x.json", tmp_path):
        for attempt in (check_writable, lambda p: write_json(p, 1)):
            with pytest.raises(UserError, match="cannot write"):
                attempt(str(path))
    check_writable(str(tmp_path / "new" / "x.json"))
    assert os.listdir(str(tmp_path / "new")) == []


@pytest.mark.parametrize("content,word", [
    (None, "does not exist"), ('{"a": 1', "not valid JSON"), ("\xff\xfe", "JSON")])
def test_unreadable_json_is_named(tmp_path, content, word):
    path = tmp_path / "anno.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="video_anno.*" + word):
        read_json(str(path), "annotation file (--video_anno)")


@pytest.mark.parametrize("fast", [True, False])
def test_json_is_read_as_python_reads_it(tmp_path, monkeypatch, rng, fast):
    """With and without orjson every digit is read, and so are texts that orjson refuses."""
    if not fast:
        monkeypatch.setattr(files, "orjson", None)
    numbers = (rng.rand(2000) * 10.0 ** rng.randint(-30, 30, 2000)).tolist()
    texts = [json.dumps(numbers), ", ".join("%.25f" % (number / 1e20) for number in numbers).join("[]"),
             '\ufeff{"a": 1}', '[NaN, Infinity, 123456789012345678901234567890]', '{"a": "\\ud800", "\u00e9": 5e-324}']
    for text in texts:
        path = tmp_path / "x.json"
        path.write_bytes(text.encode("utf-8"))
        assert repr(read_json(str(path), "file")) == repr(json.loads(text.lstrip("\ufeff")))
