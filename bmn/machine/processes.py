"""One process among many: finding the others, and ending together.

When a process dies, the whole run must end immediately and with a clear message. The other processes must not wait.
Collectives notice a lost process late (on cards after minutes), or report it in a page of C++. A TCP connection shows
it immediately, because the kernel closes it however a process ends. So rank 0 is connected to every other rank, and a
thread in each process waits for the end of a connection.
"""
import contextlib
import datetime
import multiprocessing
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from typing import Any, Tuple

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from bmn.errors import UserError

MASTER = ("127.0.0.1", "29681")         # address and port of rank 0, where the environment does not name them
JOIN_WITHIN = datetime.timedelta(minutes=10)
EXCHANGE_WITHIN = datetime.timedelta(minutes=30)
GOODBYE = b"."
TOKEN_BYTES = 16
HELLO_SECONDS = 10.0
GRACE_SECONDS = 5.0


class Member:
    """This process as a member of the run: ``rank`` of ``world_size``, and ``local_rank`` on its machine."""

    def __init__(self, opt: dict):
        """Read the launcher's environment (torchrun, torch.distributed.launch), else the options of the old port.

        Args:
            opt: complete dict of options; is_distributed, world_size and local_rank are read.

        Raises:
            UserError: a value in the environment is not a number, or the numbers contradict each other.
        """
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            self.rank, self.world_size = _number("RANK"), _number("WORLD_SIZE")
            self.local_rank = _number("LOCAL_RANK", opt["local_rank"])
            if opt["world_size"] not in (1, self.world_size):
                raise UserError("--world_size %d, but the launcher started %d processes (WORLD_SIZE): leave the option "
                                "out or make them equal" % (opt["world_size"], self.world_size))
        elif opt["is_distributed"]:
            self.world_size = opt["world_size"]
            self.rank = self.local_rank = opt["local_rank"]
        elif opt["world_size"] > 1:
            raise UserError("--world_size %d without --is_distributed 1: add it, or start with torchrun"
                            % opt["world_size"])
        else:
            self.rank, self.local_rank, self.world_size = 0, 0, 1
        if not 0 <= self.rank < self.world_size:
            raise UserError("this is rank %d of %d processes: --local_rank (or RANK) must be below --world_size (or "
                            "WORLD_SIZE)" % (self.rank, self.world_size))


def _number(name, default=None):
    text = os.environ.get(name, default)
    try:
        return int(text)
    except ValueError:
        raise UserError("%s=%s in the environment is not a number: let the launcher set it" % (name, text)) from None


def join(member: Member, kind: str, backend: str) -> Tuple[Any, "Peers"]:
    """Connect to the other processes and make the process group.

    Args:
        member: this process.
        kind: the kind of device that this process uses; it must be the same in all processes.
        backend: name of a backend of torch.distributed.

    Returns:
        (store, peers): the key-value store of torch.distributed, and the :class:`Peers` that watch the processes.

    Raises:
        UserError: the processes cannot connect, or they use different kinds of devices.
    """
    os.environ.setdefault("MASTER_ADDR", MASTER[0])
    os.environ.setdefault("MASTER_PORT", MASTER[1])
    os.environ.update(RANK=str(member.rank), WORLD_SIZE=str(member.world_size))
    try:
        store, _, _ = next(rendezvous("env://", timeout=JOIN_WITHIN))
        peers = Peers(store, member.rank, member.world_size, os.environ["MASTER_ADDR"], JOIN_WITHIN.total_seconds())
        store.set("bmn/kind/%d" % member.rank, kind)
        kinds = [store.get("bmn/kind/%d" % rank).decode() for rank in range(member.world_size)]
        if len(set(kinds)) == 1:
            dist.init_process_group(backend, store=store, rank=member.rank, world_size=member.world_size,
                                    timeout=EXCHANGE_WITHIN)
            return store, peers
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError("rank %d of %d could not join the others at %s:%s (MASTER_ADDR, MASTER_PORT): %s; "
                        "check that all processes run and have this address"
                        % (member.rank, member.world_size, os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"],
                           (str(error) or repr(error)).splitlines()[0])) from None
    raise UserError("the processes chose different devices (%s): give the same --device to all"
                    % ", ".join("rank %d %s" % pair for pair in enumerate(kinds)))


