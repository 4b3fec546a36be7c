"""Damages files of every kind that users give to this program, and checks that each is read or refused in a sentence.

    python3 test/fuzz.py --files 2000                   # of every kind, about two minutes
    python3 test/fuzz.py --files 500 --kinds h5 npy     # of some

A file passes where its reader returns, or raises a UserError of one line. Anything else is reported with the seed that
makes it again: another exception, a crash, more than LIMIT seconds, a program started, a file opened for writing.
"""
import argparse
import io
import json
import os
import pickle
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
from typing import Callable, Dict, List, Tuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "test"), os.path.join(ROOT, "tools")]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from bmn.data.annotation_files import read_annotation_file, read_video_list  # noqa: E402
from bmn.data.annotations import read_entry  # noqa: E402
from bmn.data.folder_features import FolderFeatures  # noqa: E402
from bmn.data.hdf5_features import Hdf5Features  # noqa: E402
from bmn.data.packed_features import PackedFeatures, header_of  # noqa: E402
from bmn.errors import UserError  # noqa: E402
from bmn.results.result_files import read_proposals  # noqa: E402
from bmn.results.score_tables import COLUMNS, read_table  # noqa: E402
from bmn.sampling import whole_mask  # noqa: E402
from bmn.training import checkpoint, recorded  # noqa: E402
from models import BMN  # noqa: E402

LIMIT = 20              # seconds for one file
CHUNK = 50              # files of one child process
SCALE, DIM = 10, 8
TABLE = np.random.RandomState(0).randn(SCALE, DIM).astype(np.float32)
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "os.mkdir", "os.remove",
             "os.rename", "socket.connect", "shutil.rmtree")


def damaged(content: bytes, chance: random.Random) -> bytes:
    """``content`` with one to three changes, most of them near its beginning or in a number."""
    content = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        if not content:
            break
        at = chance.randrange(min(len(content), 600) if chance.random() < 0.6 else len(content))
        kind = chance.choice(("cut", "bit", "byte", "zeros", "ones", "insert", "double", "digits", "number", "swap"))
        if kind == "cut":
            del content[at:]
        elif kind == "bit":
            content[at] ^= 1 << chance.randrange(8)
        elif kind == "byte":
            content[at] = chance.randrange(256)
        elif kind in ("zeros", "ones"):
            stop = min(len(content), at + chance.randrange(1, 64))
            content[at:stop] = (b"\0" if kind == "zeros" else b"\xff") * (stop - at)
        elif kind == "insert":
            content[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 20)))
        elif kind == "double":
            content[at:at] = content[at:at + chance.randrange(1, 200)]
        elif kind == "digits":
            places = [i for i, value in enumerate(content[:5000]) if 48 <= value < 58]
            if places:
                at = chance.choice(places)
                content[at:at + 1] = chance.choice((b"-1", b"1e999", b"99999999999999999999", b"1_0", b"0.5", b"NaN"))
        elif kind == "number" and len(content) > 8:
            at = chance.randrange(len(content) - 8)
            content[at:at + 8] = struct.pack("<Q", chance.choice((2 ** 63, 2 ** 46, 2 ** 32 - 1, 0, len(content))))
        elif kind == "swap":
            other = chance.randrange(len(content))
            content[at], content[other] = content[other], content[at]
    return bytes(content)


def _saved(value, **how):
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()


def _through(save: Callable, *values, **named) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *values, **named)
    return buffer.getvalue()


def _csv():
    return ("f0,f1,f2,f3,f4,f5,f6,f7\n" + "".join(",".join(map(repr, row)) + "\n" for row in TABLE.tolist())).encode()


def _h5():
    import h5py
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "x.h5")
        with h5py.File(path, "w") as handle:
            handle["v_a"] = TABLE
            handle["v_b/feats"] = TABLE
            handle.create_dataset("v_c", data=TABLE, chunks=(5, 4), compression="gzip")
            handle["v_d"] = h5py.SoftLink("/v_a")
        with open(path, "rb") as handle:
            return handle.read()


