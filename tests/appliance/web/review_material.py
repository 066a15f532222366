"""A radiograph with a name burnt into it, stopped by de-identification, and its trial done by the test."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from appliance.db.base import new_id, now
from appliance.db.clinical import (
    ClinicalJob,
    Instance,
    QuarantineItem,
    Series,
    Study,
    StudyRevision,
    StudyState,
)
from appliance.db.engine import writing
from appliance.demo.drawing import draw
from appliance.demo.hospitals import HOSPITALS
from appliance.review.trials import try_out
from appliance.work import claimed
from tests.anonymizer.material import ct, encode

if TYPE_CHECKING:
    from pydicom import Dataset

    from appliance.node import ClinicalZone

SIZE: Final = 512  # pixels
NAME: Final = "LOVELACE^AUGUSTA"
BURNT: Final = "LOVELACE AUGUSTA  10.12.1985"


def radiograph(uid: str) -> Dataset:
    """Return an image with a patient's name in its header and in its pixels."""
    ds = ct(rows=SIZE, columns=SIZE)
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = uid, f"{uid}.1", generate_uid(None)
    ds.PatientName, ds.PatientID, ds.Manufacturer = NAME, "MRN-77-01", "Roentgenwerk"
    ds.BurnedInAnnotation = "YES"
    pixels = draw(np.random.default_rng(5), HOSPITALS[0].look, lesion=True).pixels
    image = Image.fromarray((pixels / pixels.max() * 220).astype(np.uint8)).resize((SIZE, SIZE))
    ImageDraw.Draw(image).text((14, 12), BURNT, fill=255, font=ImageFont.load_default(20))
    ds.PixelData = (np.asarray(image).astype("<u2") * 16).tobytes()
    return ds


def plant(zone: ClinicalZone, uid: str) -> str:
    """File it as a study that was stopped; return the item's id."""
    ds = radiograph(uid)
    content, row_id = encode(ds), new_id()
    path = zone.root / "instances" / f"{row_id}.dcm"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with writing(zone.engine) as session:
        study = Study(
            study_instance_uid=uid,
            patient_name=NAME,
            patient_id="MRN-77-01",
            state=StudyState.ASSEMBLED,
            instance_count=1,
            revision=1,
            modalities="CT",
        )
        series = Series(
            study=study,
            series_instance_uid=f"{uid}.1",
            modality="CT",
            manufacturer="Roentgenwerk",
            manufacturer_model_name="Model 1",
        )
        session.add_all([study, series])
        session.flush()
        revision = StudyRevision(
            study_id=study.id, number=1, instance_count=1, deidentification_state="quarantined"
        )
        instance = Instance(
            id=row_id,
            series_id=series.id,
            sop_instance_uid=ds.SOPInstanceUID,
            sop_class_uid=ds.SOPClassUID,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            path=str(path.relative_to(zone.root)),
            size_bytes=len(content),
            sha256=sha256(content).hexdigest(),
            rows=SIZE,
            columns=SIZE,
            received_at=now(),
        )
        item = QuarantineItem(
            stage="deidentify",
            reason_code="burned_in_annotation",
            reason="BurnedInAnnotation (0028,0301): expected NO",
            study_id=study.id,
            instance_id=row_id,
            dedupe_key=f"deidentify:{row_id}:burned_in_annotation",
            path=instance.path,
            calling_ae_title="PACS",
        )
        session.add_all([revision, instance, item])
        session.flush()
        return item.id


def do_jobs(zone: ClinicalZone) -> int:
    """Try out what was drafted, as the worker does; return how many."""
    with writing(zone.engine) as session:
        rows = session.query(ClinicalJob).filter_by(kind="review", state="queued").all()
    for row in rows:
        with claimed(zone.engine, ClinicalJob, row.id, "test", 60) as claim:
            assert claim is not None
            try_out(zone, claim)
    return len(rows)
