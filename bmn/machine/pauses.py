"""Where all processes of a run interrupt their steps together: to say how far they are, to save, to stop.

Rank 0 decides, and the others learn of it through the store, so no step waits for a device. A decision also says after
how many more steps the next one comes. That is about EVERY seconds, so the processes meet rarely, but soon after a
signal.
"""
import signal
import time
from typing import Any, NamedTuple, Optional

from bmn.errors import Stopped

EVERY = 0.5         # seconds between two decisions
AT_MOST = 16        # steps between them, in case the steps become slower
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Pause(NamedTuple):
    """What all processes do after a step: report, save, or save and stop because of the signal ``stop``."""
    report: bool
    save: bool
    stop: str


class Pauses:
    """The pauses of a training. Inside its ``with`` block, SIGTERM and SIGUSR1 end the run at the next pause.

    A run that ends so ignores them from then on: its processes still take leave of each other, while launchers send the
    signal again to those that are left.

    Args:
        runtime: runtime.Runtime.
        log_seconds: seconds between two reports.
        save_every: minutes between two saves; 0 means none.
    """

    def __init__(self, runtime: Any, log_seconds: float, save_every: float):
        self._runtime, self._log_seconds, self._save_seconds = runtime, log_seconds, 60 * save_every
        self._signal, self._told, self._before = "", False, {}
        self._reported = self._saved = time.monotonic()
        self.begin()

    def __enter__(self) -> "Pauses":
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind, error, trace):
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if kind is Stopped else handler)

    def _note(self, number, frame):
        self._signal = signal.Signals(number).name

    def begin(self, done: int = 0) -> None:
        """A loop begins, of which ``done`` steps are done."""
        self._done, self._next, self._since = done, done + 1, time.monotonic()

    def saved(self) -> None:
        """Everything has been saved just now, by the caller."""
        self._saved = time.monotonic()

    def after(self, done: int) -> Optional[Pause]:
        """What to do after a step; ``done`` are done. None: go on. Every rank calls this after the same steps."""
        if done < self._next:
            return None
        if self._signal and not self._told:
            self._runtime.ask_to_stop(self._signal)
            self._told = True
        decision = self._runtime.agreed(self._decide(done) if self._runtime.is_main else None)
        self._next = decision[0]
        pause = Pause(*decision[1:])
        return pause if any(pause) else None

    def _decide(self, done):
        now = time.monotonic()
        report, save = now - self._reported >= self._log_seconds, 0 < self._save_seconds <= now - self._saved
        if report:
            self._reported = now
        if save:
            self._saved = now
        pace = (now - self._since) / (done - self._done)
        self._done, self._since = done, now
        return done + max(1, min(AT_MOST, int(EVERY / max(pace, 1e-9)))), report, save, self._runtime.asked_to_stop()
