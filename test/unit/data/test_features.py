import os
import pathlib
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import small_data

from bmn.data.feature_files import read_csv
from bmn.data.features import check_features, open_features, open_source
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
    says(error, "v_a.npy", "it is unknown which axis is time", "CSV")


def test_a_csv_file_of_the_other_orientation_is_refused(tmp_path):
    small_data.write_csv(str(tmp_path / "v_a.csv"), TABLE.T)
    with pytest.raises(UserError) as error:
        source_of(tmp_path).read("v_a")
    says(error, "6 rows and 10 columns")


CSV = "f0,f1,f2,f3,f4,f5\n" + "1,2,3,4,5,6\n" * 10


@pytest.mark.parametrize("text,parts", [
    (CSV.replace(",", ",0,", 1).replace("\n1", "\n1,0"),
     ["10 rows and 7 columns", "--feat_dim 6", "give --feat_dim 7"]),
    (CSV + "1,2,3,4,5,6\n", ["11 rows", "--temporal_scale is 10", "tools/prepare_features.py"]),
    (CSV + "1,2,3,4,5\n", ["5 columns in line 12", "6 in its header line"]),
    (CSV.replace("3", "three", 5), ["'three' in line 2, column 3"]),
    (CSV.replace("1,2", "1,", 1), ["'' in line 2, column 2"]),
    (CSV.replace("6\n", "NaN\n", 1), ["nan at position 1 of 10, feature 6"]),
    (CSV.replace("1,2", "1e60,2", 3), ["inf at position 1 of 10, feature 1"]),
    ("", ["no rows"]),
    ("f0,f1\n", ["no rows"]),
])
def test_what_is_wrong_with_a_csv_file_is_reported(tmp_path, text, parts):
    (tmp_path / "v_a.csv").write_text(text)
    with pytest.raises(UserError) as error:
        source_of(tmp_path).read("v_a")
    says(error, "v_a.csv", *parts)


@pytest.mark.parametrize("write,parts", [
    (lambda path: np.savez(path, one=TABLE, two=TABLE), ["holds 2 arrays (one, two)"]),
    (lambda path: np.savez(path, TABLE[None]), ["shape (1, 10, 6)"]),
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
    says(error, "20 of 21 videos", "csv_mean_10", "v_00, v_01, v_02, ...", "unzip csv_mean_100.zip", "--skip_missing")
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
