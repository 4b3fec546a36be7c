"""A training: all that changes while it runs, in one object that is saved and restored as a whole."""
import inspect
from typing import Any, Optional

import torch

from bmn.errors import UserError
from bmn.training import checkpoint, run_state


class Training:
    """The network, what steps it, and the record of the epochs done.

    Args:
        network: models.BMN, on its device.
        precision: what ``amp.choose`` gave.
        opt: complete dict of options; training_lr, weight_decay, step_size and step_gamma are read, all are recorded.

    Attributes:
        network, optimizer, scheduler, precision: the parts; the network is not the parallel wrapper.
        metrics: a dict of numbers for each epoch done.
        contraction: how the BM layer of the run that goes on contracted: "bags", "dense", or "auto", by no choice.
    """

    def __init__(self, network: torch.nn.Module, precision: Any, opt: dict):
        self._how = _many_at_once(network)
        optimizer = torch.optim.Adam(network.parameters(), lr=opt["training_lr"], weight_decay=opt["weight_decay"],
                                     **self._how)
        self.network, self.optimizer = precision.prepare(network, optimizer)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, opt["step_size"], opt["step_gamma"])
        self.precision, self.options = precision, dict(opt)
        self.metrics, self.contraction = [], "auto"

    @property
    def epochs_done(self) -> int:
        """Number of epochs whose record is in ``metrics``."""
        return len(self.metrics)

    @property
    def best_epoch(self) -> Optional[int]:
        """The epoch of the lowest validation loss, counted from 0; None before the first."""
        return run_state.best_epoch(self.metrics)

    @property
    def best_record(self) -> list:
        """The records up to the best epoch. They tell its checkpoint from that of any other run."""
        return [] if self.best_epoch is None else self.metrics[:self.best_epoch + 1]

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    def try_out(self, network: torch.nn.Module) -> torch.Tensor:
        """A number that depends on every weight of ``network``, this one or its parallel wrapper."""
        scale, channels = self.options["temporal_scale"], self.options["feat_dim"]
        with self.precision.autocast():
            maps = network(torch.zeros(1, channels, scale, device=next(network.parameters()).device))
        return sum(one.float().sum() for one in maps)

    def end_epoch(self, metrics: dict, labelled: bool = True) -> bool:
        """Record an epoch and go to the next learning rate. Returns whether its network is the best so far.

        Where the validation videos are not ``labelled``, their loss says nothing: then the latest network is the best.
        """
        self.metrics.append(metrics if labelled else dict(metrics, unlabelled=True))
        self.scheduler.step()
        return self.best_epoch == len(self.metrics) - 1

    def check_finite(self) -> None:
        """Check that the weights and the moments are finite, so that a failed training never replaces a checkpoint.

        Raises:
            UserError: one is not.
        """
        moments = [value for one in self.optimizer.state.values() for value in one.values()
                   if isinstance(value, torch.Tensor)]
        for name, tensor in [*self.network.named_parameters(), *(("the moments of Adam", one) for one in moments)]:
            if not torch.isfinite(tensor).all():
                raise UserError("the training has failed in epoch %d, because numbers in %s are not finite: lower "
                                "--training_lr, and --resume auto goes on from the last checkpoint"
                                % (self.epochs_done, name))

    def state_dict(self) -> dict:
        """All that a run needs to go on as if it had never stopped, except the random numbers of each rank."""
        best = self.best_record
        return {"epoch": self.epochs_done, "state_dict": self.network.state_dict(),
                "optimizer": _with_whole_steps(self.optimizer.state_dict()), "scheduler": self.scheduler.state_dict(),
                "precision": self.precision.state_dict(), "options": self.options, "metrics": self.metrics,
                "contraction": self.network.boundary_matching.contraction,
                "best_loss": best[-1]["validation"]["total"] if best else float("inf")}

    def load_state_dict(self, state: dict) -> None:
        """Go on from ``state``, as ``checkpoint.read`` returns it.

        Raises:
            UserError: the checkpoint holds a network but no run, a run of another kind, or something else.
        """
        run_state.check_parts(state)
        checkpoint.put_network(state, self.network)
        run_state.check_values(state, self.optimizer, self.options)
        known = self.scheduler.state_dict()
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.optimizer.param_groups[0].update(self._how)        # whatever wrote the checkpoint
            self.scheduler.load_state_dict({name: value for name, value in state["scheduler"].items() if name in known})
            self.precision.load_state_dict(state["precision"])
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise UserError("checkpoint %s: the state of its run does not fit this one (%s): resume with the options "
                            "that it was made with" % (state["path"], checkpoint.first_line(error))) from error
        self.metrics, self.contraction = state["metrics"], state.get("contraction", "auto")


def _many_at_once(network):
    """The option with which Adam steps all weights of a CPU at once: the same numbers in a third of the time. PyTorch
    does so by itself on a card."""
    has_it = "foreach" in inspect.signature(torch.optim.Adam.__init__).parameters
    return {"foreach": True} if has_it and next(network.parameters()).device.type == "cpu" else {}


def _with_whole_steps(state):
    """An optimizer's state with step counts as numbers, which every PyTorch reads; today's stores them as tensors."""
    steps = {key: dict(value, step=int(value["step"])) if "step" in value else value
             for key, value in state["state"].items()}
    return dict(state, state=steps)
