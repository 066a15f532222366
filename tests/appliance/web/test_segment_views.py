"""Pages that show a model that marks segments, and what it marked."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from appliance.auth import Principal, Right
from appliance.db.base import now
from appliance.db.clinical import ModelVersion, Result, Study
from appliance.db.engine import reading, writing
from appliance.web.panel import jobs, model, models, result, results, study
from appliance.web.panel.markup import DASH, join
from appliance.web.panel.page import Query
from tests.appliance.serving_material import add_instances, add_model, assemble, run_job
from tests.inference.segment_material import make_segment_card, make_segment_onnx
from tests.trainer import masked

if TYPE_CHECKING:
    from appliance.web.desk import Desk

VIEWER = Principal("0" * 32, "somebody", frozenset(Right), now() + timedelta(hours=1))
DICE = {"estimate": 0.8125, "low": 0.7, "high": 0.9}


@pytest.fixture
def served(empty_desk: Desk) -> Desk:
    """A node on which a segmenting model read one study with two series."""
    add_model(
        empty_desk.zone,
        card=make_segment_card(),
        onnx=make_segment_onnx(),
        metrics={"samples": 4, "dice": DICE, "segments": {"HIP-ANT": DICE, "HIP-POST": None}},
    )
    first, second = (masked.series(masked.draw(seed).image, "P-7") for seed in (3, 4))
    for ds in second:
        ds.StudyInstanceUID = first[0].StudyInstanceUID
    study_id = add_instances(empty_desk.zone, [*first, *second])
    _, job_id = assemble(empty_desk.zone, study_id)
    assert run_job(empty_desk.zone, job_id) == ("done", None)
    return empty_desk


def _id(desk: Desk, row: type[ModelVersion | Study]) -> str:
    with reading(desk.zone.engine) as session:
        return str(session.scalars(select(row.id)).first())


def test_the_list_of_models_shows_dice_where_others_show_auc(served: Desk) -> None:
    view = models.load(served, VIEWER, Query())
    assert view.rows[0].figure == ("Dice", 0.8125)
    drawn = str(join(models.draw(view, VIEWER).values()))
    assert "0.812" in drawn
    assert "Dice" in drawn


def test_the_page_of_a_model_says_what_it_marks_and_the_dice_of_each_segment(served: Desk) -> None:
    view = model.load(served, VIEWER, Query({"model_id": _id(served, ModelVersion)}))
    assert dict(view.metrics)["segments · HIP-ANT"] == "0.812 (95 % CI 0.700 to 0.900)"
    assert dict(view.metrics)["segments · HIP-POST"] == DASH
    assert dict(view.answers) == {
        "Marks": "Anterior hippocampus, Posterior hippocampus",
        "Input": "16 x 24 x 16 voxels of a series, 1 x 1 x 1 mm",
    }
    assert "Anterior hippocampus" in str(join(model.draw(view, VIEWER).values()))


def test_the_list_of_results_shows_what_was_marked_and_how_large(served: Desk) -> None:
    (row,) = results.load(served, VIEWER, Query()).rows
    assert row.finding == "Anterior hippocampus, Posterior hippocampus"
    assert (row.probability, row.positive) == (None, None)
    assert [one.series for one in row.segments] == [1, 1, 2, 2]
    drawn = str(join(results.draw(results.load(served, VIEWER, Query()), VIEWER).values()))
    assert f"{row.segments[0].volume_ml:.3f} mL" in drawn
    assert "threshold" not in drawn


@pytest.mark.parametrize("kind", ["seg", "sr"])
def test_the_page_of_a_result_lists_the_segments_of_each_series(served: Desk, kind: str) -> None:
    with reading(served.zone.engine) as session:
        result_id = session.scalars(select(Result.id).where(Result.kind == kind)).first()
    view = result.load(served, VIEWER, Query({"result_id": str(result_id)}))
    drawn = str(join(result.draw(view, VIEWER).values()))
    assert "99CLOISTER HIP-ANT" in drawn
    assert "series 2" in drawn
    assert "Probability" not in drawn
    assert ("Segmentation by" in drawn) == (kind == "seg")


def test_the_page_of_a_result_says_which_segment_is_cut_off(served: Desk) -> None:
    with writing(served.zone.engine) as session:
        row = session.scalars(select(Result).where(Result.kind == "sr")).one()
        first, *others = row.finding["segments"]
        row.finding = {**row.finding, "segments": [{**first, "cut_off": True}, *others]}
        result_id = row.id
    view = result.load(served, VIEWER, Query({"result_id": result_id}))
    assert str(join(result.draw(view, VIEWER).values())).count("cut off at the edge") == 1


def test_the_page_of_a_study_names_the_segmentation(served: Desk) -> None:
    view = study.load(served, VIEWER, Query({"study_id": _id(served, Study)}))
    drawn = str(join(study.draw(view, VIEWER).values()))
    assert drawn.count(">Segmentation<") == 2
    assert "Posterior hippocampus" in drawn


def test_where_a_model_is_not_applicable_the_study_and_the_jobs_say_why(empty_desk: Desk) -> None:
    zone = empty_desk.zone
    add_model(zone, card=make_segment_card(), onnx=make_segment_onnx())
    single = masked.series(masked.draw(3).image[:1], "P-7")
    study_id = add_instances(zone, single)
    assert run_job(zone, assemble(zone, study_id)[1])[0] == "done"
    words = "not applicable: model hippocampus 1.0: volume.slices"
    view = study.load(empty_desk, VIEWER, Query({"study_id": study_id}))
    assert words in str(join(study.draw(view, VIEWER).values()))
    listed = jobs.load(empty_desk, VIEWER, Query())
    drawn = str(join(jobs.draw(listed, VIEWER).values()))
    assert words in drawn
    assert "Retry" not in drawn
    assert listed.dead == 0