def _onnx():
    from onnx import TensorProto, helper, numpy_helper
    nodes = [helper.make_node("ReduceMean", ["image"], ["start"], axes=[1], keepdims=0),
             helper.make_node("Mul", ["start", "half"], ["end"]),
             helper.make_node("Unsqueeze", ["start"], ["column"], axes=[1, 3]),
             helper.make_node("Unsqueeze", ["end"], ["row"], axes=[1, 2]),
             helper.make_node("MatMul", ["column", "row"], ["map"]),
             helper.make_node("Concat", ["map", "map"], ["confidence_map"], axis=1)]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, DIM, SCALE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (
            ("confidence_map", [1, 2, SCALE, SCALE]), ("start", [1, SCALE]), ("end", [1, SCALE]))],
        [numpy_helper.from_array(np.float32([0.5]), "half")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7).SerializeToString()


def _checkpoint_content():
    tensors = {name: torch.full((3,) * min(tensor.dim(), 2), 0.5) for name, tensor in BMN(
        {"temporal_scale": 4, "feat_dim": 4}).state_dict().items()}
    tensors["sample_mask"] = torch.from_numpy(whole_mask(4, 2, 3, 0.5, "mmaction2")).view(4, -1)
    return {"epoch": 3, "state_dict": {"module." + name: tensor for name, tensor in tensors.items()},
            "state_dict_ema": tensors, "options": {"temporal_scale": 4, "feat_dim": 4, "training_lr": 0.1},
            "message_hub": {"loss": np.float64(1)}}


def _ours():
    with tempfile.TemporaryDirectory() as folder:
        content = dict(_checkpoint_content())
        del content["message_hub"]
        checkpoint.save(os.path.join(folder, "x"), content)
        with open(os.path.join(folder, "x"), "rb") as handle:
            return handle.read()


def _read_checkpoint(path):
    state = checkpoint.read(path)
    checkpoint.remarks(state)
    options = recorded.network_options(state, {})
    if options["temporal_scale"] <= 20 and options["num_sample"] <= 32 and options["feat_dim"] <= 64:
        checkpoint.put_network(state, BMN(options))


def _read_onnx(path):
    from bmn.network.onnx_network import OnnxNetwork
    OnnxNetwork(path)(torch.zeros(1, DIM, SCALE))


def _read_features(path):
    folder, file = os.path.split(path)
    source = FolderFeatures(folder, SCALE, DIM, {"v_a": file})
    source.remark("v_a")
    source.read("v_a")


def _read_h5(path):
    source = Hdf5Features(path, SCALE, DIM)
    for name in source.names():
        source.read(name)


def _read_packed(path):
    source = PackedFeatures(path, SCALE, DIM)
    for name in source.names():
        source.read(name)


def _read_entries(path):
    for name, entry in read_annotation_file(path).videos.items():
        read_entry(name, entry, path)


ENTRY = {"duration_second": 10.5, "duration_frame": 300, "feature_frame": 288,
         "annotations": [{"segment": [2.0, 5.5], "label": "Juggling"}]}
# kind of file: (its ending, a good one, its reader)
KINDS: Dict[str, Tuple[str, Callable[[], bytes], Callable[[str], None]]] = {
    "csv": (".csv", _csv, _read_features),
    "npy": (".npy", lambda: _through(np.save, TABLE), _read_features),
    "npz": (".npz", lambda: _through(np.savez_compressed, feats=TABLE, n_probs=np.arange(3)), _read_features),
    "pt": (".pt", lambda: _saved(torch.from_numpy(TABLE)), _read_features),
    "pkl": (".pkl", lambda: pickle.dumps({"feats": TABLE, "fps": 25.0}, 4), _read_features),
    "h5": (".h5", _h5, _read_h5),
    "packed": (".safetensors", lambda: header_of({"v_a": [1, 2], "v_b": [3, 4]}, SCALE, DIM, "float32")
               + TABLE.tobytes() * 2, _read_packed),
    "checkpoint": (".pth", lambda: _saved(_checkpoint_content()), _read_checkpoint),
    "old checkpoint": (".pth", lambda: _saved(_checkpoint_content(), _use_new_zipfile_serialization=False),
                       _read_checkpoint),
    "our checkpoint": (".pth.tar", _ours, _read_checkpoint),
    "onnx": (".onnx", _onnx, _read_onnx),
    "annotations": (".json", lambda: json.dumps({"v_a": ENTRY, "v_b": ENTRY}).encode(), _read_entries),
    "official annotations": (".json", lambda: json.dumps({"database": {"a": dict(ENTRY, subset="train")}}).encode(),
                             _read_entries),
    "rows": (".csv", lambda: b"video,label,start,end,duration,subset\na,x,1,2.5,9,train\nb,0,0,1,8,val\n",
             _read_entries),
    "results": (".json", lambda: json.dumps({"results": {"a": [{"score": 0.5, "segment": [1, 2.5]}] * 3}}).encode(),
                read_proposals),
    "video list": (".csv", lambda: b"video,subset\nv_a,training\nv_b,validation\n", read_video_list),
    "table": (".csv", (",".join(COLUMNS) + "\n" + "0.0,0.1,0.5,0.5,0.5,0.5,0.0625\n" * 5).encode, read_table),
}


