import errno
import json
import os
import pickle

import numpy as np
import pytest
import small_data

from bmn.data import feature_cache, features, packed_features
from bmn.data.feature_files import fitted
from bmn.data.features import open_features
from bmn.data.folder_features import FolderFeatures
from bmn.data.packed_features import PackedFeatures
from bmn.errors import UserError

NAMES = ["v_a", "v_b", "v_c"]


class Counting:
    """Wraps ``FolderFeatures.read`` and remembers which videos were read."""

    def __init__(self, monkeypatch):
        self.names = []
        read = features.FolderFeatures.read
        monkeypatch.setattr(features.FolderFeatures, "read",
                            lambda source, name: self.names.append(name) or read(source, name))


@pytest.fixture
def opt(tmp_path):
    return small_data.make(tmp_path)


@pytest.fixture
def reads(monkeypatch):
    return Counting(monkeypatch)


def opened(opt, names=NAMES, lines=None):
    packed = open_features(opt, names, log=(lambda line: None) if lines is None else lines.append)
    for name in names:
        want = np.load(path(opt, name)) if os.path.exists(path(opt, name)) else small_data.table(name)
        np.testing.assert_array_equal(packed.read(name), want.T.astype(opt.get("feature_cache_dtype", "float32")))
    return packed


def path(opt, name, extension=".npy"):
    folder = os.path.join(opt["data_path"], "csv_mean_10")
    return os.path.join(folder if os.path.isdir(folder) else opt["data_path"], name + extension)


def change(opt, name):
    """Replace the CSV file of a video by a NumPy file with other numbers."""
    os.remove(path(opt, name, ".csv"))
    np.save(path(opt, name), small_data.table(name) + 1)


def packed_path(opt):
    return os.path.join(opt["data_path"], "csv_mean_10.float32.safetensors")


def test_features_are_packed_once_and_then_read_from_the_packed_file(opt, reads):
    assert opened(opt).path == packed_path(opt) and reads.names == NAMES
    packed = opened(opt)
    assert reads.names == NAMES
    features = packed.read("v_a")
    features[:] = 0                                     # this changes a copy and not the file
    assert packed.read("v_a").any()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(packed)).read("v_b"), packed.read("v_b"))
    with pytest.raises(UserError, match="v_z is not in"):
        packed.read("v_z")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_safetensors_library_reads_the_file(opt, dtype):
    safetensors = pytest.importorskip("safetensors", reason="needs the Python package safetensors")
    packed = opened(dict(opt, feature_cache_dtype=dtype))
    status = os.stat(path(opt, "v_b", ".csv"))
    with safetensors.safe_open(packed.path, "np") as file:
        assert list(file.keys()) == NAMES
        assert json.loads(file.metadata()["sources"])["v_b"] == [status.st_size, status.st_mtime_ns]
        for name in NAMES:
            np.testing.assert_array_equal(file.get_tensor(name), small_data.table(name).T.astype(dtype))


def test_a_file_that_the_safetensors_library_wrote_is_read(opt, tmp_path):
    numpy = pytest.importorskip("safetensors.numpy", reason="needs the Python package safetensors")
    theirs = str(tmp_path / "theirs.safetensors")
    numpy.save_file({name: small_data.table(name).T.astype(np.float32).copy() for name in NAMES}, theirs)
    opened(dict(opt, data_path=theirs))


def test_a_packed_file_of_version_1_is_replaced_once(opt, reads):
    old = os.path.join(opt["data_path"], "csv_mean_10.float32.packed")
    with open(old, "wb") as handle:
        handle.write(b"BMN packed features, version 1\n" + b'{"temporal_scale": 10}\n' + bytes(9000))
    with pytest.raises(UserError, match=r"was packed by version 1\.0 of this program: give the folder"):
        open_features(dict(opt, data_path=old), NAMES)
    lines = []
    opened(opt, lines=lines)
    assert lines[-1].startswith("removed " + old) and not os.path.exists(old)
    opened(opt)
    assert reads.names == NAMES


def test_a_users_own_file_called_packed_stays(opt):
    path = os.path.join(opt["data_path"], "csv_mean_10.float32.packed")
    with open(path, "w") as handle:
        handle.write("my notes")
    opened(opt)
    assert os.path.exists(path)


def test_float16_is_checked_for_overflow(opt):
    opt["feature_cache_dtype"] = "float16"
    packed = opened(opt)
    assert packed.read("v_a").dtype == np.float32 and packed.path.endswith(".float16.safetensors")
    table = small_data.table("v_b")
    table[3, 2] = 1e5                       # one is enough
    np.save(path(opt, "v_b"), table)
    os.remove(path(opt, "v_b", ".csv"))
    with pytest.raises(UserError, match="v_b are too large for float16: give --feature_cache_dtype float32"):
        open_features(opt, NAMES, log=lambda line: None)


