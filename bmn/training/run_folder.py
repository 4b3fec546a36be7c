"""The files of a run in its folder: the last checkpoint, the best one, and a JSON line for each epoch.

Which checkpoint is the best of a run does not follow from its name, because another run may have left one there. It
follows from the records of the epochs that each checkpoint holds: their times alone make them unique.
"""
import hashlib
import json
import os
from typing import Any, Dict, List, Optional

from bmn.errors import TERMINATED, Stopped, UserError
from bmn.files import replacing
from bmn.options import BEST
from bmn.training import checkpoint

LAST = checkpoint.LAST
METRICS = "metrics.jsonl"


def save(folder: str, state: Dict[str, Any], is_best: bool) -> None:
    """Write the last checkpoint, then the best one if it ``is_best``, then the record.

    In this order, a run that is killed in between finds in the last checkpoint whatever the other files lack.

    Raises:
        UserError: a file cannot be written.
    """
    checkpoint.save(os.path.join(folder, LAST), state)
    if is_best:
        checkpoint.save(os.path.join(folder, BEST), state)
    _write_metrics(folder, state["metrics"])


def keep_within_epoch(folder: str, training: Any, names: List[str], runtime: Any, owner: Any, pause: Any,
                      begun: dict) -> None:
    """Save a run within an epoch. Ends it, with the status that a shell gives to SIGTERM, if the pause says so.

    Args:
        folder: --checkpoint_path.
        training: the Training.
        names: the training videos, in their order.
        runtime, owner: of this run; rank 0 alone has an owner.
        pause: what pauses.Pauses gave.
        begun: the epoch so far, of this rank, as engine.train_one_epoch describes it.

    Raises:
        UserError: the training has failed, or the file cannot be written.
        Stopped: the pause stops the run.
    """
    training.check_finite()
    everyone = runtime.gather((begun["losses"], begun["random_state"]))
    if runtime.is_main:
        owner.check()
        within = {"steps": begun["steps"], "timing": begun["timing"], "losses": [losses for losses, _ in everyone],
                  "videos": _digest(names)}
        path = os.path.join(folder, LAST)
        checkpoint.save(path, dict(training.state_dict(), within_epoch=within,
                                   random_states=[random_state for _, random_state in everyone]))
        runtime.log("%ssaved after step %d of epoch %d in %s%s" % (
            pause.stop and pause.stop + ": ", begun["steps"], training.epochs_done, path,
            ", --resume auto goes on there" if pause.stop else ""))
    if pause.stop:
        runtime.barrier()   # nobody leaves before the file is whole
        raise Stopped(TERMINATED)


def check_same_videos(begun: Optional[dict], names: List[str]) -> None:
    """Check that the epoch that was begun (None: there is none) can go on with the training videos ``names``.

    Raises:
        UserError: they are others.
    """
    if begun and begun["videos"] != _digest(names):
        raise UserError("--resume goes on within an epoch, but the training videos are others now: give the same data, "
                        "or start from its network with --finetune 1 --pth_path")


def _digest(names):
    """A text that tells one list of videos from another."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def complete(folder: str, state: Dict[str, Any], record: List[dict]) -> None:
    """Give ``folder`` the best checkpoint and the record of the run that goes on there.

    Args:
        folder: --checkpoint_path.
        state: what ``checkpoint.read`` returned of the checkpoint that the run goes on from.
        record: the records of its epochs up to the best one.

    Raises:
        UserError: the best checkpoint of the run is neither in ``folder`` nor beside that checkpoint.
    """
    best = os.path.join(folder, BEST)
    beside = os.path.join(os.path.dirname(state["path"]), BEST)
    if record and not _is_of(best, record):
        if len(record) == state["epoch"] and state.get("within_epoch") is None:
            checkpoint.write(best, {name: value for name, value in state.items() if name != "path"})
        elif _is_of(beside, record):
            checkpoint.write(best, {name: value for name, value in checkpoint.read(beside).items() if name != "path"})
        else:
            raise UserError("the best network of the run in %s, of epoch %d, is not in %s: put the %s of that run "
                            "there, or start a new run with --finetune 1 --pth_path %s"
                            % (state["path"], len(record) - 1, folder, BEST, state["path"]))
    _write_metrics(folder, state["metrics"])


def check_is_of(state: Dict[str, Any], record: List[dict]) -> None:
    """Check that ``state``, as ``checkpoint.read`` returned it, is the best checkpoint of the run with that ``record``.

    Raises:
        UserError: it is another one.
    """
    if state.get("metrics") != record:
        raise UserError("%s is not the best network of this run, of epoch %d: another program has replaced it; nothing "
                        "is evaluated" % (state["path"], len(record) - 1))


def _is_of(path, record):
    try:
        return checkpoint.read(path).get("metrics") == record
    except UserError:           # missing or damaged
        return False


def _write_metrics(folder, metrics):
    with replacing(os.path.join(folder, METRICS)) as path, open(path, "w") as handle:
        handle.writelines(json.dumps(line, allow_nan=False) + "\n" for line in metrics)
