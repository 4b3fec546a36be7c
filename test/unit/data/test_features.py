import os
import pathlib
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import small_data
import torch
from conftest import ROOT

from bmn.data.feature_files import read_csv, write_csv
from bmn.data.features import check_features, open_features, open_source, say_how_files_are_read
from bmn.data.packed_features import stored_name
from bmn.errors import UserError
from bmn.options import with_defaults

TABLE = small_data.table("v_a")             # [10, 6]


def source_of(folder, **more):
    return open_source(dict({"data_path": str(folder), "temporal_scale": 10, "feat_dim": 6}, **more))


def says(error, *parts):
    """The text of the error: one sentence with all ``parts``."""
    text = str(error.value)
    assert "\n" not in text and all(part in text for part in parts), text
    return text


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_csv_is_read_as_pandas_reads_it(tmp_path, rng, ending):
    import pandas
    path = str(tmp_path / "v.csv")
    numbers = rng.randn(30, 7) * 10.0 ** rng.randint(-12, 12, (30, 7))
    pandas.DataFrame(numbers).to_csv(path, index=False)
    with open(path, newline="") as handle:
        text = handle.read()
    with open(path, "w", newline="") as handle:
        handle.write(text.replace("\n", ending))
    np.testing.assert_array_equal(read_csv(path), pandas.read_csv(path).values)


def test_the_published_raw_files_are_read(shared):
    assert [read_csv(os.path.join(shared, "features", "v_test%d.csv" % number)).shape for number in (1, 2)] == [
        (5, 400), (5, 400)]


def test_cells_with_blanks_and_plus_signs_are_read(tmp_path):
    (tmp_path / "v.csv").write_text("f0,f1\n1, 2 \n+3e0 ,4\n")
    np.testing.assert_array_equal(read_csv(str(tmp_path / "v.csv")), [[1, 2], [3, 4]])


@pytest.mark.parametrize("save,table", [
    (np.save, TABLE), (np.save, TABLE.T), (np.save, TABLE.astype(np.float16)), (np.savez, TABLE),
    (np.savez_compressed, TABLE.T.astype(np.float32))])
def test_numpy_files_of_either_orientation_are_read(tmp_path, save, table):
    save(str(tmp_path / ("v_a.npy" if save is np.save else "v_a.npz")), table)
    got = source_of(tmp_path).read("v_a")
    assert got.dtype == np.float32 and got.flags.c_contiguous
    np.testing.assert_array_equal(got, TABLE.T.astype(table.dtype).astype(np.float32))


