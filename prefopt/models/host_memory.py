"""What the C library does with memory that tensors gave back, on a CPU."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
# Blocks of this size are given back as soon as they are freed, and the free end of the heap when it is this long.
_GIVEN_BACK, _KEPT = (2**20, 2**21), (2**25, 2**31 - 1)
WIDE = 256

_done = {"returned": False}  # in this process


def return_large_blocks(hidden_size: int) -> bool:
    """Let the GNU C library give every freed block of a mebibyte or more back to the system at once.

    By itself it raises that limit up to 32 MiB as a program frees such blocks, and keeps smaller ones in a heap that
    the activations of a transformer fragment: twice to three times as much was resident as tensors needed. Getting
    fresh pages each time costs a narrow model more time than its memory is worth, so narrow ones are left alone.

    Args:
        hidden_size: Of the model.

    Returns:
        Whether it was done: on Linux with that library, unless `MALLOC_MMAP_THRESHOLD_` says otherwise.
    """
    if sys.platform != "linux" or hidden_size < WIDE or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    _done["returned"] = _limit(*_GIVEN_BACK)
    return _done["returned"]


def keep_large_blocks(keep: bool) -> bool:
    """Undo what `return_large_blocks` did, or do it again; nothing where it did nothing.

    Args:
        keep: Whether the library has the limit that it arrives at by itself, 32 MiB, and what a step leaves free stays
            the process's for the next one, however much that is.

    Returns:
        Whether it was done.
    """
    return _done["returned"] and _limit(*(_KEPT if keep else _GIVEN_BACK))


def _limit(size: int, end: int) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, size)) and bool(mallopt(_M_TRIM_THRESHOLD, end))
