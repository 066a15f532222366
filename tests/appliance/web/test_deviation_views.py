"""Pages that show a model of anomalies, how its threshold was found, and what it marked."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from appliance.auth import Principal, Right
from appliance.db.base import now
from appliance.db.clinical import ModelVersion, Result
from appliance.db.engine import reading, writing
from appliance.web.panel import model, models, result, results
from appliance.web.panel.markup import join
from appliance.web.panel.page import Query
from tests.appliance.serving_material import add_instances, add_model, assemble, run_job
from tests.inference.deviation_material import make_deviation_card, make_deviation_onnx
from tests.trainer import masked

if TYPE_CHECKING:
    from appliance.web.desk import Desk

VIEWER = Principal("0" * 32, "somebody", frozenset(Right), now() + timedelta(hours=1))
DICE = {"estimate": 0.4125, "low": 0.3, "high": 0.5}
METRICS = {
    "samples": 20,
    "subjects": 5,
    "anomalous": 8,
    "threshold": 2.8,
    "healthy_error": 0.2,
    "dice": DICE,
    "average_precision": {"estimate": 0.5, "low": 0.4, "high": 0.6},
    "healthy": 12,
    "healthy_subjects": 3,
    "false_share": {"estimate": 0.021, "low": 0.0, "high": 0.05},
}


@pytest.fixture
def served(empty_desk: Desk) -> Desk:
    """A node on which a model of anomalies read one study."""
    zone = empty_desk.zone
    add_model(zone, card=make_deviation_card(), onnx=make_deviation_onnx(), metrics=METRICS)
    study_id = add_instances(zone, masked.series(masked.draw(3).image, "P-7"))
    _, job_id = assemble(zone, study_id)
    assert run_job(zone, job_id) == ("done", None)
    return empty_desk


def test_the_page_of_a_model_says_how_the_threshold_was_found_and_shows_its_figures(served: Desk) -> None:
    with reading(served.zone.engine) as session:
        model_id = session.scalars(select(ModelVersion.id)).one()
    assert models.load(served, VIEWER, Query()).rows[0].figure == ("Dice", 0.4125)
    view = model.load(served, VIEWER, Query({"model_id": model_id}))
    figures, answers = dict(view.metrics), dict(view.answers)
    assert figures["dice"] == "0.412 (95 % CI 0.300 to 0.500)"
    assert figures["average precision"] == "0.500 (95 % CI 0.400 to 0.600)"
    assert figures["false share"] == "0.021 (95 % CI 0.000 to 0.050)"
    assert answers["Marks"] == "Differs from what the model learnt as normal"
    assert answers["Threshold"] == (
        "2.8: 98 % of the pixels of 12 healthy held-out pictures of 3 people lie at or below"
    )
    assert answers["Input"] == "24 x 16 pixels of one picture"


def test_a_model_that_no_mask_could_measure_has_no_figure() -> None:
    assert models.find_figure({**METRICS, "dice": None, "average_precision": None}) is None


@pytest.mark.parametrize("kind", ["seg", "sr", "sc"])
def test_the_page_of_a_result_says_how_far_marks_differ_and_that_they_are_no_finding(
    served: Desk, kind: str
) -> None:
    with reading(served.zone.engine) as session:
        row = session.scalars(select(Result).where(Result.kind == kind)).one()
    view = result.load(served, VIEWER, Query({"result_id": row.id}))
    (segment,) = view.segments
    assert segment.score is not None
    assert segment.volume_ml == pytest.approx(segment.voxels / 1000)
    drawn = str(join(result.draw(view, VIEWER).values()))
    assert "no finding" in drawn
    assert "more than 70.0 % of black to white" in drawn
    highest, mean = (100 * value for value in segment.score)
    assert f"differs by up to {highest:.1f} %, mean {mean:.1f} %" in drawn
    assert "Probability" not in drawn


def test_where_nothing_is_marked_there_is_no_difference_to_tell(served: Desk) -> None:
    with writing(served.zone.engine) as session:
        row = session.scalars(select(Result).where(Result.kind == "sr")).one()
        (segment,) = row.finding["segments"]
        row.finding = {**row.finding, "segments": [{**segment, "voxels": 0, "score": None}]}
        result_id = row.id
    view = result.load(served, VIEWER, Query({"result_id": result_id}))
    drawn = str(join(result.draw(view, VIEWER).values()))
    assert "up to" not in drawn


def test_the_list_of_results_shows_the_volume_and_says_that_it_is_no_finding(served: Desk) -> None:
    view = results.load(served, VIEWER, Query())
    (row,) = view.rows
    assert row.finding == "Differs from what the model learnt as normal"
    drawn = str(join(results.draw(view, VIEWER).values()))
    assert f"{row.segments[0].volume_ml:.3f} mL" in drawn
    assert ">no finding<" in drawn
