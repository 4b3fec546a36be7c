"""How far a long loop is: a bar on a terminal, and a line every so often where the log goes into a file."""
import time
from typing import Any, Callable, Iterable, Iterator

from tqdm import tqdm

from bmn.options import DEFAULTS
from bmn.values import counted


def size_text(number: int) -> str:
    """A number of bytes in GB, or in MB where it is small."""
    return "%.2f GB" % (number / 1e9) if number >= 1e8 else "%.1f MB" % (number / 1e6)


class Progress:
    """Use it in a ``with`` block, and tell :meth:`add` what has been done.

    Args:
        what: the work, as the line begins: "inference".
        total: how many items there are.
        unit: what an item is: "video".
        seconds: between two lines.
        log: called with one line; None prints nothing at all.
        per_minute: also say how many items are done in a minute.
    """

    def __init__(self, what: str, total: int, unit: str, seconds: float = DEFAULTS["log_seconds"],
                 log: Any = print, per_minute: bool = False):
        self.what, self.total, self.unit, self.seconds, self.log = what, total, unit, seconds, log
        self.done, self._began, self._per_minute = 0, time.monotonic(), per_minute
        self._said = self._began
        # tqdm writes to stderr, and shows nothing where that is no terminal.
        self._bar = tqdm(desc=what, total=total, unit=unit, disable=None if log else True, leave=False)
        self._has_bar = not self._bar.disable

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error):
        self._bar.close()

    def add(self, number: int = 1) -> None:
        """``number`` more items are done."""
        self.done = min(self.done + number, self.total)
        self._bar.update(self.done - self._bar.n)
        now = time.monotonic()
        rate = ", %.1f a minute" % (60 * self.done / max(now - self._began, 1e-9)) if self._per_minute else ""
        if rate:
            self._bar.set_postfix_str(rate[2:])
        if self.log and not self._has_bar and now - self._said >= self.seconds and self.done < self.total:
            self._said = now
            left = int((now - self._began) / self.done * (self.total - self.done))
            self.log("%s: %d of %s%s, ends in %d:%02d:%02d" % (
                self.what, self.done, counted(self.total, self.unit), rate, left // 3600, left // 60 % 60, left % 60))


def progress(items: Iterable[Any], what: str, total: int, unit: str, seconds: float = DEFAULTS["log_seconds"],
             log: Callable[[str], None] = print) -> Iterator[Any]:
    """The ``items``, while a :class:`Progress` counts them; the other arguments are its own."""
    with Progress(what, total, unit, seconds, log) as one:
        for item in items:
            yield item
            one.add()
