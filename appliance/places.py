"""Places that several receiver processes share: one small file, mapped by each of them.

Each process holds a lock on a byte of its own (an open file description lock), which the kernel lifts when
the process ends, however it does: what it had taken counts no more. Looking and taking happen under the lock
of one further byte. A slot is taken and given back by its first byte, so that a process that is killed in
between leaves either; times are those of the machine's monotonic clock, and begin anew after a boot.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from appliance.errors import ApplianceError
from dicom_node.limits import TOO_MANY_ASSOCIATIONS, NoPlaceError, check, next_due

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SLOT: Final = struct.Struct("<B16s")  # owner (0: free), AE title
_RATE: Final = struct.Struct("<16sd")  # AE title, when its next instance is due
_SLOTS: Final = 512  # more than dicom.max_associations may be
_RATES: Final = 512
_OWNERS: Final = 64
_HEAD_BYTES: Final = 64
_RATES_AT: Final = _HEAD_BYTES + _SLOTS * _SLOT.size
_BYTES: Final = _RATES_AT + _RATES * _RATE.size
_FLOCK: Final = struct.Struct("hhqqi4x")  # Linux: type, whence, start, length, process
_WAIT_S: Final = 2.0
_MUTEX: Final = 0  # bytes that are locked; those of owners follow
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class PlacesError(ApplianceError):
    """The shared places cannot be used."""


class SharedPlaces:
    """The places of all receivers that open the same file; implements ``dicom_node.ports.Places``.

    Parameters
    ----------
    path : Path
        Made when missing; its folder is on a local file system.
    clock : callable
        Seconds that only ever grow, the same in all processes.

    Raises
    ------
    PlacesError
        When too many processes have it open.
    OSError
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, _BYTES)
        self._map = mmap.mmap(self._file, _BYTES)
        self._rates: dict[bytes, int] = {}  # where titles stood last
        with self._alone():
            head = b"places 1 " + _BOOT.read_bytes().strip()[:40]
            if not self._map[:_HEAD_BYTES].startswith(head):
                self._map[:] = head.ljust(_BYTES, b"\0")
            self._owner = self._own()
            self._forget(self._owner)

    def close(self) -> None:
        """Give back every place of this process."""
        with self._lock:
            self._map.close()
            os.close(self._file)

    def enter(self, title: str, max_of_caller: int, max_in_all: int) -> int:
        """Take a place for an association; see :class:`dicom_node.ports.Places`."""
        name = _padded(title)
        with self._alone():
            owners = {owner for owner, _ in self._slots()} - {0, self._owner}
            for owner in owners:
                if self._is_free(owner):
                    self._forget(owner)
            slots = self._slots()
            taken = [known for owner, known in slots if owner]
            check(taken.count(name), len(taken), max_of_caller, max_in_all)
            place = next((number for number, (owner, _) in enumerate(slots) if not owner), None)
            if place is None:
                raise NoPlaceError(TOO_MANY_ASSOCIATIONS)
            at = _HEAD_BYTES + place * _SLOT.size
            self._map[at + 1 : at + _SLOT.size] = name
            self._map[at] = self._owner
        return place

    def leave(self, place: int) -> None:
        """Give a place back."""
        with self._alone():
            at = _HEAD_BYTES + place * _SLOT.size
            if self._map[at] == self._owner:
                self._map[at] = 0

    def pause_s(self, title: str, per_minute: int) -> float:
        """Take one instance of a caller's rate, and return how long it has to wait for that."""
        name = _padded(title)
        with self._alone():
            at = self._rate_at(name)
            known, due = _RATE.unpack_from(self._map, at)
            pause, due = next_due(due if known == name else 0.0, self._clock(), per_minute)
            _RATE.pack_into(self._map, at, name, due)
        return pause

    def _slots(self) -> list[tuple[int, bytes]]:
        return list(_SLOT.iter_unpack(self._map[_HEAD_BYTES:_RATES_AT]))

    def _rate_at(self, name: bytes) -> int:
        """Return where a title's rate stands, or the place of the one that was silent for longest."""
        at = self._rates.get(name)
        if at is None or self._map[at : at + 16] != name:
            rates = list(_RATE.iter_unpack(self._map[_RATES_AT:]))
            number = next((number for number, (known, _) in enumerate(rates) if known == name), None)
            if number is None:
                number = min(range(_RATES), key=lambda one: rates[one][1])
            at = self._rates[name] = _RATES_AT + number * _RATE.size
        return at

    def _own(self) -> int:
        for owner in range(1, _OWNERS + 1):
            if self._locked(owner):
                return owner
        raise PlacesError(f"expected at most {_OWNERS} receivers at the same time")

    def _forget(self, gone: int) -> None:
        for place, (owner, _) in enumerate(self._slots()):
            if owner == gone:
                self._map[_HEAD_BYTES + place * _SLOT.size] = 0

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Have the table for a moment; a process that is stopped while it has it must not stop the others."""
        with self._lock:
            deadline = time.monotonic() + _WAIT_S
            while not self._locked(_MUTEX):
                if time.monotonic() > deadline:
                    raise PlacesError("another receiver holds the shared places and does not go on")
                time.sleep(0.0001)
            try:
                yield
            finally:
                fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, _MUTEX))

    def _locked(self, byte: int) -> bool:
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, byte))
        except BlockingIOError:
            return False
        return True

    def _is_free(self, owner: int) -> bool:
        """Say whether nobody holds the byte of an owner."""
        found = fcntl.fcntl(self._file, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, owner))
        return bool(_FLOCK.unpack(found)[0] == fcntl.F_UNLCK)


def _padded(title: str) -> bytes:
    return title.encode()[:16].ljust(16, b"\0")


def _flock(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)
