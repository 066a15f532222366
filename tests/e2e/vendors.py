"""A handful of real files of many vendors, modalities and transfer syntaxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydicom import dcmread

from appliance.demo.own_data import identifying_values
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from pathlib import Path

FILES: Final = (
    (
        "cornerstoneWADOImageLoader/examples/test-images/"
        "CTImage.dcm_JPEG2000LosslessOnlyTransferSyntax_1.2.840.10008.1.2.4.90.dcm"
    ),
    "dcm_qa/In/Orientation/ax/axasc35/MR.1.3.12.2.1107.5.2.32.35131.2014031012493950715786673",
    (
        "dcm_qa/In/TotalReadoutTime/PF_PAT_POS_PFOV_PEres_INTERP_test2/PHOENIXZIPREPORT_0099/"
        "REPORT_PF_PAT_POS_BW_INTERP_TEST.SR.HEAD_HARMS.0099.0001.2017.09.20.16.16.44.39766.120049184.SR"
    ),
    "dcmqi/data/segmentations/23x38x3/seg/label.seg",
    "dicognito/tests/orig_data/test_burned_in_annotation_default/burned_in_yes.dcm",
    "dicom-test-files/data/WG04/JLSL/RG3_JLSL",
    "dicomParser/testImages/encapsulated/multi-frame/IM00001.fragmented_no_bot_jpeg_baseline.50.dcm",
    "highdicom/data/test_files/dx_image.dcm",
    "highdicom/data/test_files/sm_image.dcm",
    "pydicom/src/pydicom/data/test_files/waveform_ecg.dcm",
    "pydicom/src/pydicom/data/test_files/rtdose.dcm",
    "pydicom/src/pydicom/data/charset_files/chrKoreanMulti.dcm",
)


@dataclass(frozen=True)
class VendorFile:
    """One file and what identifies its patient."""

    path: Path
    sop_instance_uid: str
    study_instance_uid: str
    planted: frozenset[str]


def vendor_files() -> list[VendorFile]:
    """Return the files."""
    root = shared_data_dir() / "dicom"
    found = []
    for name in FILES:
        ds = dcmread(root / name, stop_before_pixels=True)
        found.append(
            VendorFile(
                root / name,
                str(ds.SOPInstanceUID),
                str(ds.StudyInstanceUID),
                frozenset(identifying_values(ds)),
            )
        )
    return found
