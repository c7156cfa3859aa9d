"""Replacing a folder by a new version in one step: whoever looks, at any moment, finds the old one or the new one.

Linux exchanges two folders in one step (renameat2). What had files of the old version open keeps them.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ragstone.errors import InputError

T = TypeVar("T")

RENAME_EXCHANGE = 2
AT_FDCWD = -100
NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV)
WORKSHOP_SUFFIX = ".ragstone-update"


@contextmanager
def new_version(folder: Path) -> Iterator[Path]:
    """A new folder to write into: it takes the place of `folder` when the with-block ends well.

    Until then `folder` stays as it is, also when the process is killed; what a killed one leaves beside it is removed
    by the next.

    Raises:
        InputError: another process is replacing `folder`, or its file system cannot exchange folders in one step.
    """
    final = folder.resolve()
    workshop = final.with_name(f".{final.name}{WORKSHOP_SUFFIX}")
    with _lock(final) as identity:
        try:
            shutil.rmtree(workshop, ignore_errors=True)
            # The workshop itself is closed to other users; what is made in it has the user's own permissions.
            workshop.mkdir(mode=0o700)
            _refuse_without_exchange(workshop, folder)
            new = workshop / "new"
            new.mkdir()
            shutil.copystat(final, new)
            yield new
            _flush(new)
            if _identity(final) != identity:
                raise InputError(f"{folder} was moved or replaced meanwhile and stays as it is now; start again.")
            exchange(new, final)
            _flush_folder(final.parent)
        finally:
            # Holds the old version now, or what there is of the new one.
            shutil.rmtree(workshop, ignore_errors=True)


def exchange(first: Path, second: Path) -> None:
    """Let two paths of one file system change places, in one step.

    Raises:
        OSError: the system cannot; both are as they were.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(first))
    failed = renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), ctypes.c_uint(RENAME_EXCHANGE))
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(first), None, str(second))


def read_one_version(folder: Path, read: Callable[[], T]) -> T:
    """What `read` gives, all from one version of `folder`: repeated where another came into its place meanwhile."""
    while True:
        # While it is open, no other folder can get its number.
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            # No folder, or none that may be read: `read` knows what to say.
            return read()
        try:
            before = os.fstat(descriptor)
            try:
                found = read()
            except Exception:
                # Files that vanish while they are read belong to an old version.
                if _is(folder, before):
                    raise
                continue
            if _is(folder, before):
                return found
        finally:
            os.close(descriptor)


@contextmanager
def _lock(folder: Path) -> Iterator[tuple[int, int]]:
    """Keep other processes from replacing `folder`; gives its identity."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        busy = InputError(f"{folder} is being updated by another process; wait until it is done.")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError as error:
            raise InputError(
                f"The file system of {folder} cannot keep a second update away ({error.strerror}); give --output_dir a "
                "new folder for the updated source."
            ) from error
        identity = _identity(folder)
        if not _is(folder, os.fstat(descriptor)):
            # The other process was done just now.
            raise busy
        yield identity
    finally:
        os.close(descriptor)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _is(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), status)
    except OSError:
        return False


def _refuse_without_exchange(workshop: Path, folder: Path) -> None:
    """Try it on two empty folders, before hours go into what could not be put into its place."""
    first, second = workshop / "first", workshop / "second"
    first.mkdir()
    second.mkdir()
    try:
        exchange(first, second)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        raise InputError(
            f"The file system of {folder} cannot exchange two folders in one step, so that readers might find neither; "
            "give --output_dir a new folder for the updated source."
        ) from error
    first.rmdir()
    second.rmdir()


def _flush(folder: Path) -> None:
    """Have all of `folder` on the disk, so that a loss of power after the exchange finds it whole."""
    for path in folder.rglob("*"):
        if path.is_dir():
            _flush_folder(path)
        elif path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