class Peers:
    """The watch over the other processes: it ends this process when one of them is lost.

    Args:
        store: key-value store of torch.distributed, through which rank 0 says on which port it listens.
        rank, world_size: numbers of this process, as in :class:`Member`.
        host: address of rank 0.
        timeout: seconds to wait for a connection.

    Raises:
        OSError, RuntimeError: the ranks cannot connect.
    """

    def __init__(self, store: Any, rank: int, world_size: int, host: str, timeout: float):
        self.rank = rank
        self._goodbyes = threading.Event()
        if rank == 0:
            self._connections = _welcome(store, world_size, timeout)
            watch = self._watch_all
        else:
            port, token = store.get("bmn/watch").decode().split()
            connection = socket.create_connection((host, int(port)), timeout)
            connection.sendall(bytes.fromhex(token) + rank.to_bytes(4, "big"))
            connection.settimeout(None)
            self._connections = {rank: connection}
            watch = self._watch_main
        for connection in self._connections.values():
            _keep_alive(connection)
        # A forked data worker would keep the connection open after this process has died.
        os.register_at_fork(after_in_child=self._close)
        threading.Thread(target=watch, name="peers", daemon=True).start()

    def leave(self) -> None:
        """Say goodbye before this process ends. Rank 0 waits until all other ranks have said goodbye."""
        if self.rank:
            self._goodbyes.set()
            self._connections[self.rank].sendall(GOODBYE)
        else:
            self._goodbyes.wait()
        self._close()

    def give_way(self) -> None:
        """Wait after a failed exchange: if a process was lost, the watch notices it now and ends this process."""
        time.sleep(GRACE_SECONDS)

    def _close(self):
        for connection in self._connections.values():
            connection.close()

    def _watch_all(self):
        """Rank 0 watches until every other rank has said goodbye."""
        with selectors.DefaultSelector() as selector:
            for rank, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    if _received(key.fileobj) != GOODBYE:
                        self._end(key.data)
                    selector.unregister(key.fileobj)
        self._goodbyes.set()

    def _watch_main(self):
        """Any other rank watches until the connection ends, or until rank 0 says which rank was lost."""
        word = _received(self._connections[self.rank], 4)
        if not self._goodbyes.is_set():
            self._end(int.from_bytes(word, "big"))

    def _end(self, lost):
        if self.rank == 0:
            for rank, connection in self._connections.items():
                if rank != lost:
                    _send(connection, lost.to_bytes(4, "big"))
        print("error: rank %d ended before the run was done (its own message, if it left one, says why): rank %d "
              "stops as well" % (lost, self.rank), file=sys.stderr, flush=True)
        for child in multiprocessing.active_children():     # data workers, because nothing else would end them
            child.terminate()
        sys.stdout.flush()
        os._exit(1)                                         # because the main thread may be waiting in a collective


def _welcome(store, world_size, timeout):
    """Rank 0 listens and accepts a connection from every other rank. Returns {rank: connection}."""
    token = secrets.token_bytes(TOKEN_BYTES)
    connections = {}
    with _listening() as server:
        server.settimeout(timeout)
        store.set("bmn/watch", "%d %s" % (server.getsockname()[1], token.hex()))
        while len(connections) < world_size - 1:
            connection, _ = server.accept()
            connection.settimeout(HELLO_SECONDS)
            hello = _received(connection, TOKEN_BYTES + 4)
            if hello[:TOKEN_BYTES] != token:                # a port scanner and not a rank of this run
                connection.close()
                continue
            connection.settimeout(None)
            connections[int.from_bytes(hello[TOKEN_BYTES:], "big")] = connection
    return connections


def _listening():
    """A listening socket on a free port, for IPv6 and IPv4 where the machine has both."""
    if socket.has_ipv6:
        try:
            server = socket.socket(socket.AF_INET6)
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            server.bind(("::", 0))
            server.listen()
            return server
        except OSError:
            server.close()
    server = socket.socket(socket.AF_INET)
    server.bind(("", 0))
    server.listen()
    return server


def _received(connection, size=1):
    """The next ``size`` bytes, or fewer where the connection ends."""
    data = b""
    try:
        while len(data) < size:
            more = connection.recv(size - len(data))
            if not more:
                break
            data += more
    except OSError:             # a reset also means that the other process is gone
        pass
    return data


def _send(connection, data):
    with contextlib.suppress(OSError):
        connection.sendall(data)


def _keep_alive(connection):
    """Make the kernel find out within about a minute that the other machine has lost its power."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
