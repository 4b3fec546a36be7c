"""A training: all that changes while it runs, in one object that is saved and restored as a whole."""
from typing import Any, Optional

import torch

from bmn.errors import UserError
from bmn.training import checkpoint, recorded

# What a checkpoint holds beside the network, so that a run can go on; random_states is the caller's.
_STATE_OF_A_RUN = ("optimizer", "scheduler", "precision", "best_loss", "options", "metrics", "random_states")
_CANNOT_CHANGE = ("training_lr", "weight_decay", "step_size", "step_gamma")


class Training:
    """The network, what steps it, and the record of the epochs done.

    Args:
        network: models.BMN, on its device.
        precision: what ``amp.choose`` gave.
        opt: complete dict of options; training_lr, weight_decay, step_size and step_gamma are read, all are recorded.

    Attributes:
        network, optimizer, scheduler, precision: the parts; the network is not the parallel wrapper.
        metrics: a dict of numbers for each epoch done.
        best_loss: the lowest validation loss so far.
    """

    def __init__(self, network: torch.nn.Module, precision: Any, opt: dict):
        optimizer = torch.optim.Adam(network.parameters(), lr=opt["training_lr"], weight_decay=opt["weight_decay"])
        self.network, self.optimizer = precision.prepare(network, optimizer)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, opt["step_size"], opt["step_gamma"])
        self.precision, self.options = precision, dict(opt)
        self.metrics, self.best_loss = [], float("inf")

    @property
    def epochs_done(self) -> int:
        """Number of epochs whose record is in ``metrics``."""
        return len(self.metrics)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    def end_epoch(self, metrics: dict, validation_loss: Optional[float]) -> bool:
        """Record an epoch and go to the next learning rate. Returns whether its network is the best so far.

        A ``validation_loss`` of None says nothing: then the latest network is the best.
        """
        is_best = validation_loss is None or validation_loss < self.best_loss
        self.best_loss = self.best_loss if validation_loss is None else min(self.best_loss, validation_loss)
        self.metrics.append(metrics)
        self.scheduler.step()
        return is_best

    def state_dict(self) -> dict:
        """All that a run needs to go on as if it had never stopped, except the random numbers of each rank."""
        return {"epoch": self.epochs_done, "state_dict": self.network.state_dict(),
                "optimizer": _with_whole_steps(self.optimizer.state_dict()), "scheduler": self.scheduler.state_dict(),
                "precision": self.precision.state_dict(), "best_loss": self.best_loss, "options": self.options,
                "metrics": self.metrics}

    def load_state_dict(self, state: dict) -> None:
        """Go on from ``state``, as ``checkpoint.read`` returns it.

        Raises:
            UserError: the checkpoint holds a network but no run, or a run of another kind.
        """
        missing = [key for key in _STATE_OF_A_RUN if key not in state]
        if missing:
            raise UserError("checkpoint %s holds a network but no state of a run ('%s' is missing): start from it with "
                            "--finetune 1 --pth_path instead of --resume" % (state["path"], missing[0]))
        checkpoint.put_network(state, self.network)
        # PyTorch would silently take the values of the checkpoint.
        recorded.check_options(state, {name: self.options[name] for name in _CANNOT_CHANGE})
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.precision.load_state_dict(state["precision"])
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise UserError("checkpoint %s: the state of its run does not fit this one (%s): resume with the options "
                            "that it was made with" % (state["path"], checkpoint.first_line(error))) from error
        self.metrics, self.best_loss = state["metrics"], state["best_loss"]


def _with_whole_steps(state):
    """An optimizer's state with step counts as numbers, which every PyTorch reads; today's stores them as tensors."""
    steps = {key: dict(value, step=int(value["step"])) if "step" in value else value
             for key, value in state["state"].items()}
    return dict(state, state=steps)