def test_hdf5_of_either_orientation_and_in_groups_is_read(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(str(tmp_path / "all.h5"), "w") as handle:
        handle["v_a"] = TABLE
        handle["v_b"] = TABLE.T + 1
        handle["v_c/c3d_features"] = TABLE + 2
        handle["v_d/one"] = handle["v_d/two"] = TABLE
        handle["v_e"] = np.full((10, 6), np.inf)
    source = source_of(tmp_path / "all.h5")
    assert "v_a" in source and "v_z" not in source
    source = pickle.loads(pickle.dumps(source))
    for name, more in (("v_a", 0), ("v_b", 1), ("v_c", 2)):
        np.testing.assert_array_equal(source.read(name), (TABLE.T + more).astype(np.float32))
    with pytest.raises(UserError) as error:
        source.read("v_d")
    says(error, "all.h5: v_d", "a group of 2")
    with pytest.raises(UserError) as error:
        source.read("v_e")
    says(error, "all.h5: v_e", "inf")
    assert "float32" not in str(error.value)            # the file itself has it
    opt = with_defaults({"data_path": str(tmp_path / "all.h5"), "temporal_scale": 10, "feat_dim": 6})
    features = open_features(opt, ["v_a", "v_b", "v_c"], log=lambda line: None)
    assert features.path == str(tmp_path / "all.h5.float32.safetensors")
    np.testing.assert_array_equal(features.read("v_c"), (TABLE.T + 2).astype(np.float32))


def test_a_file_that_is_no_hdf5_is_refused(tmp_path):
    pytest.importorskip("h5py")
    (tmp_path / "all.h5").write_text("nothing")
    with pytest.raises(UserError) as error:
        source_of(tmp_path / "all.h5").names()
    says(error, "all.h5", "not a readable HDF5 file")


def test_a_square_table_is_read_from_csv_only(tmp_path):
    square = TABLE[:6]
    np.save(str(tmp_path / "v_a.npy"), square)
    small_data.write_csv(str(tmp_path / "v_b.csv"), square)     # in a CSV file rows are time
    source = source_of(tmp_path, temporal_scale=6)
    np.testing.assert_array_equal(source.read("v_b"), square.T.astype(np.float32))
    with pytest.raises(UserError) as error:
        source.read("v_a")
    says(error, "v_a.npy", "nothing beside it shows which axis is time", "CSV")


def test_a_csv_file_of_the_other_orientation_is_refused(tmp_path):
    small_data.write_csv(str(tmp_path / "v_a.csv"), TABLE.T)
    with pytest.raises(UserError) as error:
        source_of(tmp_path).read("v_a")
    says(error, "6 rows and 10 columns")


CSV = "f0,f1,f2,f3,f4,f5\n" + "1,2,3,4,5,6\n" * 10


@pytest.mark.parametrize("text,parts", [
    (CSV.replace(",", ",0,", 1).replace("\n1", "\n1,0"),
     ["10 rows and 7 columns", "--feat_dim 6", "tools/prepare_features.py fills", "give --feat_dim 8"]),
    (CSV.replace(",", ",0,0,", 1).replace("\n1", "\n1,0,0"), ["10 rows and 8 columns", ": give --feat_dim 8"]),
    (CSV + "1,2,3,4,5,6\n", ["11 rows", "--temporal_scale is 10", "tools/prepare_features.py"]),
    (CSV + "1,2,3,4,5\n", ["5 columns in line 12", "6 in its header line"]),
    (CSV.replace("3", "three", 5), ["'three' in line 2, column 3"]),
    (CSV.replace("1,2", "1,", 1), ["'' in line 2, column 2"]),
    (CSV.replace("1,2", "NA,2", 4), ["'NA' in line 2, column 1"]),
    (CSV.replace("6\n", "null\n", 1), ["'null' in line 2, column 6"]),
    (CSV.replace("6\n", "NaN\n", 1), ["nan at position 1 of 10, feature 6"]),
    (CSV.replace("1,2", "1e60,2", 3), ["1e+60 at position 1 of 10, feature 1, which is too large for float32"]),
    ("", ["no rows"]),
    ("f0,f1\n", ["no rows"]),
])
def test_what_is_wrong_with_a_csv_file_is_reported(tmp_path, text, parts):
    (tmp_path / "v_a.csv").write_text(text)
    with pytest.raises(UserError) as error:
        source_of(tmp_path).read("v_a")
    says(error, "v_a.csv", *parts)


@pytest.mark.parametrize("write,parts", [
    (lambda path: np.savez(path, one=TABLE, two=TABLE), ["holds 2 arrays (one, two)", "'feats'"]),
    (lambda path: np.savez(path, np.array([TABLE, TABLE])), ["shape (2, 10, 6)"]),
    (lambda path: np.savez(path, TABLE.astype(complex)), ["complex"]),
    (lambda path: np.savez(path, np.array([[object()]])), ["not a readable NumPy file"]),
    (lambda path: pathlib.Path(path).write_bytes(b""), ["not a readable NumPy file"]),
    (lambda path: pathlib.Path(path).write_bytes(b"PK\3\4 and no more"), ["not a readable NumPy file"]),
])
def test_what_is_wrong_with_a_numpy_file_is_reported(tmp_path, write, parts):
    write(str(tmp_path / "v_a.npz"))
    with pytest.raises(UserError) as error:
        source_of(tmp_path).read("v_a")
    says(error, "v_a.npz", *parts)


def test_missing_features_are_counted_and_named_before_anything_starts(tmp_path):
    opt = small_data.make(tmp_path)
    names = ["v_%02d" % number for number in range(20)] + ["v_a"]
    with pytest.raises(UserError) as error:
        open_features(opt, names)
    says(error, "20 of 21 videos", "csv_mean_10", "v_00, v_01, v_02, ...",
         "it has those of 5 videos (v_a, v_b, v_c, ...)", "with or without v_", "--skip_missing")
    assert check_features(dict(opt, skip_missing=1), names, open_source(opt)) == names[:20]
    with pytest.raises(UserError) as error:
        check_features(dict(opt, skip_missing=1), names[:20], open_source(opt))
    assert "20 of 20" in str(error.value) and "--skip_missing" not in str(error.value)


def test_features_of_another_temporal_scale_are_mentioned(tmp_path):
    opt = small_data.make(tmp_path)
    with pytest.raises(UserError) as error:
        open_features(dict(opt, temporal_scale=100), ["v_a"])
    says(error, "there is csv_mean_10, but --temporal_scale 100 looks for csv_mean_100")


def test_a_missing_data_path_is_reported(tmp_path):
    with pytest.raises(UserError) as error:
        open_features(with_defaults({"data_path": str(tmp_path / "nowhere")}), ["v_a"])
    says(error, "--data_path", "nowhere does not exist", "csv_mean_100")


class Rank:
    """One of two ranks; ``other`` is what the other one passes to gather()."""

    def __init__(self, local_rank, other):
        self.local_rank, self.world_size, self.other = local_rank, 2, other

    def gather(self, value):
        return [value, self.other] if self.local_rank == 0 else [self.other, value]


def test_a_problem_on_one_rank_stops_all(tmp_path):
    opt = small_data.make(tmp_path)
    with pytest.raises(UserError, match="a broken file"):
        open_features(opt, ["v_a"], Rank(0, ("a broken file", ())), lambda line: None)


def test_other_ranks_use_what_rank_0_packed(tmp_path):
    opt = small_data.make(tmp_path)
    packed = open_features(opt, ["v_a"], Rank(0, (None, ())), lambda line: None)
    lines = []
    assert open_features(opt, ["v_a"], Rank(1, (None, ())), lines.append).path == packed.path
    assert not lines


def test_other_ranks_do_not_pack_before_rank_0(tmp_path):
    """When rank 1 meets rank 0, it has packed nothing."""
    seen = []

    class Waiting(Rank):
        def gather(self, value):
            seen.extend(tmp_path.rglob("*.safetensors"))
            return super().gather(value)
    open_features(small_data.make(tmp_path), ["v_a"], Waiting(1, (None, ())), lambda line: None)
    assert not seen


def test_machines_that_miss_different_files_are_reported(tmp_path):
    opt = dict(small_data.make(tmp_path), skip_missing=1)
    with pytest.raises(UserError) as error:
        open_features(opt, ["v_a", "v_z"], Rank(0, (None, ())), lambda line: None)
    says(error, "different feature files", "0 and 1")


def test_a_single_process_with_a_runtime_opens_features(tmp_path):
    runtime = SimpleNamespace(local_rank=0, world_size=1)
    assert "v_a" in open_features(small_data.make(tmp_path), ["v_a"], runtime, lambda line: None)


# What other programs write

@pytest.mark.parametrize("text,rows", [
    ("1,2\n3,4\n", [[1, 2], [3, 4]]),                                   # no header line
    ("1.5,-2e3\n3,nan\n", [[1.5, -2000], [3, np.nan]]),
    ("\ufeff1,2\n3,4\n", [[1, 2], [3, 4]]),                             # a byte order mark, as Excel writes it
    ("0,1\n3,4\n", [[3, 4]]),                                           # the names that pandas gives to columns
    ("1,0\n3,4\n", [[1, 0], [3, 4]]),
    (",f0,f1\n0,1,2\n1,3,4\n", [[1, 2], [3, 4]]),                       # the index that pandas writes
    ("Unnamed: 0,f0,f1\n0,1,2\n1,3,4\n", [[1, 2], [3, 4]]),
    (",0,1\n0,1,2\n1,3,4\n", [[1, 2], [3, 4]]),
    (",f0,f1\n0,1,2\n2,3,4\n", [[0, 1, 2], [2, 3, 4]]),                 # it does not count
    ("a,f0,f1\n0,1,2\n1,3,4\n", [[0, 1, 2], [1, 3, 4]]),                # it has a name
])
def test_a_header_line_and_an_index_are_told_from_numbers(tmp_path, text, rows):
    (tmp_path / "v.csv").write_text(text, encoding="utf-8")
    np.testing.assert_array_equal(read_csv(str(tmp_path / "v.csv")), rows)


def test_an_index_column_is_said_once(tmp_path):
    opt = small_data.make(tmp_path)
    for name in ("v_a", "v_b"):
        path = os.path.join(opt["data_path"], "csv_mean_10", name + ".csv")
        rows = ["%d," % number + ",".join(map(repr, row)) for number, row in enumerate(small_data.table(name).tolist())]
        pathlib.Path(path).write_text("\n".join([",f0,f1,f2,f3,f4,f5", *rows]) + "\n")
    lines = []
    features = open_features(opt, ["v_a", "v_b"], log=lines.append)
    np.testing.assert_array_equal(features.read("v_b"), small_data.table("v_b").T.astype(np.float32))
    assert ["is taken for an index" in line for line in lines].count(True) == 1


@pytest.mark.parametrize("cell", ["1_0", "1,0_1", "\u0661", "0x10", "1.0f", "--1", "1 2"])
def test_cells_are_what_c_reads(tmp_path, cell):
    (tmp_path / "v.csv").write_text("f0,f1\n%s,1\n" % cell, encoding="utf-8")
    with pytest.raises(UserError):
        read_csv(str(tmp_path / "v.csv"))


def torch_saved(path, value):
    torch = pytest.importorskip("torch")
    torch.save(torch.from_numpy(value) if isinstance(value, np.ndarray) else value, path)


def pickled(path, value, protocol=2):
    with open(path, "wb") as handle:
        pickle.dump(value, handle, protocol)


FLOATS = TABLE.astype(np.float32)
WRITERS = {
    "several arrays, one of them a table of floats": ("npz", lambda path: np.savez(
        path, x=FLOATS, n_probs=np.arange(10), names=np.float32([1, 2]))),
    "several tables, one called feats": ("npz", lambda path: np.savez(path, feats=FLOATS, probabilities=FLOATS + 1)),
    "(1, T, C)": ("npy", lambda path: np.save(path, FLOATS[None])),
    "(C, T, 1, 1)": ("npy", lambda path: np.save(path, FLOATS.T[..., None, None])),
    "column by column": ("npy", lambda path: np.save(path, np.asfortranarray(FLOATS))),
    "big-endian": ("npy", lambda path: np.save(path, FLOATS.astype(">f8"))),
    "tensor": ("pt", lambda path: torch_saved(path, FLOATS)),
    "tensor of one video": ("pt", lambda path: torch_saved(path, FLOATS[None])),
    "pickle": ("pkl", lambda path: pickled(path, FLOATS)),
    "pickle of protocol 0": ("pkl", lambda path: pickled(path, FLOATS, 0)),
    "pickle of the newest protocol": ("pkl", lambda path: pickled(path, FLOATS, pickle.HIGHEST_PROTOCOL)),
    "pickle column by column": ("pkl", lambda path: pickled(path, np.asfortranarray(FLOATS), 4)),
    "pickle, big-endian": ("pkl", lambda path: pickled(path, FLOATS.astype(">f8"))),
    "pickle of a dict": ("pkl", lambda path: pickled(path, {"feats": FLOATS.T, "name": "a", "fps": 25.0})),
}


@pytest.mark.parametrize("how", sorted(WRITERS))
def test_array_files_of_others_are_read(tmp_path, how):
    kind, write = WRITERS[how]
    write(str(tmp_path / ("v_a." + kind)))
    np.testing.assert_array_equal(source_of(tmp_path).read("v_a"), FLOATS.T)


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["pkl", "pt", "npy", "npz"])
def test_no_feature_file_runs_code(tmp_path, kind):
    canary = str(tmp_path / "ran")
    evil = {"feats": FLOATS, "more": _Touch(canary)}
    path = str(tmp_path / ("v_a." + kind))
    if kind == "pkl":
        pickled(path, evil)
    elif kind == "pt":
        torch_saved(path, evil)
    elif kind == "npy":
        np.save(path, np.array([[_Touch(canary)]], object), allow_pickle=True)
    else:
        np.savez(path, np.array([[_Touch(canary)]], object), allow_pickle=True)
    with pytest.raises(UserError) as error:
        source_of(tmp_path).read("v_a")
    assert not os.path.exists(canary) and "v_a." + kind in str(error.value)


