"""Trying a draft out: what would leave is made, shown beside what came in, and kept until it is decided.

Its folder (:mod:`appliance.review.folders`) holds pictures and the two headers side by side, nothing that
leaves.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from anonymizer import verdicts
from anonymizer.differences import side_by_side
from anonymizer.engine import Quarantined, Released
from anonymizer.mapping import mapped
from anonymizer.verdicts import PICTURE, Verdict
from appliance import logs, said
from appliance.db.clinical import Decision, DecisionState, Instance
from appliance.db.engine import reading, writing
from appliance.release import Beat, context_of, deidentify_one
from appliance.review import pictures
from appliance.review.decisions import DONE, RELEASED
from appliance.review.folders import AFTER, BEFORE, HEADER, folder_of

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.node import ClinicalZone
    from appliance.said import Said
    from appliance.work import Claim

STOPPED: Final = "stopped"
TRIED: Final = "review.tried"
MAX_LINES: Final = 2000
_logger = logs.logger(__name__)


@dataclass(frozen=True)
class _Subject:
    decision_id: str
    number: int
    verdict: Verdict
    path: Path
    folder: Path
    also: Said


def try_out(zone: ClinicalZone, claim: Claim) -> None:
    """De-identify an instance as a draft has it, and keep what a person needs to see. Ends the claim.

    Reasons that a look at the picture ends are accepted one by one as they come, so that the verdict names
    just those that this instance has.
    """
    subject = _subject(zone, claim.subject_id)
    if subject is None:
        claim.finish()
        return
    temporary = subject.folder.with_name(f".{subject.folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o700, parents=True)
    try:
        outcome, verdict = _deidentified(zone, claim, subject, temporary / "after.dcm")
        trial = _shown(subject, temporary, outcome)
        (temporary / "after.dcm").unlink(missing_ok=True)
        shutil.rmtree(subject.folder, ignore_errors=True)
        temporary.rename(subject.folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    with writing(zone.engine) as session:
        row = session.get(Decision, subject.decision_id)
        if row is not None and row.state == DecisionState.DRAFTED and row.trial["number"] == subject.number:
            row.verdict, row.trial = verdict.as_json(), {**trial, "number": subject.number}
        claim.finish(session)
    _logger.info(TRIED, decision_id=subject.decision_id, outcome=trial["outcome"])


def _subject(zone: ClinicalZone, decision_id: str) -> _Subject | None:
    with reading(zone.engine) as session:
        row = session.get(Decision, decision_id)
        if row is None or row.state != DecisionState.DRAFTED or row.instance_id is None:
            return None
        instance = session.get(Instance, row.instance_id)
        if instance is None:
            return None
        return _Subject(
            row.id,
            row.trial["number"],
            verdicts.parse(row.verdict),
            zone.root / instance.path,
            folder_of(zone.root, row.study_id, row.id),
            said.of_study(session, row.study_id or ""),
        )


def _deidentified(
    zone: ClinicalZone, claim: Claim, subject: _Subject, target: Path
) -> tuple[Released | Quarantined, Verdict]:
    context = context_of(zone, Beat(claim, 1), subject.also)
    verdict = subject.verdict
    while True:
        outcome = deidentify_one(subject.path, target, replace(context, verdict=verdict), subject.path.stem)
        if not isinstance(outcome, Quarantined) or outcome.reason_code not in PICTURE - verdict.accepted:
            return outcome, verdict
        verdict |= Verdict(accepted=frozenset({outcome.reason_code}))


def _shown(subject: _Subject, folder: Path, outcome: Released | Quarantined) -> dict[str, Any]:
    """Draw pictures and headers; return what is said of the trial, without a value."""
    boxes = outcome.boxes if isinstance(outcome, Released) else ()
    wanted = {frame for box in boxes for frame in box.frames or ()}
    before = pictures.draw(subject.path, folder, BEFORE, wanted)
    trial: dict[str, Any] = {"state": DONE, "frames": [], "rows": 0, "columns": 0}
    if before is not None:
        trial |= {"frames": list(before.frames), "rows": before.rows, "columns": before.columns}
    if isinstance(outcome, Quarantined):
        return {
            **trial,
            "outcome": STOPPED,
            "reason_code": outcome.reason_code,
            "reason": outcome.reason,
            "places": list(dict.fromkeys(verdicts.PLACE.findall(outcome.reason))),
        }
    pictures.draw(folder / "after.dcm", folder, AFTER, like=before)
    with mapped(subject.path) as original, mapped(folder / "after.dcm") as output:
        pairs = side_by_side(original, output)
    (folder / HEADER).write_text(json.dumps([asdict(pair) for pair in pairs[:MAX_LINES]]), encoding="utf-8")
    return {
        **trial,
        "outcome": RELEASED,
        "boxes": [
            [box.left, box.top, box.right, box.bottom, box.source, list(box.frames or ())] for box in boxes
        ],
        "changes": dict(Counter(pair.change for pair in pairs)),
        "lines": len(pairs),
    }
