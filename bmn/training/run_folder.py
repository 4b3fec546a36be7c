"""The files of a run in its folder: the last checkpoint, the best one, and a JSON line for each epoch.

Which checkpoint is the best of a run does not follow from its name, because another run may have left one there. It
follows from the records of the epochs that each checkpoint holds: their times alone make them unique.
"""
import json
import os
from typing import Any, Dict, List

from bmn.errors import UserError
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
