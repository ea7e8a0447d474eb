"""A lock that tells others, at once, that the thread holding it has ended.

A pthread mutex that is *robust* and *process-shared*, in memory that two processes map. One thread
holds it for the rest of its life; the other process waits for it. At the very start of that thread's
exit, before any of the process's memory is given back, the kernel walks the thread's list of robust
locks, marks this one "owner died" and wakes a waiter (``man 2 get_robust_list``). The same happens when
the holder's program is replaced by ``exec``: what the release *means* is for the waiter to find out.

Why libc through ctypes: the interpreter's ``mmap`` object is unmapped during finalization, before the
exit, and a lock that is not mapped is not marked. So a mapping made here is **never unmapped**, has no
finalizer, and costs one page for each lock until the process ends. Unmapping it would also cut the
kernel's walk short and lose the locks behind it.

A forked child inherits the memory but not the list: its end releases nothing.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

MUTEX_BYTES = 64
"""Room to leave for a mutex: no libc's is larger (40 bytes on x86-64, 48 on aarch64)."""

_ATTRIBUTE_BYTES = 64
_PROCESS_SHARED = 1
_ROBUST = 1
_MAP_FAILED = ctypes.c_void_p(-1).value

# CDLL, not PyDLL: its calls release the GIL, so a thread can wait in one of them.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]


def map_shared(fd: int, length_bytes: int) -> int:
    """Map the first bytes of a file, shared and for ever; return the address.

    Raises ``OSError`` when it cannot be mapped, or is shorter: touching what is beyond its end is SIGBUS.
    """
    if os.fstat(fd).st_size < length_bytes:
        raise OSError(errno.EINVAL, f"the file of descriptor {fd} is shorter than {length_bytes} bytes")
    address: int | None = _libc.mmap(
        None, length_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0
    )
    if address is None or address == _MAP_FAILED:
        raise _os_error(ctypes.get_errno())
    return address


class RobustMutex:
    """The mutex at ``address``, ``MUTEX_BYTES`` in a shared mapping; ``create`` has to come first, once."""

    def __init__(self, address: int) -> None:
        self._pointer = ctypes.c_void_p(address)

    @classmethod
    def create(cls, address: int) -> RobustMutex:
        """Make a mutex in zeroed memory. Raises ``OSError`` where libc or the kernel has no robust ones."""
        if not hasattr(_libc, "pthread_mutexattr_setrobust"):
            raise _os_error(errno.ENOTSUP)
        mutex = cls(address)
        attributes = ctypes.create_string_buffer(_ATTRIBUTE_BYTES)
        _check(_libc.pthread_mutexattr_init(attributes))
        _check(_libc.pthread_mutexattr_setpshared(attributes, _PROCESS_SHARED))
        _check(_libc.pthread_mutexattr_setrobust(attributes, _ROBUST))
        _check(_libc.pthread_mutex_init(mutex._pointer, attributes))
        return mutex

    def hold(self) -> None:
        """Take the free mutex for the rest of the calling thread's life: it cannot be given back."""
        _check(_libc.pthread_mutex_lock(self._pointer))

    def wait_for_owner(self) -> None:
        """Block, without the GIL, until the thread that holds the mutex has ended. Once in a thread.

        The kernel wakes one waiter, and the mutex is that thread's now. It must end soon, and not give
        the mutex back: by its end the next waiter hears the same news, and all who come later. (Unlocking
        would reach the second waiter and no third: glibc does not wake on from there.)
        Raises ``OSError`` when nobody held the mutex.
        """
        result = _libc.pthread_mutex_lock(self._pointer)
        if result != errno.EOWNERDEAD:
            raise _os_error(result or errno.EINVAL)


def _check(result: int) -> None:
    """The pthread calls return their error, they do not set errno."""
    if result != 0:
        raise _os_error(result)


def _os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
