"""Information objects that the node makes, and those that it stores (PS3.2 N.9 and later)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID

from appliance.conformance.markdown import attribute, joined, named, table, uid_name
from dicom_node import sop_classes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from inference.results.context import ResultContext, SegmentContext

_COPIED: Final = "copied from the study"
_DX: Final = "1.2.840.10008.5.1.4.1.1.1.1"
_SLICE: Final[Mapping[str, Any]] = MappingProxyType({
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4",
    "Modality": "MR",
    "FrameOfReferenceUID": "2.25.4",
    "PositionReferenceIndicator": "",
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "PixelSpacing": [1, 1],
    "SliceThickness": 1,
})  # fmt: skip
_ORIGIN: Final[Mapping[str, Any]] = MappingProxyType({
    "package_sha256": "0" * 64,
    "revision_id": "0" * 32,
    "made_at": datetime(2026, 1, 1, tzinfo=UTC),
    "software_version": "1",
})  # fmt: skip


def blocks() -> dict[str, str]:
    """Return what results of an invented study consist of, and the classes that are stored."""
    from inference.results.sc import build_capture  # noqa: PLC0415 - heavy libraries
    from inference.results.seg import build_segmentation  # noqa: PLC0415
    from inference.results.sr import build_report  # noqa: PLC0415

    context = _context()
    known = sorted(sop_classes.storage_classes().items(), key=lambda item: _parts(item[0]))
    rows = [
        (one.name or "(of no name any more)", f"`{uid}`", "retired" if one.retired else "")
        for uid, one in known
    ]
    marked = _segment_context()
    return {
        "report": _made(build_report(context)),
        "capture": _made(build_capture(context)),
        "segmentation": _made(build_segmentation(marked, marked.marked[0])),
        "storage_classes": table(("SOP class", "UID", ""), rows),
    }


def _made(ds: Dataset) -> str:
    syntax = uid_name(str(ds.file_meta.TransferSyntaxUID))
    return joined(
        f"SOP class: {named(str(ds.SOPClassUID))}; transfer syntax: {syntax}.",
        table(("tag", "attribute", "VR", "value"), _rows(ds)),
    )


def _rows(ds: Dataset) -> Iterable[tuple[str, str, str, str]]:
    from inference.results.identity import PATIENT, STUDY  # noqa: PLC0415 - with its package

    copied = {*PATIENT, *STUDY, "SpecificCharacterSet", "FrameOfReferenceUID", "PositionReferenceIndicator"}
    present = {element.keyword: element.VR for element in ds}
    for keyword in sorted({*present, *PATIENT, *STUDY}, key=lambda word: attribute(word)[0]):
        tag, name = attribute(keyword)
        value = _COPIED if keyword in copied else _fixed(ds, keyword)
        yield (
            tag,
            name,
            present.get(keyword, ""),
            value if keyword in present else f"{value}, where it is there",
        )


def _fixed(ds: Dataset, keyword: str) -> str:
    """Return a value that never changes: a defined term or a small number that the code writes itself."""
    element = ds[keyword]
    constant = element.VR == "CS" and keyword not in {
        "Laterality",
        "PatientOrientation",
        "LossyImageCompression",
    }
    if constant and element.value:
        values = [element.value] if isinstance(element.value, str) else element.value
        return "`" + "\\".join(values) + "`"
    return "made here"


def _context() -> ResultContext:
    """Return the result of an invented model on an invented radiograph."""
    from inference.card import Finding, ModelCard, ModelInput, ModelOutput  # noqa: PLC0415 - as above
    from inference.preprocessing import PreprocessingSpec  # noqa: PLC0415
    from inference.results.context import Answer, ResultContext  # noqa: PLC0415

    card = ModelCard(
        name="model",
        version="1",
        input=ModelInput(("DX",), PreprocessingSpec(rows=32, columns=32), ()),
        output=ModelOutput((Finding("233604007", "SCT", "Pneumonia", "pneumonia", 0.5),), activation="none"),
        intended_use="Research use only.",
        provenance={},
    )
    return ResultContext(answers=(Answer(_radiograph(), (0.9,)),), card=card, **_ORIGIN)


def _segment_context() -> SegmentContext:
    """Return what an invented model marked in an invented series."""
    from inference.card import SEGMENTATION_3D, ModelCard, ModelInput, ModelOutput  # noqa: PLC0415 - as above
    from inference.preprocessing import PreprocessingSpec  # noqa: PLC0415
    from inference.results.context import Marked, SegmentContext  # noqa: PLC0415
    from inference.segments import Segment, VolumeSpec  # noqa: PLC0415

    spec = PreprocessingSpec(rows=32, columns=32)
    card = ModelCard(
        name="model",
        version="1",
        task=SEGMENTATION_3D,
        input=ModelInput(("MR",), spec, volume=VolumeSpec(8, (1.0, 1.0, 1.0))),
        output=ModelOutput(name="segments", segments=(Segment(1, "10200004", "SCT", "Liver", "Liver"),)),
        intended_use="Research use only.",
    )
    slices = tuple(_radiograph(**_SLICE, SOPInstanceUID=f"2.25.{10 + z}", z_mm=z) for z in range(2))
    labels = np.ones((2, 32, 32), dtype=np.uint8)
    marked = Marked(slices, (Path("1"), Path("2")), labels, 1.0)
    return SegmentContext(marked=(marked,), card=card, **_ORIGIN)


def _radiograph(z_mm: int | None = None, **changes: object) -> Dataset:
    ds = Dataset()
    placed = {} if z_mm is None else {"ImagePositionPatient": [0, 0, z_mm]}
    for keyword, value in {
        "SpecificCharacterSet": "ISO_IR 100",
        "SOPClassUID": _DX,
        "SOPInstanceUID": "2.25.1",
        "StudyInstanceUID": "2.25.2",
        "SeriesInstanceUID": "2.25.3",
        "Modality": "DX",
        "PatientID": "1",
        **placed,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": 32,
        "Columns": 32,
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "PixelData": np.arange(32 * 32, dtype="<u2").tobytes(),
        **changes,
    }.items():
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1")
    return ds


def _parts(uid: str) -> list[int]:
    return [int(part) for part in uid.split(".")]
