"""Files appear whole or not at all, and the user is told what is wrong with them."""
import json
import os

import pytest

from bmn import files
from bmn.errors import UserError
from bmn.files import (
    check_outputs,
    check_writable,
    inside,
    read_json,
    replacing,
    write_json,
)


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


def test_a_file_and_its_name_are_on_the_disk_afterwards(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(files.os, "fsync", lambda handle: flushed.append(os.readlink("/proc/self/fd/%d" % handle)))
    write_json(str(tmp_path / "x.json"), 1)
    assert len(flushed) == 2 and os.path.dirname(flushed[0]) == flushed[1] == os.path.realpath(str(tmp_path))
    with replacing(str(tmp_path / "table.csv"), durable=False) as temporary, open(temporary, "w"):
        pass
    assert len(flushed) == 2


def test_unwritable_places_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x.json", tmp_path):
        for attempt in (check_writable, lambda p: write_json(p, 1)):
            with pytest.raises(UserError, match="cannot write"):
                attempt(str(path))
    for name in ("x" * 300, "file", "file/y"):
        with pytest.raises(UserError, match="cannot write"):
            check_writable(str(tmp_path / name / "new" / "x.json"))
    check_writable(str(tmp_path / "new" / "newer" / "x.json"))
    assert os.listdir(str(tmp_path)) == ["file"]        # a run that is refused leaves no empty folders


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


def random_json(rng, depth=0):
    """Random content of objects, lists and odd strings, as a list of (name, value) for each object."""
    kind = rng.randint(5 if depth < 4 else 2)
    if kind == 0:
        return ODD[rng.randint(len(ODD))]
    if kind == 1:
        return rng.choice([0, 2.5, -1e-7]).item()
    children = [random_json(rng, depth + 1) for _ in range(rng.randint(4))]
    return children if kind == 2 else tuple((ODD[index] * (1 + index % 2), child)
                                            for index, child in enumerate(children, rng.randint(4)))


ODD = ["a", '":', ' :"', "\\", '\\":', "b: c", "\u00e9", ""]


def as_text(rng, content):
    """JSON text with spaces wherever they may be."""
    def space():
        return rng.choice(["", "", " ", "\n", "\t "])

    if isinstance(content, tuple):
        inner = ",".join(space() + json.dumps(name, ensure_ascii=bool(rng.randint(2))) + space() + ":" + space()
                         + as_text(rng, value) for name, value in content)
        return "{%s}" % (inner + space())
    return "[%s]" % ",".join(as_text(rng, one) for one in content) if isinstance(content, list) else json.dumps(content)


@pytest.mark.parametrize("fast", [True, False])
def test_a_name_that_an_object_has_twice_is_refused_wherever_it_is(tmp_path, monkeypatch, rng, fast):
    if not fast:
        monkeypatch.setattr(files, "orjson", None)
    monkeypatch.setattr(files, "PIECE", 5)
    outcomes = []
    for number in range(400):
        content = random_json(rng) if number % 2 else tuple(("ab"[rng.randint(2)], random_json(rng)) for _ in range(2))
        text = as_text(rng, content)
        (tmp_path / "x.json").write_text(text, encoding="utf-8")
        objects = []
        json.loads(text, object_pairs_hook=objects.append)
        outcomes.append(any(len(dict(one)) < len(one) for one in objects))
        if outcomes[-1]:
            with pytest.raises(UserError, match=r"^file .*x\.json has .* twice in one place, .*: remove or"):
                read_json(str(tmp_path / "x.json"), "file")
        else:
            assert read_json(str(tmp_path / "x.json"), "file") == json.loads(text)
    assert 50 < sum(outcomes) < 350


def test_ordinary_files_are_parsed_once(tmp_path, monkeypatch):
    """... because a second parse, which looks for names that are there twice, takes ten times as long."""
    content = {"database": {"v_%d" % index: {
        "duration": 9.5, "url": "s3://x/?v=%d" % index, "annotations": [{"segment": [1, 2.5], "label": "a: b"}]}
        for index in range(4)}, "taxonomy": [{"node": 1}], "results": {"a": [{"score": 1, "segment": [1, 2]}], "b": []}}
    monkeypatch.setattr(files, "_each_once", lambda *_: pytest.fail("parsed again"))
    for indent in (None, 1):
        (tmp_path / "x.json").write_text(json.dumps(content, indent=indent))
        assert read_json(str(tmp_path / "x.json"), "file") == content


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "..", ".", "", "a//b", "a/./b", "x\0y"])
def test_a_name_from_data_never_leaves_its_folder(tmp_path, name):
    with pytest.raises(UserError, match="rename it in the data"):
        inside(str(tmp_path / "tables"), name, ".csv")


@pytest.mark.parametrize("name", ["v_a", "a/b", "..a", "a..b", " ", "v_$(x)", "-rf", "\u00e9"])
def test_any_other_name_is_a_file_in_the_folder(tmp_path, name):
    path = inside(str(tmp_path), name, ".csv")
    assert path == os.path.join(str(tmp_path), name + ".csv")
    assert os.path.realpath(path).startswith(str(tmp_path) + os.sep)


@pytest.fixture
def pipe(tmp_path):
    """A path that is neither a file nor a folder, as a device is."""
    os.mkfifo(str(tmp_path / "pipe"))
    return tmp_path / "pipe"


def test_what_is_no_file_is_never_replaced(pipe):
    before = os.lstat(str(pipe))
    for attempt in (check_writable, lambda path: write_json(path, 1)):
        with pytest.raises(UserError, match=r"cannot write .*it is no regular file"):
            attempt(str(pipe))
    assert os.lstat(str(pipe))[:2] == before[:2] and os.listdir(str(pipe.parent)) == ["pipe"]
    for attempt in (check_writable, lambda path: write_json(path, 1)):
        with pytest.raises(UserError, match="cannot write /dev/null"):
            attempt("/dev/null")


def test_the_file_that_a_link_leads_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("file", "nothing yet"):
        (tmp_path / "link").symlink_to(tmp_path / "there" / name)
        check_writable(str(tmp_path / "link"))
        write_json(str(tmp_path / "link"), name)
        assert json.loads((tmp_path / "there" / name).read_text()) == name and (tmp_path / "link").is_symlink()
        (tmp_path / "link").unlink()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="cannot write"):
        check_writable(str(tmp_path / "loop"))


def test_outputs_differ_from_each_other_and_from_inputs(tmp_path):
    (tmp_path / "in.json").write_text("1")
    (tmp_path / "link").symlink_to(tmp_path / "in.json")
    inputs = {"--video_anno": str(tmp_path / "in.json")}
    check_outputs({"--a": str(tmp_path / "a"), "--b": str(tmp_path / "b")}, inputs)
    with pytest.raises(UserError, match="--a and --b are the same file"):
        check_outputs({"--a": str(tmp_path / "a"), "--b": str(tmp_path / "sub" / ".." / "a")}, inputs)
    for one in ("in.json", "link", "../%s/in.json" % tmp_path.name):
        with pytest.raises(UserError, match=r"--video_anno and --a are the same file, .*: give another name"):
            check_outputs({"--a": os.path.join(str(tmp_path), one)}, inputs)
    assert (tmp_path / "in.json").read_text() == "1"
