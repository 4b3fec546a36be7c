"""Who owns a folder: one running process, until it has ended in any way, also where machines share the disk.

The owner holds a lock on ``<folder>/.owner``, which the kernel frees when the process dies, and writes into that file
who it is and a number that it raises every BEAT seconds. On some network disks a lock holds only within one machine. So
a process that gets the lock of an owner on another machine watches that number: while it rises, the owner lives.
"""
import contextlib
import errno
import json
import os
import platform
import threading
import time
from typing import Any, Callable, Dict

from bmn.errors import UserError

try:
    import fcntl
except ImportError:         # this system has no such locks: then the number alone decides
    fcntl = None

FILE = ".owner"
BEAT = 3.0                  # seconds between two numbers
SILENT = 5 * BEAT           # seconds after which an owner on another machine counts as dead
SIZE = 512                  # bytes of the file: always the same, so that it is never seen half-written
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Owner:
    """This process as the owner of a folder. Use it in a ``with`` block, whose end gives the folder back.

    Args:
        folder: it is made where it is missing.
        option: the option that names it, for messages.
        log: called with one line, where an owner on another machine has to be watched.

    Raises:
        UserError: another process owns the folder, or its file cannot be written.
    """

    def __init__(self, folder: str, option: str, log: Callable[[str], None] = print):
        self.folder, self.option, self.path = folder, option, os.path.join(os.path.abspath(folder), FILE)
        self._log, self._ended, self._lock = log, threading.Event(), threading.Lock()
        self._me = {"process": os.getpid(), "machine": platform.node(), "kernel": _kernel(),
                    "since": time.strftime("%Y-%m-%d %H:%M:%S"), "key": os.urandom(8).hex()}
        self._beats, self._handle, self._made = 0, None, False

    def __enter__(self) -> "Owner":
        self._take()
        if hasattr(os, "register_at_fork"):     # the lock must not live on in a helper when this process has died
            os.register_at_fork(after_in_child=self._forget)
        threading.Thread(target=self._beat, name="owner", daemon=True).start()
        return self

    def __exit__(self, *error):
        self._ended.set()
        with self._lock:
            if self._handle is not None:
                with contextlib.suppress(OSError):
                    if self._is_ours():
                        os.ftruncate(self._handle, 0)
                        self._remove_an_empty_folder()
                self._forget()

    def _remove_an_empty_folder(self):
        """A run that was refused leaves no folder that it made. Who just opened the file sees that it is gone."""
        folder = os.path.dirname(self.path)
        if self._made and os.listdir(folder) == [FILE]:
            os.remove(self.path)
            os.rmdir(folder)

    def check(self) -> None:
        """Make sure that the folder is still ours; every write into it comes after this. A removed one is made again.

        Raises:
            UserError: another process has taken it, because this one had stood still; or it cannot be written.
        """
        with self._lock:
            if not os.path.exists(self.path):
                self._forget()
                self._take()
            elif not self._is_ours():
                raise self._taken(_read(self.path), "has taken over")

    def _take(self):
        try:
            self._made = self._made or not os.path.isdir(os.path.dirname(self.path))
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            locked = _locked(self._handle)
        except BlockingIOError:
            self._forget()
            raise self._taken(_read(self.path), "owns") from None
        except OSError as error:
            raise UserError("cannot write %s (%s): give a --%s that can be written"
                            % (self.path, error.strerror, self.option)) from error
        before = _read(self.path)
        # A lock that we got holds within this kernel: then an owner of this kernel is dead. Any other may live.
        if before and not (locked and before.get("kernel") == self._me["kernel"]):
            self._log("%s belonged to %s: looking for %d seconds whether that is still alive"
                      % (self.folder, _named(before), SILENT))
            until = time.monotonic() + SILENT
            while time.monotonic() < until:
                time.sleep(BEAT / 4)
                now = _read(self.path)
                if now and now != before:
                    self._forget()
                    raise self._taken(now, "owns")
        self._write()
        if not locked:      # of two that come together, the one whose name stands there afterwards
            time.sleep(BEAT / 2)
            if not self._is_ours():
                self._forget()
                raise self._taken(_read(self.path), "owns")

    def _taken(self, who, does):
        return UserError("%s %s --%s %s: wait until that run has ended, or give another folder"
                         % (_named(who), does, self.option, self.folder))

    def _is_ours(self):
        return _read(self.path).get("key") == self._me["key"]

    def _beat(self):
        while not self._ended.wait(BEAT):
            with self._lock, contextlib.suppress(OSError):      # a full disk: check() and the next save will say it
                if self._handle is not None and self._is_ours():
                    self._write()

    def _write(self):
        self._beats += 1
        os.pwrite(self._handle, json.dumps(dict(self._me, beats=self._beats)).encode().ljust(SIZE), 0)
        os.fsync(self._handle)                  # another machine must see it

    def _forget(self):
        handle, self._handle = self._handle, None
        if handle is not None:
            with contextlib.suppress(OSError):
                os.close(handle)


def _locked(handle):
    """Whether this process now holds the lock; False where there are no locks; BlockingIOError where another has it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise


def _read(path) -> Dict[str, Any]:
    """What the owner has written; {} where there is nothing, or it is being written."""
    try:
        with open(path, encoding="utf-8") as handle:
            content = json.load(handle)
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def _named(who):
    if not who:
        return "another process"
    return "process %s on machine %s (since %s)" % (who.get("process"), who.get("machine"), who.get("since"))


def _kernel():
    """What tells this running kernel from any other; containers of a machine share it, whatever their names."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as handle:
            return handle.read().strip()
    except OSError:
        return platform.node()
