"""The launchers under test/, started as people and platforms start them: real runs, bad input, signals."""
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, free_port

SMALL = ("--device=cpu", "--temporal_scale=16", "--feat_dim=8", "--num_workers=0")
KEYS = ("Network", "RankSize", "BatchSize", "DeviceType", "CaseName", "ActualFPS", "TrainingTime", "TrainAccuracy",
        "ActualLoss", "E2ETrainingTime")
# How the old scripts read the log: the words they look for, and the field they take.
SCRAPE = {"fps": "grep 'FPS' '%s' | sed 's/,/ /g' | awk '{print $4}'",
          "accuracy": "grep 'AR@100' '%s' | awk '{print $3}'",
          "loss": "grep 'training' '%s' | grep 'total_loss' | awk '{print $NF}'"}


class Project:
    """A copy of the project in a folder with a blank in its name, where launchers may write."""

    def __init__(self, root):
        self.root = root

    def start(self, script, *args, cwd=".", **environment):
        known = {name: value for name, value in os.environ.items() if name not in ("MASTER_PORT", "etp_running_flag")}
        path = os.path.relpath(str(self.root / script), str(self.root / cwd))
        return subprocess.Popen(["bash", path] + list(args), cwd=str(self.root / cwd), stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, universal_newlines=True,
                                # A suite in the background of a script has SIGINT ignored, and bash could not trap it.
                                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
                                env=dict(known, **{"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}))

    def launch(self, script, *args, **more):
        """Returns (exit status, what was printed)."""
        process = self.start(script, *args, **more)
        output = process.communicate(timeout=600)[0]
        return process.returncode, output

    def log(self, name="0/train_0.log"):
        return (self.root / "test/output" / name).read_text()

    def metrics(self):
        return [json.loads(line) for line in (self.root / "checkpoint/metrics.jsonl").read_text().splitlines()]

    def processes(self):
        """The processes that work in this copy."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):          # gone, or not ours
                if os.readlink("/proc/%s/cwd" % pid) == str(self.root):
                    found.append(int(pid))
        return found

    def is_idle(self):
        """Whether no process is left; one that the kernel is removing still shows for a moment."""
        until = time.time() + 300
        while self.processes() and time.time() < until:
            time.sleep(0.1)
        return not self.processes()


def copy_project(root, data):
    root.mkdir()
    for name in os.listdir(ROOT):
        if name.endswith((".py", ".sh")):
            shutil.copy(os.path.join(ROOT, name), str(root))
    for name in ("bmn", "test", "tools"):
        shutil.copytree(os.path.join(ROOT, name), str(root / name),
                        ignore=shutil.ignore_patterns("output", "__pycache__", "unit", "e2e"))
    (root / "data").symlink_to(data)
    return Project(root)


@pytest.fixture(scope="session")
def project(tmp_path_factory, sample_data):
    project = copy_project(tmp_path_factory.mktemp("launchers") / "the project", sample_data)
    yield project
    for pid in project.processes():
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(autouse=True)
def nothing_left_behind(project):
    """A test that fails leaves no run of 100,000 epochs to slow down the others."""
    yield
    for pid in project.processes():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def trained(project):
    """{key: value} of a run of train_full_1p.sh, whose checkpoint the later runs start from."""
    status, output = project.launch("test/train_full_1p.sh", "--data_path=%s" % (project.root / FEATURES), *SMALL,
                                    "--train_epochs=2", "--batch_size=4")
    assert status == 0, output
    return check_result(project, output, "BMN_bs4_1p_acc", epochs=2, accuracy=True)


FEATURES = "data/activitynet_feature_cuhk"


def scrape(project, what):
    """The figures that the old scripts would find in the log."""
    command = SCRAPE[what] % (project.root / "test/output/0/train_0.log")
    return [float(word) for word in subprocess.check_output(["bash", "-c", command]).split()]


def check_result(project, output, case, epochs, accuracy):
    """Compare everything a run has left with metrics.jsonl and the log. Returns {key: value} of <case>.log."""
    lines = [line.split(" = ") for line in project.log("0/%s.log" % case).splitlines()]
    assert tuple(key for key, _ in lines) == KEYS
    result = dict(lines)
    batch, cards = re.match(r"BMN_bs(\d+)_(\d+)p_", case).groups()
    assert result["Network"] == "BMN" and result["RankSize"] == cards and result["BatchSize"] == batch
    assert result["DeviceType"] == os.uname().machine and result["CaseName"] == case

    fps, losses, found = (scrape(project, what) for what in ("fps", "loss", "accuracy"))
    assert len(fps) == len(losses) == epochs and len(found) == accuracy
    assert project.log("0/train_%s_fps.log" % case).split() == ["%.2f" % value for value in fps]
    assert list(map(float, project.log("0/train_%s_loss.txt" % case).split())) == losses
    if epochs:
        metrics = project.metrics()
        assert len(metrics) == epochs and metrics[0]["world_size"] == int(cards)
        assert fps == pytest.approx([line["fps"] for line in metrics], abs=0.0051)
        assert losses == pytest.approx([line["train"]["total"] for line in metrics], abs=0.00051)
        assert float(result["ActualFPS"]) == pytest.approx(sum(fps) / epochs, abs=0.0051)
        milliseconds = int(batch) * 1000 / float(result["ActualFPS"])
        assert float(result["TrainingTime"]) == pytest.approx(milliseconds, abs=0.0051)
        assert float(result["ActualLoss"]) == losses[-1]
    else:
        assert result["ActualFPS"] == result["TrainingTime"] == result["ActualLoss"] == ""
    assert result["TrainAccuracy"] == ("%.3f" % found[0] if accuracy else "")

    assert "\ndevice: cpu%s\n" % (", %s processes over gloo" % cards if cards != "1" else "") in output
    assert [line.rstrip() for line in output.splitlines()[-4:]] == [
        "------------------ Final result ------------------",
        ("Final Performance images/sec : %s" % result["ActualFPS"]).rstrip(),
        ("Final Train Accuracy : %s" % result["TrainAccuracy"]).rstrip(),
        "E2E Training Duration sec : %s" % result["E2ETrainingTime"]]
    assert project.is_idle()
    return result


# ---- runs that end well ------------------------------------------------------------------------------------------

def test_full_1p(project, trained):
    assert 0 < float(trained["TrainAccuracy"]) <= 1
    assert len(json.loads((project.root / "output/result_proposal.json").read_text())["results"]) == 12


def test_full_8p_from_the_folder_test_with_a_relative_path(project, trained):
    (project.root / "test/output/0/left over").write_text("by the last run")
    status, output = project.launch("test/train_full_8p.sh", "--data_path=../" + FEATURES + "/", *SMALL, "--nproc=2",
                                    "--batch_size=4", "--train_epochs=2", "--checkpoint_path=./checkpoint", cwd="test")
    assert status == 0, output
    check_result(project, output, "BMN_bs4_2p_acc", epochs=2, accuracy=True)
    assert not (project.root / "test/output/0/left over").exists()


def test_performance_1p(project, trained):
    status, output = project.launch("test/train_performance_1p.sh", "--data_path=" + FEATURES, *SMALL)
    assert status == 0, output
    check_result(project, output, "BMN_bs16_1p_perf", epochs=1, accuracy=False)


def test_performance_8p(project, trained):
    status, output = project.launch("test/train_performance_8p.sh", "--data_path=" + FEATURES, *SMALL, "--nproc", "2",
                                    "--more_options=--batch_size 4", "--precision_mode=O0")
    assert status == 0, output
    check_result(project, output, "BMN_bs4_2p_perf", epochs=1, accuracy=False)
    assert json.loads((project.root / "checkpoint/opts.json").read_text())["opt_level"] == "O0"


def test_finetune_and_eval_start_from_a_checkpoint(project, trained):
    shutil.copy(str(project.root / "checkpoint/BMN_best.pth.tar"), str(project.root / "test/my network.pth.tar"))
    status, output = project.launch("test/train_eval_8p.sh", "--data_path=../" + FEATURES, *SMALL,
                                    "--nproc=2", "--pth_path=my network.pth.tar", cwd="test")
    assert status == 0, output
    check_result(project, output, "BMN_bs128_2p_eval", epochs=0, accuracy=True)

    status, output = project.launch("test/train_finetune_1p.sh", "--data_path=../" + FEATURES, *SMALL,
                                    "--pth_path=my network.pth.tar", "--checkpoint_path=checkpoint", cwd="test")
    assert status == 0, output
    check_result(project, output, "BMN_bs16_1p_finetune", epochs=1, accuracy=False)
    assert project.metrics()[0]["lr"] == 1.5e-3


def test_multinodes_as_two_machines(project, trained):
    port = free_port()
    nodes = [project.start("test/train_performance_multinodes.sh", "--data_path=" + FEATURES, *SMALL, "--nproc=1",
                           "--batch_size=4", "--nnodes=2", "--node_rank=%d" % rank, "--master_addr=127.0.0.1",
                           "--master_port=" + port) for rank in (0, 1)]
    outputs = [node.communicate(timeout=600)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    check_result(project, outputs[0], "BMN_bs4_2p_perf", epochs=1, accuracy=False)
    assert "Final" not in outputs[1] and "--node_rank=0" in outputs[1]


# ---- runs that fail ----------------------------------------------------------------------------------------------

def check_failure(project, status, output, *sentences):
    assert status not in (0, None)
    for sentence in sentences:
        assert sentence in output, output
    assert "Final" not in output and "images/sec" not in output
    left = os.listdir(str(project.root / "test/output/0")) if (project.root / "test/output/0").exists() else []
    assert left in ([], ["train_0.log"])
    assert project.is_idle()


def test_data_path_is_needed(project):
    status, output = project.launch("test/train_full_1p.sh")
    assert status == 1 and output == '[Error] para "data_path" must be confing\n'


@pytest.mark.parametrize("args, sentence", [
    (["--data_path=no/such"], "there is no "),
    (["--data_path=empty folder"], "is empty"),
    (["--batch_size=many"], "--batch_size=many: give a whole number"),
    (["--nproc=0"], "--nproc=0: give a whole number"),
    (["--nnodes=2"], "--nnodes=2 needs --master_addr"),
    (["--nnodes=2", "--node_rank=2", "--master_addr=a"], "--node_rank=2: give the number of this machine, from 0 to 1"),
    (["training"], "unknown argument training"),
    (["--more_options=--seed='1"], "a quote is not closed"),
    (["--trian_epochs=1"], "error: unknown option --trian_epochs"),
])
def test_what_cannot_run_is_reported(project, args, sentence):
    (project.root / "empty folder").mkdir(exist_ok=True)
    shutil.rmtree(str(project.root / "test/output"), ignore_errors=True)
    status, output = project.launch("test/train_performance_1p.sh", "--data_path=" + FEATURES, *SMALL, *args)
    check_failure(project, status, output, sentence)


@pytest.mark.parametrize("python, sentence", [("no-such-python", "there is no interpreter"), ("./bare", "no PyTorch")])
def test_an_interpreter_that_cannot_be_used_is_reported(project, python, sentence):
    (project.root / "bare").write_text('#!/bin/sh\nexec "%s" -S -E "$@"\n' % sys.executable)    # without packages
    (project.root / "bare").chmod(0o755)
    status, output = project.launch("test/train_performance_1p.sh", "--data_path=" + FEATURES, *SMALL, PYTHON=python)
    check_failure(project, status, output, sentence)


def test_a_port_in_use_is_reported(project):
    with socket.socket() as in_use:
        in_use.bind(("", 0))
        in_use.listen()
        port = str(in_use.getsockname()[1])
        status, output = project.launch("test/train_performance_8p.sh", "--data_path=" + FEATURES, *SMALL, "--nproc=2",
                                        MASTER_PORT=port)
    check_failure(project, status, output, "port %s (MASTER_PORT) is in use" % port)


def test_a_crash_in_the_middle_shows_the_end_of_the_log(project):
    status, output = project.launch("test/train_full_8p.sh", "--data_path=" + FEATURES, *SMALL, "--nproc=2",
                                    "--batch_size=4", "--training_lr=1e30")
    check_failure(project, status, output, "the run ended with status 1", "is not finite")
    assert "is not finite" in output.splitlines()[-1]


def running(project, *args):
    """A launcher whose run has done the first of very many epochs."""
    shutil.rmtree(str(project.root / "test/output"), ignore_errors=True)
    launcher = project.start(*args, "--data_path=" + FEATURES, *SMALL, "--train_epochs=100000", "--batch_size=4",
                             "--num_workers=1")
    deadline = time.time() + 600
    log = project.root / "test/output/0/train_0.log"
    while not (log.exists() and "Epoch: 0" in log.read_text()):
        assert launcher.poll() is None and time.time() < deadline, launcher.communicate()[0]
        time.sleep(0.2)
    return launcher


@pytest.mark.parametrize("script, number, status", [("train_full_8p.sh", signal.SIGINT, 130),
                                                    ("train_performance_1p.sh", signal.SIGTERM, 143)])
def test_a_signal_ends_all_processes(project, script, number, status):
    launcher = running(project, "test/" + script, "--nproc=2" if "8p" in script else "--nproc=1")
    assert len(project.processes()) >= 2            # the script itself, and the run
    launcher.send_signal(number)
    output = launcher.communicate(timeout=600)[0]
    assert launcher.returncode == status
    check_failure(project, launcher.returncode, output, "interrupted by " + number.name)


def test_a_process_that_is_killed_ends_the_run(project):
    launcher = running(project, "test/train_full_8p.sh", "--nproc=2")
    ranks = [pid for pid in project.processes() if b"\0RANK=1\0" in Path("/proc/%d/environ" % pid).read_bytes()]
    os.kill(min(ranks), signal.SIGKILL)             # the rank itself, which is older than its data worker
    output = launcher.communicate(timeout=600)[0]
    check_failure(project, launcher.returncode, output, "the run ended with status 1")


# ---- how main.py is called, with an interpreter that only prints this --------------------------------------------

@pytest.fixture
def call_of(project, tmp_path):
    """call_of(args) -> the words after the interpreter's name, and what the environment held."""
    package = tmp_path / "torch" / "distributed"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    stub = tmp_path / "python"
    stub.write_text('#!/bin/bash\n[ "$1" != -c ] || exec "%s" "$@"\nprintf "%%s\\n" "$@"\n'
                    'echo "environment: ${OMP_NUM_THREADS-} ${RANK-} ${SOURCED-}"\n' % sys.executable)
    stub.chmod(0o755)

    def tell(script, *args, run_module=True, **environment):
        if run_module:
            (package / "run.py").write_text("")
        status, output = project.launch("test/" + script, "--data_path=" + FEATURES, *args, PYTHON=str(stub),
                                        PYTHONPATH=str(tmp_path), **environment)
        assert status == 0, output
        lines = project.log().splitlines()
        assert lines[0] == "-u"
        return lines[1:-1], lines[-1]
    return tell


@pytest.mark.parametrize("script, options", [
    ("train_full_1p.sh", "--mode=full --batch_size=16 --train_epochs=10"),
    ("train_full_8p.sh", "--mode=full --batch_size=128 --train_epochs=10"),
    ("train_performance_1p.sh", "--mode=train --batch_size=16 --train_epochs=1"),
    ("train_performance_8p.sh", "--mode=train --batch_size=128 --train_epochs=1"),
    ("train_finetune_1p.sh", "--mode=train --finetune=1 --batch_size=16 --train_epochs=1 --training_lr=1.5e-3"),
    ("train_eval_8p.sh", "--mode=inference --batch_size=128"),
])
def test_each_launcher_passes_its_defaults(call_of, project, script, options):
    words, _ = call_of(script)
    at = words.index("main.py")
    assert set(words[at + 1:]) == set(options.split()) | {"--data_path=%s" % (project.root / FEATURES)}
    assert words[:at] == [] if "1p" in script else words[:3] == ["-m", "torch.distributed.run", "--nproc_per_node=8"]


def test_options_with_blanks_and_quotes_reach_main(call_of, project):
    words, _ = call_of("train_full_1p.sh", "--precision_mode=O2", "--video-info=a b/$HOME `c`.csv", "--skip_missing",
                    "--loss_scale", "-1", "--pth_path=x y", "--ground_truth=",
                    "--more_options=--seed=1 --video_anno='d  e/f.json' --DeviceID \"3, 4\" --train_epochs=7")
    assert words[-9:] == ["--opt_level=O2", "--video_info=a b/$HOME `c`.csv", "--skip_missing", "--loss_scale=-1",
                          "--pth_path=%s/x y" % project.root, "--ground_truth=", "--seed=1",
                          "--video_anno=d  e/f.json", "--DeviceID=3, 4", "--train_epochs=7"][-9:]


def test_several_processes_meet_at_a_port(call_of):
    words, _ = call_of("train_performance_8p.sh", "--nproc=3", MASTER_PORT="29876")
    assert words[:7] == ["-m", "torch.distributed.run", "--nproc_per_node=3", "--nnodes=1", "--node_rank=0",
                         "--master_addr=127.0.0.1", "--master_port=29876"]
    ports = {call_of("train_performance_8p.sh")[0][6] for _ in range(2)}
    assert all(re.match(r"--master_port=\d{4,5}$", port) for port in ports)
    words, _ = call_of("train_performance_multinodes.sh", "--nnodes=4", "--node_rank=0", "--master_addr=host",
                    "--master_port=29877")
    assert words[2:7] == ["--nproc_per_node=8", "--nnodes=4", "--node_rank=0", "--master_addr=host",
                          "--master_port=29877"]
    assert "--batch_size=512" in words


def test_an_older_pytorch_is_started_by_launch_instead_of_run(call_of):
    words, _ = call_of("train_performance_8p.sh", run_module=False)
    assert words[:2] == ["-m", "torch.distributed.launch"]


def test_environment_of_the_run(call_of):
    threads = max(1, len(os.sched_getaffinity(0)) // 8)
    assert call_of("train_performance_8p.sh", OMP_NUM_THREADS="")[1] == "environment: %d  " % threads
    assert call_of("train_performance_8p.sh", OMP_NUM_THREADS="5")[1] == "environment: 5  "
    # a platform may leave these, which would make one process wait for seven others
    assert call_of("train_performance_1p.sh", RANK="3", WORLD_SIZE="8", OMP_NUM_THREADS="5")[1] == "environment: 5  "


# ---- CANN --------------------------------------------------------------------------------------------------------

no_cann = pytest.mark.skipif(os.path.exists("/usr/local/Ascend") or os.path.exists("/etc/Ascend"),
                             reason="CANN is installed here")


@pytest.fixture
def fake_cann(tmp_path):
    """A home with a CANN whose set_env.sh, like the real one, reads a variable that need not be set."""
    folder = tmp_path / "my home" / "Ascend" / "nnae"
    folder.mkdir(parents=True)
    (folder / "set_env.sh").write_text("false\nexport SOURCED=yes LD_LIBRARY_PATH=/cann:$LD_LIBRARY_PATH\n")
    return str(tmp_path / "my home")


def source_env_npu(**environment):
    script = 'set -eu; before=$-; source "%s/test/env_npu.sh"; [ "$-" = "$before" ]; env -0' % ROOT
    output = subprocess.check_output(["bash", "-c", script], env=dict({"PATH": os.environ["PATH"]}, **environment))
    return dict(entry.split("=", 1) for entry in output.decode().split("\0") if entry)


@no_cann
def test_env_npu_changes_nothing_without_cann(tmp_path):
    for environment in ({}, {"HOME": str(tmp_path)}):
        after = source_env_npu(**environment)
        assert set(after) <= {"PATH", "PWD", "SHLVL", "_", "OLDPWD"} | set(environment)


@no_cann
def test_env_npu_sets_up_cann(fake_cann):
    after = source_env_npu(HOME=fake_cann, HCCL_CONNECT_TIMEOUT="60")
    assert after["SOURCED"] == "yes" and after["LD_LIBRARY_PATH"] == "/cann:"
    assert after["TASK_QUEUE_ENABLE"] == "1" and after["HCCL_CONNECT_TIMEOUT"] == "60"


@no_cann
def test_a_platform_that_has_set_up_cann_is_left_alone(call_of, fake_cann):
    assert call_of("train_performance_1p.sh", HOME=fake_cann)[1].endswith(" yes")
    assert not call_of("train_performance_1p.sh", HOME=fake_cann, etp_running_flag="true")[1].endswith(" yes")


def test_testcase_says_when_it_fails(project):
    status, output = project.launch("train_testcase.sh", PYTHON="no-such-python")
    assert status == 1 and output.splitlines()[-1] == "Run testcase failed!"
