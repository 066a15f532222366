"""A model of anomalies in the clinical zone: from a stored study to what is marked in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydicom import dcmread
from sqlalchemy import select

from appliance import models
from appliance.auth.rights import Right
from appliance.db.clinical import Result
from appliance.db.engine import reading
from appliance.db.peers import Delivery
from appliance.models import Counts, ModelError
from inference.deviations import DEVIATION
from inference.volumes import read_volume
from tests.appliance.serving_material import (
    add_instances,
    add_model,
    add_peer,
    add_user,
    assemble,
    drop_package,
    requeue,
    run_job,
)
from tests.inference.deviation_material import GREY_THRESHOLD, make_deviation_card, make_deviation_onnx
from tests.trainer import masked
from trainer.segmentation.masks import read_mask
from trainer.segmentation.spec import Segment

if TYPE_CHECKING:
    from appliance.node import ClinicalZone

CARD, ONNX = make_deviation_card(), make_deviation_onnx()
MARKED = (Segment(DEVIATION.code, DEVIATION.scheme, DEVIATION.meaning),)


def results(zone: ClinicalZone) -> list[Result]:
    with reading(zone.engine) as session:
        return list(session.scalars(select(Result).order_by(Result.kind, Result.path)))


def test_a_study_gets_what_differs_as_segmentation_report_and_capture(clinical_zone: ClinicalZone) -> None:
    add_peer(clinical_zone)
    add_model(clinical_zone, card=CARD, onnx=ONNX)
    sources = masked.series(masked.draw(3).image, "P-7", spacing_mm=(2.0, 1.0, 1.0))
    _, job_id = assemble(clinical_zone, add_instances(clinical_zone, sources), ("workstation",))
    assert run_job(clinical_zone, job_id) == ("done", None)
    capture, segmentation, report = results(clinical_zone)
    assert [capture.kind, segmentation.kind, report.kind] == ["sc", "seg", "sr"]
    ds = dcmread(clinical_zone.root / segmentation.path)
    read = read_mask(ds, read_volume(sources).planes, MARKED)
    (row,) = report.finding["segments"]
    assert row["voxels"] == int((read > 0).sum()) > 0
    assert row["volume_ml"] == round(row["voxels"] * 2 / 1000, 3)
    assert GREY_THRESHOLD < row["score"]["mean"] < row["score"]["highest"] <= 1
    assert report.finding["deviation_threshold"] == GREY_THRESHOLD
    assert report.probability is None
    with reading(clinical_zone.engine) as session:
        assert len(session.scalars(select(Delivery)).all()) == 3
    before = [(clinical_zone.root / item.path).read_bytes() for item in results(clinical_zone)]
    requeue(clinical_zone, job_id)
    assert run_job(clinical_zone, job_id) == ("done", None)
    assert [(clinical_zone.root / item.path).read_bytes() for item in results(clinical_zone)] == before


def test_a_package_without_its_report_cannot_be_activated(clinical_zone: ClinicalZone) -> None:
    drop_package(clinical_zone, card=CARD, onnx=ONNX, report=False)
    assert models.take_in_candidates(clinical_zone) == Counts(taken_in=1)
    (version,) = models.list_versions(clinical_zone)
    with pytest.raises(ModelError, match="candidate cannot become active"):
        models.approve(clinical_zone, version.id, add_user(clinical_zone, Right.APPROVE_MODEL), "active")


def test_a_package_that_answers_no_differences_is_refused(clinical_zone: ClinicalZone) -> None:
    drop_package(clinical_zone, card=CARD, onnx=make_deviation_onnx(black=1.0))
    assert models.take_in_candidates(clinical_zone).refused == 1
