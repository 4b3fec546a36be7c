#!/usr/bin/env bash
# make test-legacy: PyTorch 1.5.0 and 1.8.1, each in an environment of its own (.venv-1.5, .venv-1.8, kept for the next
# time): the unit tests with the golden figures there, then whole runs and checkpoints exchanged with the newest PyTorch.
#
# PYTHON is the newest one's interpreter, PYTHON37 a Python 3.7; without it one is looked for. Where there is none, all
# of this is skipped, or, with BMN_REQUIRE_LEGACY=1, fails.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
test_packages=(pytest==7.4.4 hypothesis==6.79.4)        # the last ones for Python 3.7

find_python37() {
    local candidate
    for candidate in "${PYTHON37:-}" python3.7 "$HOME"/.pyenv/versions/3.7*/bin/python; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 7))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
}

# The environment of one version, made again when its requirements have changed. Its mark is written last.
make_environment() {
    local folder=.venv-$1 wanted
    wanted=$(echo "${test_packages[@]}" | cat - "$1_requirements.txt" | cksum)
    if [ "$(cat "$folder/.ready" 2>/dev/null)" != "$wanted" ]; then
        echo "PyTorch $1: installing into $folder (a download of up to 0.8 GB)"
        rm -rf "$folder"
        "$python37" -m venv "$folder"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
            -r "$1_requirements.txt" "${test_packages[@]}"
        echo "$wanted" >"$folder/.ready"
    fi
}

python37=$(find_python37)
if [ -z "$python37" ]; then
    if [ "${BMN_REQUIRE_LEGACY:-}" = 1 ]; then
        echo "PyTorch 1.5 and 1.8: nothing was tested, because there is no Python 3.7 here (PYTHON37=... names one)" >&2
        exit 1
    fi
    echo "PyTorch 1.5 and 1.8: skipped, because there is no Python 3.7 here (PYTHON37=... names one)"
    exit 0
fi
for version in 1.5 1.8; do
    make_environment "$version"
    echo "PyTorch $version: unit tests"
    ".venv-$version/bin/python" -m pytest test/unit
done
echo "PyTorch 1.5, 1.8 and the newest: whole runs"
BMN_OLD_PYTHONS=$PWD/.venv-1.5/bin/python:$PWD/.venv-1.8/bin/python "${PYTHON:-python3}" -m pytest test/e2e/test_old_pytorch.py
