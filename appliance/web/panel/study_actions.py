"""What a person can decide of a study: assemble it now, apply the rules again, hold it."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from appliance import disputes, intake, retention_rules, routing
from appliance.auth.rights import Right
from appliance.conditions import RuleError
from appliance.db.engine import writing
from appliance.quarantine import QuarantineError
from appliance.web.panel import regions
from appliance.web.panel.markup import count
from appliance.web.panel.page import Action, ActionRefusedError
from appliance.web.panel.parts import link, url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from markupsafe import Markup

    from appliance.web.desk import Desk, Viewer


def assemble(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Assemble a study without waiting for more of it."""
    try:
        with writing(desk.zone.engine) as session:
            study_id = fields.get("study_id", "")
            waits = intake.mark_complete(session, desk.zone.ledger, study_id, viewer.user_id)
    except intake.IntakeError as error:
        raise ActionRefusedError("This study is gone.") from error
    if not waits:
        raise ActionRefusedError("This study is assembled already.")
    return "It is assembled in a moment."


def route(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Apply today's rules to an assembled study."""
    try:
        with writing(desk.zone.engine) as session:
            _, deliveries = routing.apply_again(
                desk.zone, session, fields.get("study_id", ""), viewer.user_id
            )
    except RuleError as error:
        raise ActionRefusedError(f"Not done: {error}.") from error
    return f"The rules were applied: {count(deliveries, 'new delivery', 'new deliveries')}."


def _hold(*, on: bool) -> Action:
    def run(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
        try:
            with writing(desk.zone.engine) as session:
                study_id, ledger = fields.get("study_id", ""), desk.zone.ledger
                retention_rules.hold(session, ledger, study_id, on=on, actor=viewer.user_id)
        except RuleError as error:
            raise ActionRefusedError(f"Not done: {error}.") from error
        return "On hold: no retention rule deletes it." if on else "Retention rules apply to it again."

    return Action(Right.MANAGE_RETENTION, run)


def keep(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Decide that the study is of the patient that is stored."""
    try:
        number = disputes.keep_stored(desk.zone, fields.get("study_id", ""), actor=viewer.user_id)
    except QuarantineError as error:
        raise ActionRefusedError(f"Not done: {error}.") from error
    return f"{count(number, 'instance')} discarded. The study goes on in a moment."


def take(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Decide that what waits in quarantine is right."""
    try:
        number = disputes.take_quarantined(desk.zone, fields.get("study_id", ""), actor=viewer.user_id)
    except QuarantineError as error:
        raise ActionRefusedError(f"Not done: {error}.") from error
    return f"The stored study is deleted; {count(number, 'instance')} will be filed in a moment."


def links(study_id: str, viewer: Viewer) -> list[Markup]:
    """Draw the ways to ordering earlier studies of the patient, and to drawing on this study's pictures."""
    shown = []
    if viewer.may(Right.FETCH_STUDIES):
        shown.append(link(url("/fetch", study=study_id), "Fetch priors", class_="button"))
    if regions.may_draw(viewer):
        shown.append(link(url("/regions", study=study_id), "Text regions", class_="button"))
    return shown


ACTIONS: Final[Mapping[str, Action]] = MappingProxyType(
    {
        "assemble": Action(Right.RETRY_JOBS, assemble),
        "route": Action(Right.MANAGE_PEERS, route),
        "hold": _hold(on=True),
        "release": _hold(on=False),
        "keep": Action(Right.REVIEW_QUARANTINE, keep),
        "take": Action(Right.REVIEW_QUARANTINE, take),
    }
)