def test_only_what_changed_is_read_again(opt, reads):
    opened(opt)
    change(opt, "v_b")
    lines = []
    opened(opt, lines=lines)
    assert reads.names == NAMES + ["v_b"] and "2 of them unchanged" in lines[0]


def test_a_change_that_keeps_name_and_size_is_noticed(opt, reads):
    opened(opt)
    status = os.stat(path(opt, "v_a", ".csv"))
    os.utime(path(opt, "v_a", ".csv"), ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    opened(opt)
    assert reads.names == NAMES + ["v_a"]


def test_more_videos_are_added_and_none_is_dropped(opt, reads):
    opened(opt)
    opened(opt, NAMES + ["v_d"])
    assert reads.names == NAMES + ["v_d"]
    assert "v_a" in opened(opt, ["v_d"]) and reads.names == NAMES + ["v_d"]


def test_a_video_whose_file_is_gone_leaves_the_cache(opt):
    opened(opt)
    os.remove(path(opt, "v_b", ".csv"))
    packed = open_features(dict(opt, skip_missing=1), NAMES, log=lambda line: None)
    assert "v_b" not in packed and "v_c" in packed


def test_a_reader_keeps_what_it_opened(opt, monkeypatch):
    monkeypatch.setattr(packed_features, "RENEW", 1)
    before = opened(opt)
    change(opt, "v_a")
    opened(opt)
    np.testing.assert_array_equal(before.read("v_a"), small_data.table("v_a").T.astype(np.float32))


@pytest.mark.parametrize("damage", [
    lambda content: content[:-1], lambda content: content[:200], lambda content: content[:4], lambda content: b"",
    lambda content: content + b"more", lambda content: b"\xff" + content[1:], lambda content: bytes(8) + content[8:],
    lambda content: (1 << 62).to_bytes(8, "little") + content[8:], lambda content: content[:8] + b"[" + content[9:],
    lambda content: (2).to_bytes(8, "little") + b"[]" + content[10:],
    lambda content: content.replace(b'"F32"', b'"I32"'), lambda content: content.replace(b'"F32"', b'"F16"', 1),
    lambda content: content.replace(b'"shape"', b'"shaqe"'), lambda content: content.replace(b"[0, 240]", b"[1, 241]"),
    lambda content: content.replace(b"[0, 240]", b"[0, 480]"), lambda content: content.replace(b"[240,", b"[000,"),
    lambda content: content.replace(b'"sources": "{', b'"sources": "['),
    lambda content: content.replace(b"[6, 10]", b"[6, 20]"), lambda content: content.replace(b"[6, 10]", b"[4, 10]")])
def test_a_damaged_cache_is_made_anew_and_a_damaged_data_path_is_reported(opt, damage):
    opened(opt)
    with open(packed_path(opt), "rb") as handle:
        content = handle.read()
    with open(packed_path(opt), "wb") as handle:
        handle.write(damage(content))
    with pytest.raises(UserError) as error:
        open_features(dict(opt, data_path=packed_path(opt)), NAMES)
    assert packed_path(opt) in str(error.value)
    lines = []
    opened(opt, lines=lines)
    assert lines[0].endswith("the file is made again") and packed_path(opt) in lines[0]


def test_why_a_packed_file_is_made_again_is_told(opt):
    """... also where the sources are wrong as well, and the old file stays."""
    opt["data_path"] = os.path.join(opt["data_path"], "csv_mean_10")
    opened(opt)
    lines = []
    with pytest.raises(UserError, match=r"v_a\.csv has 10 rows"):
        open_features(dict(opt, temporal_scale=20), NAMES, log=lines.append)
    assert lines[0].endswith("csv_mean_10.float32.safetensors have the shape [6, 10] for video v_a, but --feat_dim is "
                             "6 and --temporal_scale 20 (C x T): the file is made again")
    opened(opt)


def test_a_packed_file_can_be_the_data_path(opt):
    opened(opt)
    assert opened(dict(opt, data_path=packed_path(opt))).path == packed_path(opt)
    with pytest.raises(UserError, match=r"shape \[6, 10\] for video v_a, but --feat_dim is 6 and --temporal_scale 20"):
        open_features(dict(opt, data_path=packed_path(opt), temporal_scale=20), NAMES)


def test_feature_cache_can_be_a_folder(opt, tmp_path):
    opt["feature_cache"] = str(tmp_path / "cache")
    assert os.path.dirname(opened(opt).path) == str(tmp_path / "cache")
    other = small_data.make(tmp_path / "other", NAMES)      # the same names, other files
    other["feature_cache"] = opt["feature_cache"]
    assert opened(other).path != opened(opt).path


def test_off_reads_the_files_and_writes_nothing(opt, tmp_path, reads):
    before = sorted(tmp_path.rglob("*"))
    opened(dict(opt, feature_cache="off"))
    assert reads.names == NAMES and sorted(tmp_path.rglob("*")) == before


def refuse(monkeypatch, *folders):
    """Let writing in these folders fail from now on."""
    replacing = feature_cache.replacing

    def refusing(path):
        if os.path.dirname(path) in folders:
            raise UserError("cannot write") from OSError(28, "No space left on device")
        return replacing(path)
    monkeypatch.setattr(feature_cache, "replacing", refusing)


def test_the_output_folder_is_used_when_the_data_folder_is_full(opt, monkeypatch, reads):
    refuse(monkeypatch, opt["data_path"])
    output = os.path.join(os.path.dirname(opt["result_file"]), "feature_cache")
    lines = []
    assert os.path.dirname(opened(opt, lines=lines).path) == output
    assert sum("No space left on device, trying " + output in line for line in lines) == 1
    opened(opt)                                         # the next time it is found there
    assert reads.names == NAMES
    refuse(monkeypatch, opt["data_path"], output)
    change(opt, "v_a")
    with pytest.raises(UserError) as error:
        opened(opt)
    assert all(part in str(error.value) for part in (opt["data_path"], output, "--feature_cache", "off"))


def test_unusable_files_are_counted_and_nothing_is_left(opt, tmp_path):
    for name in ("v_a", "v_c"):
        with open(path(opt, name, ".csv"), "a") as handle:
            handle.write("nan,1,2,3,4,5\n")
    with pytest.raises(UserError) as error:
        open_features(opt, NAMES, log=lambda line: None)
    assert "v_a.csv has 11 rows" in str(error.value) and "2 files are unusable" in str(error.value)
    assert not os.path.exists(packed_path(opt)) and not list(tmp_path.rglob("*.tmp"))


def test_packing_stops_looking_for_more_after_some_unusable_files(opt, monkeypatch):
    monkeypatch.setattr(feature_cache, "FLAWS", 2)
    for name in NAMES[:3]:
        with open(path(opt, name, ".csv"), "a") as handle:
            handle.write("nan,1,2,3,4,5\n")
    with pytest.raises(UserError, match=r"2 or more files are unusable: tools/check_data\.py lists them"):
        opened(opt)


def test_leftovers_of_a_killed_process_are_cleared_away(opt, tmp_path):
    leftover = os.path.join(opt["data_path"], ".csv_mean_10.float32.safetensors.abc.tmp")
    other = os.path.join(opt["data_path"], ".csv_mean_10.float16.safetensors.abc.tmp")
    for name in (leftover, other):
        open(name, "w").close()
    opened(opt)
    assert not os.path.exists(leftover) and os.path.exists(other)


def test_leftovers_of_another_machine_stay(opt, monkeypatch):
    monkeypatch.setattr(feature_cache.platform, "node", lambda: "one")
    opened(opt)
    leftover = os.path.join(opt["data_path"], ".csv_mean_10.float32.safetensors.abc.tmp")
    open(leftover, "w").close()
    for machine, stays in (("two", True), ("two", False)):
        monkeypatch.setattr(feature_cache.platform, "node", lambda machine=machine: machine)
        change(opt, "v_a" if stays else "v_b")
        opened(opt)
        assert os.path.exists(leftover) == stays


def test_who_packs_is_written_down_while_it_packs(tmp_path):
    """Not only afterwards: another machine, where the lock does not hold, looks meanwhile."""
    with feature_cache._alone(str(tmp_path / "x.safetensors"), print):
        assert (tmp_path / ".x.safetensors.lock").read_text() == feature_cache.platform.node()


def test_the_table_of_a_packed_video_has_time_in_its_rows(tmp_path):
    """As many positions as features, where nothing but the table itself can tell which is which."""
    packed = open_features(small_data.make(tmp_path, temporal_scale=6), NAMES, log=lambda line: None)
    numbers = small_data.table("v_a", 6).astype(np.float32)
    np.testing.assert_array_equal(packed.table("v_a")[0], numbers)
    np.testing.assert_array_equal(fitted(*packed.table("v_a"), 6, 6, "v_a"), numbers.T)


def test_a_folder_that_cannot_be_packed_is_left_as_it_was(opt, monkeypatch):
    """No lock file stays; who waited for the lock that was removed takes the new one."""
    np.save(path(opt, "v_a"), np.full((10, 6), np.nan))
    os.remove(path(opt, "v_a", ".csv"))
    before = sorted(os.listdir(opt["data_path"]))
    with pytest.raises(UserError, match="v_a"):
        open_features(opt, NAMES, log=lambda line: None)
    assert sorted(os.listdir(opt["data_path"])) == before
    removed, locked = [], feature_cache._locked

    def removed_meanwhile(lock, log, path):
        if not removed:
            removed.append(os.remove(lock.name))
        return locked(lock, log, path)

    monkeypatch.setattr(feature_cache, "_locked", removed_meanwhile)
    with feature_cache._alone(packed_path(opt), print), open(packed_path(opt), "w"):
        assert feature_cache.fcntl is None or os.path.exists(
            os.path.join(opt["data_path"], ".csv_mean_10.float32.safetensors.lock"))


def test_a_disk_that_fails_while_it_is_locked_is_reported(opt, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(feature_cache.fcntl, "flock", fails)
    with pytest.raises(UserError, match=r"cannot be written .*Input/output error"):
        open_features(opt, NAMES, log=lambda line: None)


def test_features_are_packed_without_locks_too(opt, monkeypatch):
    monkeypatch.setattr(feature_cache, "fcntl", None)
    opened(opt)


def test_a_cache_that_is_no_folder_is_reported(opt, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--feature_cache"):
        open_features(dict(opt, feature_cache=str(tmp_path / "file")), NAMES)


def test_a_missing_packed_file_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"x\.safetensors does not exist"):
        PackedFeatures(str(tmp_path / "x.safetensors"), 10, 6)


def test_a_flipped_bit_in_a_name_of_the_header_is_repaired(opt, reads):
    opened(opt)
    with open(packed_path(opt), "rb") as handle:
        content = handle.read()
    at = content.index(b'"v_b": {') + 3         # the tensor's name, and not that among the sources
    with open(packed_path(opt), "wb") as handle:
        handle.write(content[:at] + b"z" + content[at + 1:])
    lines = []
    opened(opt, lines=lines)
    assert reads.names == NAMES * 2 and any("are damaged" in line for line in lines)
    opened(opt)
    assert reads.names == NAMES * 2


@pytest.mark.parametrize("header", [
    b'{"a":' * 3000, b'{"__metadata__": {"sources": ' + json.dumps("[" * 100000).encode() + b"}}",
    b'{"v_a": {"dtype": "F32", "shape": [6, 10], "data_offsets": [0.0, 240.0]}}',
    b'{"v_a": {"dtype": "F32", "shape": [6, 10], "data_offsets": [false, 240]}}',
    b'{"v_a": {"dtype": "F32", "shape": [6, 10], "data_offsets": [0, 240]}, '
    b'"__metadata__": {"sources": "{\\"v_b\\": []}"}}'])
def test_a_strange_header_is_refused(tmp_path, header):
    path = str(tmp_path / "x.safetensors")
    with open(path, "wb") as handle:
        handle.write(len(header).to_bytes(8, "little") + header + bytes(240))
    with pytest.raises(UserError, match="are damaged"):
        PackedFeatures(path, 10, 6)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, None])