@pytest.mark.parametrize("header", [
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (17592186044416, 1), }",            # 64 TiB
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 6), }",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (10, 6.0), }",
    b"{'descr': 'O', 'fortran_order': 0, 'shape': (1, 1)}",
    b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (10, 6), }", b"(" * 3000, b"__import__('os')", b"",
    b"{'descr': '<f4'}", b"\xff" * 40, b"{'descr': '<q9', 'fortran_order': False, 'shape': (10, 6), }"])
def test_a_damaged_numpy_header_is_refused(tmp_path, header):
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(240)
    (tmp_path / "v_a.npy").write_bytes(content)
    with pytest.raises(UserError) as error:
        source_of(tmp_path).read("v_a")
    says(error, "v_a.npy")


def test_features_of_a_single_position_stay_a_table(tmp_path):
    for shape in ((1, 6), (6, 1), (1, 6, 1), (1, 1, 6)):
        np.save(str(tmp_path / "v_a.npy"), np.ones(shape))
        table, _ = source_of(tmp_path).table("v_a")
        assert table.ndim == 2 and sorted(table.shape) == [1, 6]


def test_bytes_beside_an_array_in_a_pickle_are_those_that_are_there(tmp_path):
    """As protocol 5 stores them: their number is only announced, so memory is not taken for what is missing."""
    def text(announced):
        return b"\x80\x04\x96" + announced.to_bytes(8, "little") + bytes(3)

    (tmp_path / "v_a.pkl").write_bytes(b"\x80\x04}(\x8c\x04more" + text(3)[2:] + b"\x8c\x05feats"
                                       + pickle.dumps(FLOATS, 2)[2:-1] + b"u.")
    np.testing.assert_array_equal(source_of(tmp_path).read("v_a"), FLOATS.T)
    for announced in (2, 4, 2 ** 60):
        (tmp_path / "v_a.pkl").write_bytes(text(announced) + b".")
        with pytest.raises(UserError) as error:
            source_of(tmp_path).read("v_a")
        says(error, "v_a.pkl")


