"""The whole job from the command line, on real annotations with planted features: all modes work, and it learns."""
import csv
import json
import re

import conftest
import numpy as np
import pytest

SCALE = ("--temporal_scale", "32", "--feat_dim", "32")


def figures(output):
    """{"AR@1": ..., ..., "AUC": ...} as printed, each exactly once."""
    found = {}
    for name in ("AR@1", "AR@5", "AR@10", "AR@100"):
        value, = re.findall(r"^%s is \t([\d.e-]+)$" % name, output, re.MULTILINE)
        found[name] = float(value)
    value, = re.findall(r"^\tArea Under the AR vs AN curve: ([\d.]+)%$", output, re.MULTILINE)
    found["AUC"] = float(value)
    return found


def epochs_of(workshop, folder):
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in workshop.text(folder + "/metrics.jsonl").splitlines()]


def succeeded(process):
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stderr == "" or "Traceback" not in process.stderr
    return process.stdout


@pytest.mark.slow
def test_train_infer_and_full_on_real_annotations(tmp_path, shared):
    workshop = conftest.Workshop(tmp_path)
    succeeded(workshop.run("tools/make_sample_data.py", "--output", "data", "--videos", 300, *SCALE,
                           "--annotations", shared + "/activitynet_annotations"))
    common = ("--device", "cpu", "--num_workers", "0", "--batch_size", "16") + SCALE
    # an untrained network: one epoch with a vanishing learning rate leaves it in a checkpoint
    succeeded(workshop.run("main.py", *common, "--train_epochs", 1, "--training_lr", "1e-12",
                           "--checkpoint_path", "untrained", "--mode", "train"))
    chance = figures(succeeded(workshop.run("main.py", *common, "--mode", "inference",
                                            "--checkpoint_path", "untrained", "--save_csv", "0")))
    log = succeeded(workshop.run("main.py", *common, "--mode", "full", "--train_epochs", 4, "--training_lr", "2e-3"))
    trained = figures(log)
    assert trained["AR@10"] > chance["AR@10"] + 0.2 and trained["AUC"] > chance["AUC"] + 10
    result = json.loads(workshop.text("output/result_proposal.json"))
    again = figures(succeeded(workshop.run("main.py", *common, "--mode", "inference", "--save_csv", "0")))
    assert again == trained and json.loads(workshop.text("output/result_proposal.json")) == result

    with open(str(tmp_path / "data/activitynet_annotations/video_info_new.csv")) as handle:
        names = [row["video"] for row in csv.DictReader(handle) if row["subset"] == "validation"]
    assert list(result["results"]) == [name[2:] for name in names]
    assert all(len(proposals) == 100 for proposals in result["results"].values())
    epochs = epochs_of(workshop, "checkpoint")
    assert epochs[-1]["validation"]["total"] < epochs[0]["validation"]["total"]
    check_log(log, epochs)


def check_log(log, epochs):
    """Check the lines that scripts scrape, and their figures against metrics.jsonl."""
    loss = (r"\(epoch (\d+), n_iter (\d+)\): tem_loss: ([\d.]+), pem class_loss: ([\d.]+), pem reg_loss: ([\d.]+), "
            r"total_loss: ([\d.]+)$")
    training = re.findall("^BMN training loss" + loss, log, re.MULTILINE)
    validation = re.findall("^BMN test loss" + loss, log, re.MULTILINE)
    speed = re.findall(r"^Epoch: (\d+),FPS: (\d+\.\d\d),time: (\d+\.\d\d)$", log, re.MULTILINE)
    assert len(training) == len(validation) == len(speed) == len(epochs)
    for epoch, line in enumerate(epochs):
        assert int(training[epoch][0]) == int(validation[epoch][0]) == int(speed[epoch][0]) == epoch == line["epoch"]
        assert int(training[epoch][1]) == line["iterations"] - 1
        for found, key in ((training, "train"), (validation, "validation")):
            want = [line[key][name] for name in ("tem", "pem_cls", "pem_reg", "total")]
            np.testing.assert_allclose([float(v) for v in found[epoch][2:]], want, atol=5.1e-4)
        assert float(speed[epoch][1]) == pytest.approx(line["fps"], abs=0.0051)
    lines = log.splitlines()
    assert sum("FPS" in line for line in lines) == len(epochs)
    assert sum("training" in line and "total_loss" in line for line in lines) == len(epochs)
    assert sum("AR@100" in line for line in lines) == 1


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(workshop):
    def losses(seed, folder):
        succeeded(workshop.main("--train_epochs", 2, "--seed", seed, "--checkpoint_path", folder))
        return [(line["train"], line["validation"]) for line in epochs_of(workshop, folder)]
    first = losses(3, "a")
    assert first == losses(3, "b")
    assert first[0] != losses(4, "c")[0]


def test_best_checkpoint_is_that_of_the_lowest_validation_loss(workshop):
    torch = pytest.importorskip("torch")
    succeeded(workshop.main("--train_epochs", 5, "--training_lr", "0.02", "--seed", 2))
    totals = [line["validation"]["total"] for line in epochs_of(workshop, "checkpoint")]
    best = torch.load(str(workshop.folder / "checkpoint/BMN_best.pth.tar"), weights_only=True)
    last = torch.load(str(workshop.folder / "checkpoint/BMN_checkpoint.pth.tar"), weights_only=True)
    assert best["epoch"] == totals.index(min(totals)) + 1 and last["epoch"] == 5
    assert json.loads(workshop.text("checkpoint/opts.json"))["training_lr"] == 0.02


def test_finetune_starts_from_the_checkpoint(workshop):
    """With a learning rate near zero the network stays that of the checkpoint, and so does its loss."""
    succeeded(workshop.main("--train_epochs", 3, "--checkpoint_path", "first"))
    succeeded(workshop.main("--train_epochs", 1, "--checkpoint_path", "second", "--training_lr", "1e-12",
                            "--finetune", 1, "--pth_path", "first/BMN_best.pth.tar"))
    first, second = ([line["validation"]["total"] for line in epochs_of(workshop, folder)]
                     for folder in ("first", "second"))
    assert second == pytest.approx([min(first)], rel=1e-6) and min(first) != first[0]


def test_full_mode_evaluates_the_network_that_it_trained(workshop):
    """... and not the one in --pth_path that fine-tuning started from."""
    small = ("--save_csv", 0, "--opt_level", "O0")
    succeeded(workshop.main("--train_epochs", 1, "--checkpoint_path", "first"))
    succeeded(workshop.main("--mode", "full", "--train_epochs", 1, "--checkpoint_path", "second", "--training_lr",
                            "0.01", "--finetune", 1, "--pth_path", "first/BMN_best.pth.tar", *small))
    full = workshop.text("output/result_proposal.json")
    for folder, is_evaluated in (("first", False), ("second", True)):
        succeeded(workshop.main("--mode", "inference", "--pth_path", folder + "/BMN_best.pth.tar", *small))
        assert (workshop.text("output/result_proposal.json") == full) is is_evaluated
