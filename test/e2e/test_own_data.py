"""The commands that docs/data.md gives for a user's own data set work, one after another, as they are written there."""
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest


def blocks(root):
    """[(language, text)] of the walk-through."""
    with open(os.path.join(root, "docs", "data.md"), encoding="utf-8") as handle:
        section = handle.read().split("## A data set of your own")[1].split("\n## ")[0]
    return re.findall(r"```(python|bash)\n(.*?)```", section, re.DOTALL)


def write_tables(folder, rng):
    """What a user brings: two tables, and raw features of 64 numbers for every 16 frames."""
    rows, actions = ["video,subset,frames,seconds"], ["video,start,end,label"]
    os.mkdir(os.path.join(folder, "raw"))
    for number in range(8):
        name = "kitchen_07" if number == 7 else "juggling_%02d" % number
        frames = int(rng.randint(400, 2500))
        rows.append("%s,%s,%d,%.1f" % (name, "training" if number < 5 else "validation", frames, frames / 25))
        actions.append("%s,%.1f,%.1f,juggling" % (name, frames / 100, frames / 50))
        np.save(os.path.join(folder, "raw", name + ".npy"), rng.randn(frames // 16, 64))
    for file, lines in (("videos.csv", rows), ("actions.csv", actions)):
        with open(os.path.join(folder, file), "w") as handle:
            handle.write("\n".join(lines) + "\n")


@pytest.mark.slow
def test_the_walk_through_works(root, tmp_path, rng):
    write_tables(str(tmp_path), rng)
    done = blocks(root)
    assert len(done) == 5
    for language, text in done:
        commands = text.replace("python3 main.py", "%s %s/main.py" % (sys.executable, root)) \
            .replace("python3 tools/", "%s %s/tools/" % (sys.executable, root)) \
            .replace("--train_epochs 10", "--train_epochs 1")
        command = [sys.executable, "-c", text] if language == "python" else ["bash", "-ec", commands]
        finished = subprocess.run(command, cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  text=True, timeout=300, check=False, env=dict(os.environ, OMP_NUM_THREADS="1"))
        assert finished.returncode == 0, finished.stdout
    assert finished.stdout.count("kitchen_07, 96.2 seconds") == 1
    assert (tmp_path / "pictures" / "kitchen_07.png").stat().st_size > 10000
    assert len(json.loads((tmp_path / "output" / "result_proposal.json").read_text())["results"]) == 3
