"""An instance whose file is there: three frames of an ultrasound machine, with a bright label at the top."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import select

from appliance.db.clinical import Instance, Series

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from appliance.db.clinical import Study
    from appliance.node import ClinicalZone

ROWS, COLUMNS, FRAMES = 240, 320, 3
MANUFACTURER, MODEL = "Echo Works", "Probe 7"
LABEL: Final = (20, 8, 180, 30)  # left, top, right, bottom


def plant(zone: ClinicalZone, session: Session, study: Study) -> str:
    """Write the file of the study's first instance; return its row id."""
    series = session.scalars(select(Series).where(Series.study_id == study.id)).one()
    series.manufacturer, series.manufacturer_model_name = MANUFACTURER, MODEL
    instances = select(Instance).where(Instance.series_id == series.id)
    instance = session.scalars(instances.order_by(Instance.sop_instance_uid)).first()
    assert instance is not None
    instance.rows, instance.columns, instance.number_of_frames = ROWS, COLUMNS, FRAMES
    path = zone.root / instance.path
    path.parent.mkdir(parents=True, exist_ok=True)
    _picture(study, series, instance).save_as(path, enforce_file_format=True)
    return instance.id


def _picture(study: Study, series: Series, instance: Instance) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.3.1", instance.sop_instance_uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study.study_instance_uid, series.series_instance_uid
    ds.PatientName, ds.PatientID = study.patient_name, study.patient_id
    ds.Modality, ds.Manufacturer, ds.ManufacturerModelName = "US", MANUFACTURER, MODEL
    ds.Rows, ds.Columns, ds.NumberOfFrames = ROWS, COLUMNS, FRAMES
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.PixelData = pixels().tobytes()
    return ds


def pixels() -> np.ndarray:
    """Return the frames: uint8, shape (frames, rows, columns); the frames differ in brightness."""
    down, across = np.mgrid[0:ROWS, 0:COLUMNS]
    distance = np.hypot(down - 20, across - COLUMNS / 2)
    cone = (np.abs(across - COLUMNS / 2) < 0.7 * (down - 20)) & (distance < 210)
    echo = 60 + 50 * np.sin(distance / 6.0) * np.cos(across / 17.0)
    found = np.stack([np.where(cone, echo + 40 * number, 0) for number in range(FRAMES)]).astype(np.uint8)
    left, top, right, bottom = LABEL
    found[:, top:bottom, left:right] = 235
    return found
