"""Who holds a lease: a name for this very process, by which others on the machine see that it died."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from pathlib import Path
from typing import Final

_MAX_ROLE: Final = 18


def token(role: str) -> str:
    """Return a fresh lease owner, at most 64 characters: role, machine, process, start, random part."""
    pid = os.getpid()
    return f"{role[:_MAX_ROLE]}@{_machine()}:{pid}:{started(pid)}:{secrets.token_hex(4)}"


def is_dead(owner: str | None) -> bool:
    """Whether the process that wrote this owner is known to have ended; False when nobody can tell."""
    if owner is None:
        return False
    try:
        machine, pid, began, _ = owner.rpartition("@")[2].split(":")
        known = machine == _machine()
        return known and started(int(pid)) != began
    except ValueError:
        return False


def _machine() -> str:
    """Name machine, boot and process namespace: process numbers mean the same only within these."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    parts = (
        socket.gethostname(),
        boot.read_text(encoding="ascii") if boot.exists() else "",
        str(Path("/proc/self/ns/pid").readlink()) if Path("/proc/self/ns/pid").exists() else "",
    )
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:8]


def started(pid: int) -> str:
    """Return the process's start time in clock ticks since boot, or "gone" (a zombie has gone, too)."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "gone"
    fields = content.rpartition(")")[2].split()
    return "gone" if fields[0] in "ZX" else fields[19]
