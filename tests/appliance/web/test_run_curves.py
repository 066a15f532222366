"""The curves of a run are those of what it learns: labels, masks, anomalies."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from appliance.auth import Principal
from appliance.federation.views import BETWEEN_PEERS, RoundView, RunView
from appliance.web.panel import run, run_curves
from trainer.peers import OWN_MODELS

AT = datetime(2026, 11, 28, tzinfo=UTC)
ROUNDS = 3


def share(value: float) -> dict[str, float]:
    return {"estimate": value, "low": value - 0.1, "high": value + 0.1}


def metrics_of(kind: str, number: int) -> dict[str, Any]:
    figure = share(0.5 + number / 10)
    if kind == "labels":
        return {"auc": figure, "sensitivity": figure, "specificity": figure, "log_loss": 1 / number}
    if kind == "masks":
        return {"dice": figure, "segments": {"HIP-ANT": figure, "HIP-POST": None if number == 1 else figure}}
    return {"dice": figure, "average_precision": figure}


def run_of(kind: str) -> RunView:
    rounds = [
        RoundView(
            id=f"{number}",
            run_id="run",
            number=number,
            kind="train",
            state="done",
            reason=None,
            samples=20,
            cases={},
            metrics=metrics_of(kind, number),
            train_seconds=1.0,
            progress={},
            attempts=1,
            max_attempts=4,
            receipt_id=None,
            dataset_version_id=None,
            created_at=AT,
            updated_at=AT,
        )
        for number in range(1, ROUNDS + 1)
    ]
    return RunView("run", "Run", "0" * 64, "p", "approved", "fedavg", ROUNDS, ROUNDS, AT, tuple(rounds))


@pytest.mark.parametrize(
    ("kind", "titles", "curves"),
    [
        (
            "labels",
            ["AUC by round", "Loss by round", "At the threshold"],
            ["north", "Sensitivity", "Specificity"],
        ),
        ("masks", ["Dice by round", "Dice of each segment"], ["north", "HIP-ANT", "HIP-POST"]),
        ("anomalies", ["Dice by round", "Area under precision and recall"], ["north"]),
    ],
)
def test_a_run_shows_the_curves_of_what_it_learns(kind: str, titles: list[str], curves: list[str]) -> None:
    drawn = str(run_curves.draw("north", run_of(kind)))
    for text in (*titles, *curves):
        assert text in drawn
    assert drawn.count("<figure") == len(titles)
    assert "No figure yet" not in drawn


def test_before_the_first_round_there_is_no_curve() -> None:
    run = RunView("run", "Run", "0" * 64, "p", "approved", "fedavg", 3, 0, AT, ())
    assert "No figure yet" in str(run_curves.draw("north", run))


@pytest.mark.parametrize(("strategy", "whose"), [("fedavg", "global model"), ("dfedavgm", "own model")])
def test_it_says_whose_figures_they_are(strategy: str, whose: str) -> None:
    assert whose in str(run_curves.draw("north", replace(run_of("labels"), strategy=strategy)))


def test_a_model_that_was_sent_is_no_round_that_was_trained() -> None:
    trained = run_of("labels")
    sent = replace(trained.rounds[-1], kind="send", samples=0, metrics={}, train_seconds=None)
    view = run.RunPageView("north", replace(trained, rounds=(*trained.rounds, sent)), ())

    tiles = str(run.draw(view, Principal("1", "ada", frozenset(), AT))["tiles"])

    assert re.search(r"Cases in the last round.*?>20<", tiles)


def test_strategies_between_peers_are_those_of_the_trainer() -> None:
    assert BETWEEN_PEERS == OWN_MODELS
