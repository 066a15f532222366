"""What the scorer expects of single attributes: from the standard's tables, and retyped lists."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from pydicom.datadict import tag_for_keyword

from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from pydicom import DataElement

_OPTIONS: Final = frozenset({
    "clean_descriptors", "clean_structured_content", "clean_graphics", "retain_long_modified_dates",
    "retain_patient_chars", "retain_safe_private",
})  # fmt: skip
"""The columns of Table E.1-1 that the profile research-default chooses."""

_USEFUL: Final = """
    SOPClassUID Modality ImageType Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation
    SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames PixelSpacing
    ImagerPixelSpacing ImagePositionPatient ImageOrientationPatient SliceLocation SliceThickness
    SpacingBetweenSlices PatientPosition RescaleSlope RescaleIntercept RescaleType WindowCenter
    WindowWidth KVP ExposureTime XRayTubeCurrent Exposure ConvolutionKernel ReconstructionDiameter
    GantryDetectorTilt DataCollectionDiameter DistanceSourceToDetector DistanceSourceToPatient
    TableHeight RotationDirection RepetitionTime EchoTime InversionTime FlipAngle EchoTrainLength
    MagneticFieldStrength NumberOfAverages ImagingFrequency ImagedNucleus EchoNumbers PixelBandwidth SAR
    ScanningSequence SequenceVariant ScanOptions MRAcquisitionType PercentSampling
    PercentPhaseFieldOfView AcquisitionMatrix InPlanePhaseEncodingDirection InstanceNumber
    AcquisitionNumber SeriesNumber ViewPosition Laterality ImageLaterality PatientSex PatientSize
    PatientWeight LossyImageCompression LossyImageCompressionRatio DoseUnits DoseType DoseGridScaling
    DoseSummationType GridFrameOffsetVector SegmentationType SegmentNumber SegmentAlgorithmType
    MaximumFractionalValue PixelPaddingValue SmallestImagePixelValue LargestImagePixelValue ValueType
    NumericValue RelationshipType CompletionFlag VerificationFlag CodingSchemeDesignator
    WaveformBitsAllocated SamplingFrequency NumberOfWaveformChannels NumberOfWaveformSamples
    ChannelSensitivity ContourData RedPaletteColorLookupTableDescriptor TriggerTime NominalInterval
    HeartRate AngioFlag SlopeOfRealWorldValue RealWorldValueSlope RealWorldValueIntercept
"""
USEFUL: Final = frozenset(_USEFUL.split())
"""Attributes that research needs, and that nothing takes away where they are of their kind."""

NEEDED: Final = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "PatientName",
    "Modality", "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "LongitudinalTemporalInformationModified",
)  # fmt: skip

_IDENTITY: Final = """
    PatientName PatientID OtherPatientIDs OtherPatientNames PatientBirthName PatientMotherBirthName
    PatientBirthDate PatientAddress PatientTelephoneNumbers AccessionNumber AdmissionID
    MedicalRecordLocator MilitaryRank ReferringPhysicianName PerformingPhysicianName OperatorsName
    PhysiciansOfRecord NameOfPhysiciansReadingStudy RequestingPhysician InstitutionAddress
    ResponsiblePerson ScheduledPerformingPhysicianName VerifyingObserverName PersonName
    DeviceSerialNumber
"""
IDENTITY: Final = frozenset(map(tag_for_keyword, _IDENTITY.split()))

BURNT_IN: Final = frozenset({
    "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1",
    "1.2.840.10008.5.1.4.1.1.104.1",
})  # fmt: skip
"""SOP classes of pictures that show text: secondary capture, ultrasound, encapsulated PDF."""

_FORMS: Final = {
    "CS": re.compile(r"[A-Z0-9 _]{0,16}"),
    "DS": re.compile(r"[ 0-9+.eE-]{1,32}"),
    "IS": re.compile(r" *[+-]?[0-9]{1,11} *"),
    "SH": re.compile(r"[^\x00-\x1f\\]{0,16}"),
    "LO": re.compile(r"[^\x00-\x1f\\]{0,64}"),
}


@lru_cache(maxsize=1)
def _rows() -> dict[str, dict[str, Any]]:
    path = shared_data_dir().parent / "reference" / "annex_e.json"
    return {row["tag"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


@lru_cache(maxsize=1)
def _safe() -> frozenset[tuple[int, int]]:
    path = shared_data_dir().parent / "reference" / "safe_private.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return frozenset((int(row["group"], 16), int(row["element_low"], 16)) for row in rows)


@lru_cache(maxsize=8192)
def is_removed(tag: int) -> bool:
    """Tell whether Table E.1-1 removes, empties or replaces a value under the profile's options."""
    row = _rows().get(f"{tag:08X}")
    return row is not None and row["basic"] not in {"U", "X/Z/U*"} and not _OPTIONS & row["options"].keys()


def is_safe_private(group: int, low: int) -> bool:
    """Tell whether Table E.3.10-1 lists a private attribute of a group and low byte, whoever made it."""
    return (group, low) in _safe()


def fits(element: DataElement) -> bool:
    """Tell whether each value is of its attribute's kind; what is not need not stay."""
    form = _FORMS.get(element.VR)
    if form is None:
        return True
    value = element.value
    values = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
    return all(form.fullmatch(str(one)) for one in values if one is not None)
