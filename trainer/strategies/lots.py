"""Draws that every site can make and check on its own."""

from __future__ import annotations

import hashlib


def lot(purpose: str, seed: int, number: int, name: str) -> bytes:
    """Return a name's lot in a round; whoever has the lowest is drawn.

    Each name has its own: who is away changes no choice but those that would have been its.
    """
    return hashlib.sha256(f"{purpose}\n{seed}\n{number}\n{name}".encode()).digest()
