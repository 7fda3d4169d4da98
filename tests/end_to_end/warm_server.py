"""Lets one server of stage processes outlive the commands that share it. Importing it has effects; only it does.

multiprocessing's fork server ends with an EOFError where its client is killed between connecting and saying what it
wants. A command's own server has nothing left to live for then; this one has commands to come.
"""

import errno
from multiprocessing import reduction
from socket import socket

_receive = reduction.recvfds


def receive(client: socket, size: int) -> list[int]:
    try:
        return _receive(client, size)
    except EOFError as error:  # the one kind of error that the server goes on after
        raise ConnectionAbortedError(errno.ECONNABORTED, "the client was killed") from error


reduction.recvfds = receive
