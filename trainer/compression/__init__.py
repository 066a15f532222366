"""Updates made small before they leave: fewer bits, fewer coordinates, and what was left out comes later.

A packed update is arrays, too, so that it travels, is hashed, stored and named in the receipt as any other.
The coordinator unpacks it before it looks at it: bounds and aggregation are those of plain updates.
"""

from __future__ import annotations

from trainer.compression.base import CompressionError, Draw, Packed
from trainer.compression.spec import NAMES, Compression, draw_of

__all__ = ["NAMES", "Compression", "CompressionError", "Draw", "Packed", "draw_of"]
