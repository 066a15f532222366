"""The shared public CT and MR under the option: bodies, phantoms and cropped volumes are no heads to cut."""

from __future__ import annotations

import gzip
import struct
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from anonymizer import part10
from anonymizer.errors import StopError
from anonymizer.faces.planes import Plane
from anonymizer.faces.region import region_of
from anonymizer.faces.series import Faces, series_of
from anonymizer.faces.volume import Stack
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.real_data
@pytest.mark.slow
def test_no_public_series_is_taken_for_a_head() -> None:
    by_series: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(each for each in (shared_data_dir() / "dicom").rglob("*") if each.is_file()):
        by_series[series_of(path.read_bytes())].append(path)
    del by_series[""]
    assert len(by_series) > 50
    for paths in by_series.values():
        with pytest.raises(StopError) as caught:
            Faces.of_paths(paths)(part10.read(paths[0].read_bytes()))
        assert caught.value.code == "face_not_removed"


@pytest.mark.real_data
def test_a_cropped_brain_volume_is_refused() -> None:
    folder = shared_data_dir() / "hippocampus_msd" / "images"
    for path in sorted(folder.glob("*.nii.gz"))[:12]:
        values = _nifti(path)
        stack: Stack | None = None
        for number in range(values.shape[2]):
            corner = np.array([0.0, 0.0, float(number)])
            plane = Plane(corner, np.array([0.0, 1, 0]), np.array([1.0, 0, 0]), *values.shape[1::-1])
            stack = stack or Stack(plane)
            stack.add(plane, values[:, :, number].T)
        assert stack is not None
        with pytest.raises(StopError, match="expected a head"):
            region_of(stack.volume(), tomography=False)


def _nifti(path: Path) -> Any:
    """Read the voxels of a NIfTI-1 file of one volume."""
    content = gzip.decompress(path.read_bytes())
    shape = struct.unpack_from("<3h", content, 42)
    kind = {2: "u1", 4: "<i2", 8: "<i4", 16: "<f4", 512: "<u2"}[struct.unpack_from("<h", content, 70)[0]]
    offset = int(struct.unpack_from("<f", content, 108)[0])
    count = int(np.prod(shape))
    return np.frombuffer(content, kind, count, offset).reshape(shape, order="F").astype(np.float32)