@pytest.mark.parametrize("kept", [150, 300, -1])
@pytest.mark.parametrize("number", ["<f2", "<f4", ">f8", "u1"])
def test_a_numpy_file_that_is_cut_off_is_called_so(tmp_path, number, kept):
    np.save(str(tmp_path / "v_a.npy"), np.ones((30, 12), number))
    content = (tmp_path / "v_a.npy").read_bytes()
    (tmp_path / "v_a.npy").write_bytes(content[:kept])
    with pytest.raises(UserError) as error:
        source_of(tmp_path).read("v_a")
    says(error, "v_a.npy is cut off", "360 numbers of %s bytes" % number[-1], "%d bytes are there"
         % (len(content[:kept]) - 128))


def test_names_are_found_with_and_without_the_prefix_and_in_folders_of_subsets(tmp_path):
    for file in ("v_a.npy", "b.npy", "training/c.npy", "Validation/v_d.npy", "other/e.npy"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        np.save(str(tmp_path / file), TABLE)
    source = source_of(tmp_path)
    for name in "abcd":
        for asked in (name, "v_" + name):
            assert asked in source
            np.testing.assert_array_equal(source.read(asked), FLOATS.T)
    assert "e" not in source
    np.save(str(tmp_path / "v_b.npy"), TABLE)
    with pytest.raises(UserError, match="has features of v_b and of b, which are the same video"):
        source_of(tmp_path).read("v_b")
    (tmp_path / "test").mkdir()
    np.save(str(tmp_path / "test" / "c.npy"), TABLE)
    with pytest.raises(UserError, match="has video c twice"):
        source_of(tmp_path).names()


def test_a_packed_file_and_hdf5_know_a_video_with_and_without_the_prefix(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(str(tmp_path / "all.h5"), "w") as handle:
        handle["a"] = TABLE
    assert "v_a" in source_of(tmp_path / "all.h5")
    np.testing.assert_array_equal(source_of(tmp_path / "all.h5").read("v_a"), FLOATS.T)
    opt = small_data.make(tmp_path)
    packed = open_features(opt, ["v_a"], log=lambda line: None)
    np.testing.assert_array_equal(source_of(packed.path).read("a"), small_data.table("v_a").T.astype(np.float32))


@pytest.mark.parametrize("files,parts", [
    (["a.npy", "b.npy"], ["12 of 12", "it has those of 2 videos (a, b)", "with or without v_"]),
    (["a.mp4", "b.mp4", "raw.zip", "extra/x.npy"],
     ["it holds 2 files .mp4 (a.mp4, b.mp4), 1 file .zip (raw.zip), the folders extra",
      ".csv, .npy, .npz, .pt, .pkl"]),
    (["b.npy", "V_7.npy"], ["for v_7 it has V_7, whose name differs in upper and lower case: names must be"]),
    (["b.npy", "3.NPY"], ["for v_3 it has 3.NPY, whose name differs in upper and lower case"]),
    (["b.npy", "v_3.npy/x"], ["for v_3 it has v_3.npy, which is a folder and not a file"]),
    ([], ["it is empty"])])
def test_the_message_about_missing_features_says_what_is_there(tmp_path, files, parts):
    (tmp_path / "features").mkdir()
    for file in files:
        (tmp_path / "features" / file).parent.mkdir(exist_ok=True)
        np.save(str(tmp_path / "features" / "array"), TABLE)
        os.replace(str(tmp_path / "features" / "array.npy"), str(tmp_path / "features" / file))
    opt = with_defaults({"data_path": str(tmp_path / "features"), "temporal_scale": 10, "feat_dim": 6})
    with pytest.raises(UserError) as error:
        open_features(opt, ["v_%d" % number for number in range(12)])
    assert "unzip" not in says(error, *parts)


def test_only_activitynets_own_names_get_the_remedy_of_its_archive(tmp_path):
    opt = with_defaults({"data_path": str(tmp_path)})
    with pytest.raises(UserError) as error:
        open_features(opt, ["v_---9CpRcKoU"])
    says(error, "unzip csv_mean_100.zip")


def test_hdf5_links_lead_nowhere(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(str(tmp_path / "secret.h5"), "w") as handle:
        handle["x"] = TABLE
    with h5py.File(str(tmp_path / "all.h5"), "w") as handle:
        handle["v_circle"] = h5py.SoftLink("/v_circle")
        handle["v_nowhere"] = h5py.SoftLink("/none")
        handle["v_outside"] = h5py.ExternalLink("secret.h5", "x")
        handle["v_group/x"] = h5py.ExternalLink("secret.h5", "x")
        handle.create_dataset("v_huge", (1 << 20, 1 << 23), np.float64, chunks=(1, 1 << 10))
        handle["v_type"] = np.dtype("f4")
        layout = h5py.VirtualLayout((10, 6), np.float64)
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", (10, 6))
        handle.create_virtual_dataset("v_virtual", layout)
    for name, part in (("v_circle", "cannot be read"), ("v_nowhere", "cannot be read"), ("v_outside", "another file"),
                       ("v_group", "another file"), ("v_huge", "GB"), ("v_type", "Datatype"),
                       ("v_virtual", "another file")):
        with pytest.raises(UserError) as error:
            source_of(tmp_path / "all.h5").read(name)
        says(error, name, part)


def test_an_hdf5_file_that_is_being_written_is_said_to_be_open(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(str(tmp_path / "all.h5"), "w") as handle:
        handle["v_a"] = TABLE
        handle.flush()
        script = ("import sys; sys.path.insert(0, sys.argv[1]); from bmn.data.features import Hdf5Features\n"
                  "from bmn.errors import run_as_program\n"
                  "run_as_program(lambda: Hdf5Features(sys.argv[2], 10, 6).names())")
        done = subprocess.run([sys.executable, "-c", script, ROOT, str(tmp_path / "all.h5")], stderr=subprocess.PIPE,
                              text=True, check=False)
    assert done.returncode == 1 and "is open in another process" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name, names, stored", [
    ("v_a", ["v_a"], "v_a"), ("a", ["v_a"], "v_a"), ("v_a", ["a"], "a"), ("a", ["a", "v_b"], "a"), ("c", ["a"], None),
    ("v_v_a", ["v_v_a"], "v_v_a"), ("v_v_a", ["v_a"], None), ("v_a", ["v_v_a"], None)])
def test_the_prefix_makes_no_difference_but_only_one_of_them(name, names, stored):
    """The ids of v_v_a and v_a are v_a and a: they are two videos."""
    assert stored_name(name, names, "x") == stored
    with pytest.raises(UserError, match="x has features of v_a and of a, which are the same video"):
        stored_name("a", ["a", "v_a"], "x")


def test_an_extracted_table_of_as_many_rows_as_numbers_is_no_riddle(tmp_path):
    """read() and rows() agree: what tools/extract_features.py wrote has a row for each snippet."""
    table = small_data.table("v_a", 6, 6).astype(np.float32)
    np.save(str(tmp_path / "v_a.npy"), table)
    with pytest.raises(UserError, match="nothing beside them shows which axis is time"):
        source_of(tmp_path, window=4).rows("v_a")
    (tmp_path / "videos.csv").write_text("video,seconds,frames,fps,snippets,stride\nv_a,4,96,25,6,16\n")
    (tmp_path / "features.json").write_text("{}")
    source = source_of(tmp_path, window=4)
    assert source.rows("v_a") == 6
    np.testing.assert_array_equal(source.read("v_a"), table.T)


def save_tables(folder, form, tables):
    """Write {name: table} in a form, and return the --data_path."""
    if form in (".npy", ".pt"):
        for name, table in tables.items():
            np.save(str(folder / (name + form)), table) if form == ".npy" else torch.save(
                {"feats": torch.from_numpy(table)}, str(folder / (name + form)))
        return folder
    path = str(folder / ("all" + form))
    if form == ".h5":
        with pytest.importorskip("h5py").File(path, "w") as file:
            for name, table in tables.items():
                file[name] = table[None]                # an axis of length 1 is no axis of a table
    else:
        pytest.importorskip("safetensors.numpy").save_file(tables, path)
    return path


@pytest.mark.parametrize("form", [".npy", ".pt", ".h5", ".safetensors"])
def test_the_other_tables_show_which_axis_of_a_square_one_is_time(tmp_path, rng, form):
    for trial, by_row in enumerate((True, False, True, False)):
        folder = tmp_path / str(trial)
        folder.mkdir()
        lengths = [6, *rng.randint(1, 12, 3).tolist(), 7]
        tables = {"v_%d" % number: rng.rand(lengths[number], 6).astype(np.float32) for number in rng.permutation(5)}
        stored = {name: np.ascontiguousarray(table if by_row else table.T) for name, table in tables.items()}
        source = source_of(save_tables(folder, form, stored), window=4)
        for name, table in tables.items():
            assert source.rows(name) == len(table)
            np.testing.assert_array_equal(source.read(name), table.T)


@pytest.mark.parametrize("form", [".npy", ".pt", ".h5", ".safetensors"])
@pytest.mark.parametrize("others", [[], [(6, 6)], [(9, 6), (6, 7)]])
def test_a_square_table_is_refused_where_the_others_show_nothing(tmp_path, rng, form, others):
    tables = {"v_%d" % number: rng.rand(*shape).astype(np.float32) for number, shape in enumerate([(6, 6), *others])}
    with pytest.raises(UserError, match="shows which axis is time"):
        source_of(save_tables(tmp_path, form, tables), window=4).read("v_0")


def test_files_that_cannot_be_read_and_extracted_ones_say_nothing_about_a_square_table(tmp_path):
    square = small_data.table("v_a", 6, 6).astype(np.float32)
    np.save(str(tmp_path / "v_a.npy"), square)
    (tmp_path / "v_b.npy").write_bytes(b"no array")
    np.save(str(tmp_path / "v_c.npy"), np.zeros(7, np.float32))
    (tmp_path / "train").mkdir()
    np.save(str(tmp_path / "train" / "v_d.npy"), np.zeros((9, 6), np.float32))
    for name, text in (("videos.csv", "video,seconds,frames,fps,snippets,stride\n"), ("features.json", "{}")):
        (tmp_path / "train" / name).write_text(text)
    with pytest.raises(UserError, match="shows which axis is time"):
        source_of(tmp_path, window=4).read("v_a")
    np.save(str(tmp_path / "v_e.npy"), np.zeros((6, 3), np.float32))
    np.testing.assert_array_equal(source_of(tmp_path, window=4).read("v_a"), square)


def test_a_video_that_is_not_there_is_said_by_every_source(tmp_path):
    np.save(str(tmp_path / "v_a.npy"), TABLE)
    with pytest.raises(UserError, match=r"video v_b has no features in .*: put v_b\.csv there"):
        source_of(tmp_path).read("v_b")
    source = source_of(tmp_path)
    assert source.stamp("v_a")[0] > 480
    os.remove(str(tmp_path / "v_a.npy"))
    with pytest.raises(UserError, match=r"v_a\.npy cannot be read \(No such file"):
        source.stamp("v_a")


def test_a_folder_that_cannot_be_listed_is_said(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", path)
    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(UserError, match=r"feature folder .* cannot be read \(Permission denied\): check"):
        source_of(tmp_path).names()


def test_an_hdf5_file_needs_h5py_and_may_be_empty(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    path = str(tmp_path / "all.h5")
    h5py.File(path, "w").close()
    opt = with_defaults({"data_path": path, "temporal_scale": 10, "feat_dim": 6})
    with pytest.raises(UserError, match=r"no features for 1 of 1 video in .*all\.h5 \(v_a\): it is empty"):
        check_features(opt, ["v_a"], open_source(opt))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"all\.h5 is an HDF5 file: install h5py to read it"):
        open_source(opt).names()


@pytest.mark.parametrize("shape, rows", [((1, 9, 6), 9), ((6, 9, 1), 9), ((9, 6), 9), ((1, 6), 1)])
def test_rows_are_counted_by_the_header(tmp_path, shape, rows):
    np.save(str(tmp_path / "v_a.npy"), np.zeros(shape, np.float32))
    assert source_of(tmp_path, window=4).rows("v_a") == rows == source_of(tmp_path, window=4).read("v_a").shape[1]


def test_columns_that_are_filled_up_are_said(tmp_path):
    np.save(str(tmp_path / "v_a.npy"), np.ones((9, 6), np.float32))
    source, lines = source_of(tmp_path, window=4, feat_dim=8), []
    say_how_files_are_read(source, ["v_x", "v_a"], lines.append)
    assert source.read("v_a").shape == (8, 9) and len(lines) == 1
    assert "the 6 columns of" in lines[0] and "filled up with zeros to --feat_dim 8" in lines[0]
    assert source_of(tmp_path, window=4).remark("v_a") is None


@pytest.mark.parametrize("kind", ["npy", "csv", "hdf5"])
@pytest.mark.parametrize("widths", [(8, 6), (6, 8), (6, 7)])
def test_a_video_that_lacks_columns_does_not_pass_for_one_that_is_filled_up(tmp_path, widths, kind):
    tables = dict(zip(("v_a", "v_b"), (np.ones((9, width), np.float32) for width in widths)))
    data = tmp_path / "data.h5" if kind == "hdf5" else tmp_path
    if kind == "hdf5":
        with pytest.importorskip("h5py").File(str(data), "w") as file:
            for name, table in tables.items():
                file[name] = table
    for name, table in tables.items() if kind != "hdf5" else ():
        (np.save if kind == "npy" else write_csv)(str(tmp_path / (name + "." + kind)), table)
    source = source_of(data, window=4, feat_dim=8)
    assert source.read("v_a").shape == (8, 9)
    for read in (source.read, source.rows):
        with pytest.raises(UserError, match="v_b.* 9 rows and %d columns, but .* %d: " % widths[::-1]):
            read("v_b")


@pytest.mark.parametrize("text, words", [
    ("unable to lock file, errno = 11", "is open in another process"),
    ("file is already open for write (may use <h5clear file>)", "is open in another process"),
    ("file signature not found", "is not a readable HDF5 file")])
def test_what_h5py_says_is_told_apart(tmp_path, monkeypatch, text, words):
    h5py = pytest.importorskip("h5py")

    def fails(*_):
        raise OSError(text)
    (tmp_path / "all.h5").write_bytes(b"content")
    monkeypatch.setattr(h5py, "File", fails)
    with pytest.raises(UserError) as error:
        source_of(tmp_path / "all.h5").names()
    says(error, words, text)
