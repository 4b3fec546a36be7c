"""Going on with the run in a checkpoint, on every rank."""
from typing import Any, Dict, Optional

import torch

from bmn.errors import UserError
from bmn.training import checkpoint, run_folder
from bmn.values import counted


def read_checkpoint(path: str, runtime: Any, ema: int = 0) -> Dict[str, Any]:
    """Rank 0 reads it and the others get it from there: the machines of a run need not share a disk.

    Args:
        path: the file.
        runtime: bmn.machine.device.Runtime.
        ema: take the averaged weights, where there are any.

    Raises:
        UserError: as :func:`checkpoint.read`.
    """
    state = runtime.broadcast(checkpoint.read(path, bool(ema)) if runtime.is_main else None)
    for line in checkpoint.remarks(state):
        runtime.log(line)
    return state


def resume(training: Any, path: str, opt: Dict[str, Any], runtime: Any) -> Optional[dict]:
    """Go on with the run in the checkpoint ``path``.

    Args:
        training: a new Training with the options of the run.
        path: the checkpoint.
        opt: dict with train_epochs and checkpoint_path.
        runtime: bmn.machine.device.Runtime.

    Returns:
        the epoch that it had begun, as engine.train_one_epoch describes it, or None.

    Raises:
        UserError: the checkpoint holds no run, another run, or one that has done all the epochs.
    """
    state = read_checkpoint(path, runtime)
    training.load_state_dict(state)
    within, states = state.get("within_epoch"), state["random_states"]
    if training.epochs_done + bool(within) > opt["train_epochs"]:
        raise UserError("--train_epochs %d, but %s has done %d%s already: give %d or more"
                        % (opt["train_epochs"], path, training.epochs_done, " and begun another" if within else "",
                           training.epochs_done + bool(within)))
    if runtime.is_main:
        run_folder.complete(opt["checkpoint_path"], state, training.best_record)
    same = len(states) == runtime.world_size
    if same:
        runtime.set_random_state(states[runtime.rank])
    else:
        runtime.log("%s was written by %s, and now there are %d: from here on, the losses draw other random numbers "
                    "than in a run that was never stopped"
                    % (path, counted(len(states), "process"), runtime.world_size))
    runtime.log("resumed from %s: %d of %d epochs are done%s"
                % (path, training.epochs_done, opt["train_epochs"],
                   ", and %s of the next" % counted(within["steps"], "step") if within else ""))
    if within:
        losses = within["losses"][runtime.rank] if same else torch.stack(within["losses"]).mean(0)
        return dict(within, losses=losses, random_state=runtime.random_state())
    return None
