"""NIfTI-1 files, as far as the shared volumes need it."""

from __future__ import annotations

import gzip
import struct
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_TYPES: Final = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}


def read_nifti(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return voxels, shape (x, y, z), and the affine (4, 4) from index to mm right, front and up (RAS)."""
    content = gzip.decompress(path.read_bytes())
    if struct.unpack_from("<i", content, 0)[0] != 348:
        raise ValueError(f"{path.name}: expected a little-endian NIfTI-1 header")
    size = struct.unpack_from("<8h", content, 40)
    kind = struct.unpack_from("<h", content, 70)[0]
    start = int(struct.unpack_from("<f", content, 108)[0])
    shape = size[1 : 1 + size[0]]
    affine = np.eye(4)
    affine[:3] = np.array(struct.unpack_from("<12f", content, 280)).reshape(3, 4)
    count = int(np.prod(shape))
    voxels = np.frombuffer(content, f"<{_TYPES[kind]}", count, start)
    return voxels.reshape(shape, order="F"), affine
