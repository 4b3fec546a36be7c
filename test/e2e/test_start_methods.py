"""Packing, data workers and tables work however Python starts processes; Python 3.14 would choose forkserver."""
import multiprocessing

import pytest
from conftest import ROOT, SMALL

# A user's program that chooses the start method, and then runs main.py.
PROGRAM = """
import multiprocessing, runpy, sys
if __name__ == "__main__":
    multiprocessing.set_start_method(%r)
    sys.path.insert(0, %r)
    runpy.run_path(sys.path[0] + "/main.py", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.parametrize("cache", ["cache", "off"])
def test_a_whole_run(workshop, method, cache):
    """40 videos are enough for several packing processes."""
    program = workshop.folder / "program.py"
    program.write_text(PROGRAM % (method, ROOT))
    process = workshop.run(str(program), "--device", "cpu", *SMALL, "--mode", "full", "--train_epochs", 1,
                           "--num_workers", 2, "--post_process_thread", 2, "--feature_cache", cache)
    assert process.returncode == 0, process.stderr
    assert "AR@100 is" in process.stdout and ("packed in" in process.stdout) == (cache == "cache")
    assert len(list((workshop.folder / "output" / "BMN_results").glob("*.csv"))) == 12