def test_space_is_reserved_also_where_the_disk_cannot(tmp_path, monkeypatch, number):
    """... by the size of the file; None: the system has no such call."""
    def cannot(*_):
        raise OSError(number, "cannot")
    if number is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", cannot)
    with open(str(tmp_path / "x"), "wb") as handle:
        feature_cache._reserve(handle, 12345)
    assert (tmp_path / "x").stat().st_size == 12345


def test_a_full_disk_shows_before_the_work(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with open(str(tmp_path / "x"), "wb") as handle, pytest.raises(OSError, match="No space"):
        feature_cache._reserve(handle, 12345)


# Features at their own rate, for windows

def save_rows(folder, lengths, by_row):
    """Arrays of so many rows, [rows, 6] or [6, rows], and {video: float32 [6, rows]}."""
    wanted = {}
    os.makedirs(str(folder), exist_ok=True)
    for name, rows in lengths.items():
        table = small_data.table(name, rows).astype(np.float32)
        np.save(str(folder / (name + ".npy")), table if by_row else table.T)
        wanted[name] = table.T
    return wanted


def of_windows(folder, **more):
    return small_data.with_defaults(dict({"data_path": str(folder), "feat_dim": 6, "window": 10,
                                          "result_file": str(folder) + "/out/result.json"}, **more))


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_of_any_number_are_packed_and_read_in_part(tmp_path, rng, by_row, dtype):
    lengths = {"v_a": 37, "v_b": 1, "v_c": 400}
    wanted = save_rows(tmp_path / "rows", lengths, by_row)
    opt = of_windows(tmp_path / "rows", feature_cache_dtype=dtype)
    packed = open_features(opt, list(lengths), log=lambda line: None)
    assert os.path.basename(packed.path) == "rows.rows.%s.safetensors" % dtype
    for name, rows in lengths.items():
        assert packed.rows(name) == rows
        whole = wanted[name].astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(packed.read(name), whole)
        for _ in range(20):
            first, step = rng.randint(0, rows), rng.randint(1, 4)
            part = slice(first, rng.randint(first, rows) + 1, step)
            found = packed.read(name, part)
            np.testing.assert_array_equal(found, whole[:, part])
            assert found.dtype == np.float32 and found.flags.c_contiguous and found.flags.writeable
    again = open_features(opt, list(lengths), log=pytest.fail)
    np.testing.assert_array_equal(again.read("v_c"), packed.read("v_c"))


def test_a_change_of_length_is_packed_again_and_the_rest_kept(tmp_path):
    save_rows(tmp_path / "rows", {"v_a": 5, "v_b": 9}, True)
    opt, lines = of_windows(tmp_path / "rows"), []
    open_features(opt, ["v_a", "v_b"], log=lines.append)
    wanted = save_rows(tmp_path / "rows", {"v_a": 7}, True)
    packed = open_features(opt, ["v_a", "v_b"], log=lines.append)
    assert packed.rows("v_a") == 7 and packed.rows("v_b") == 9 and "(1 of them unchanged)" in "".join(lines)
    np.testing.assert_array_equal(packed.read("v_a"), wanted["v_a"])
    np.testing.assert_array_equal(packed.read("v_b"), small_data.table("v_b", 9).T.astype(np.float32))


@pytest.mark.parametrize("by_row", [True, False])
def test_a_packed_file_of_others_serves_windows(tmp_path, by_row):
    numpy = pytest.importorskip("safetensors.numpy", reason="needs the Python package safetensors")
    tables = {name: small_data.table(name, rows).astype(np.float32) for name, rows in (("v_a", 8), ("v_b", 3))}
    path = str(tmp_path / "theirs.safetensors")
    numpy.save_file({name: np.ascontiguousarray(one if by_row else one.T) for name, one in tables.items()}, path)
    packed = open_features(of_windows(path), list(tables), log=lambda line: None)
    for name, table in tables.items():
        np.testing.assert_array_equal(packed.read(name, slice(1, 3)), table[1:3].T)
    with pytest.raises(UserError, match=r"shape .* for video v_., but --window needs rows of --feat_dim 5"):
        PackedFeatures(path, 0, 5)
    numpy.save_file({"v_a": np.zeros((6, 6), np.float32)}, path)        # which axis is time?
    with pytest.raises(UserError, match="no other video shows which axis is time"):
        PackedFeatures(path, 0, 6)


def test_rows_of_another_width_are_refused(tmp_path):
    save_rows(tmp_path / "rows", {"v_a": 8}, True)
    np.save(str(tmp_path / "rows" / "v_b.npy"), np.zeros((9, 5), np.float32))
    with pytest.raises(UserError, match=r"v_b\.npy have 9 rows and 5 columns, but --feat_dim is 6"):
        open_features(of_windows(tmp_path / "rows"), ["v_a", "v_b"], log=lambda line: None)
    table = small_data.table("v_b", 9, 6)
    table[4, 5] = np.nan
    np.save(str(tmp_path / "rows" / "v_b.npy"), table)
    with pytest.raises(UserError, match=r"v_b\.npy are empty or hold a number that is not finite"):
        open_features(of_windows(tmp_path / "rows"), ["v_a", "v_b"], log=lambda line: None)


def test_features_that_change_while_they_are_packed_are_said(tmp_path, monkeypatch):
    save_rows(tmp_path / "rows", {"v_a": 8, "v_b": 9}, True)
    read = FolderFeatures.read
    monkeypatch.setattr(FolderFeatures, "read", lambda self, name: read(self, name)[:, :5 if name == "v_b" else None])
    with pytest.raises(UserError, match="the features of video v_b have changed while they were read: start again"):
        open_features(of_windows(tmp_path / "rows"), ["v_a", "v_b"], log=lambda line: None)
