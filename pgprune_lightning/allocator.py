"""The C library's allocator: what it keeps of the memory that has been freed."""

import ctypes


def give_back_freed_memory() -> None:
    """Have the process hold little more than it uses.

    Left to itself, glibc keeps what lies free between blocks that are in use. What it is asked for
    next has to be taken from the system again, so this is for the end of a phase, not for each
    step. With another C library, nothing is done.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):  # not glibc; no name at all for Windows
        return