def outcome(kind: str, content: bytes, folder: str, seen: List[str]) -> str:
    """"read", "refused", or what went wrong with one file; ``seen`` collects what the audit hook saw."""
    ending, _, reader = KINDS[kind]
    path = os.path.join(folder, "v_a" + ending)
    with open(path, "wb") as handle:
        handle.write(content)
    del seen[:]
    signal.alarm(LIMIT)
    try:
        reader(path)
        result = "read"
    except UserError as error:
        result = "refused" if "\n" not in str(error) and len(str(error)) < 2000 else "a long error: %.200r" % str(error)
    except Exception:
        result = traceback.format_exc()
    finally:
        signal.alarm(0)
    return seen[0] if seen else result


def _watch(seen):
    """Note programs that are started, and files that are opened for writing."""
    def hook(event, arguments):
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if event in FORBIDDEN or writes:
            seen.append("%s %.200r" % (event, arguments))
    if hasattr(sys, "addaudithook"):
        sys.addaudithook(hook)


def _child(kind, whole, seeds, writer):
    """Try the files of ``seeds``, and write a line of JSON for each: [seed, outcome]."""
    def too_long(*_):
        raise TimeoutError("more than %d seconds" % LIMIT)
    signal.signal(signal.SIGALRM, too_long)
    seen: List[str] = []
    with tempfile.TemporaryDirectory() as folder, os.fdopen(writer, "w") as lines:
        _watch(seen)
        for seed in seeds:
            content = damaged(whole, random.Random("%s %d" % (kind, seed)))
            lines.write(json.dumps([seed, outcome(kind, content, folder, seen)]) + "\n")
            lines.flush()


def fuzz(kind: str, files: int, first: int = 0) -> Tuple[Dict[str, int], List[Tuple[int, str]]]:
    """Try ``files`` damaged files of a kind, with the seeds from ``first`` on.

    Returns:
        ({"read": number, "refused": number}, [(seed, what went wrong)]).
    """
    whole, counts, problems = KINDS[kind][1](), {"read": 0, "refused": 0}, []
    seeds = list(range(first, first + files))
    while seeds:
        chunk = seeds[:CHUNK]
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)        # where libraries in C complain
                _child(kind, whole, chunk, writer)
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as lines:
            done = [json.loads(line) for line in lines]
        os.waitpid(child, 0)
        for seed, result in done:
            if result in counts:
                counts[result] += 1
            else:
                problems.append((seed, result))
        if len(done) < len(chunk):          # the child is gone: the next file has ended it
            problems.append((chunk[len(done)], "the process crashed"))
        seeds = seeds[len(done) + (len(done) < len(chunk)):]
    return counts, problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000, help="damaged files of each kind (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=list(KINDS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    failures = 0
    for kind in arguments.kinds:
        began = time.time()
        counts, problems = fuzz(kind, arguments.files, arguments.first)
        print("%-15s %5d read, %5d refused, %3d wrong, %4.0f s"
              % (kind, counts["read"], counts["refused"], len(problems), time.time() - began), flush=True)
        for seed, problem in problems[:5]:
            print("    seed %d: %s" % (seed, problem.strip().splitlines()[-1]))
        failures += len(problems)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
