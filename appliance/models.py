"""Model versions: taken in through the only door, approved by a person, replaced, rolled back."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from appliance import logs
from appliance.auth.rights import Right, parse
from appliance.db.base import new_id, now
from appliance.db.clinical import ModelState, ModelVersion
from appliance.db.engine import reading, writing
from appliance.db.people import User
from appliance.errors import ApplianceError
from appliance.keys import KeyFileError, read_public_key
from appliance.model_spool import Arrival, arrivals, file_sha256, forget, keep_refused, remember

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from sqlalchemy.orm import Session

    from appliance.node import ClinicalZone
    from inference.errors import InferenceError
    from inference.package import Limits, Package

TAKEN_IN: Final = "model.taken_in"
EVALUATED: Final = "model.evaluated"
REFUSED: Final = "model.refused"
NO_SIGNER: Final = "model.no_signer"
DECIDED: Final = "model.decided"
RESEARCH_SIGNER: Final = "research"
_BUDGET_S: Final = 5.0
_REPLACED: Final = "replaced by "
_ALLOWED: Final[Mapping[str, frozenset[str]]] = {
    ModelState.EVALUATED: frozenset({ModelState.SHADOW, ModelState.ACTIVE}),
    ModelState.SHADOW: frozenset({ModelState.ACTIVE}),
    ModelState.ACTIVE: frozenset({ModelState.SHADOW}),
}
_RETIRABLE: Final = frozenset(
    {ModelState.CANDIDATE, ModelState.EVALUATED, ModelState.SHADOW, ModelState.ACTIVE}
)

_LOG = logs.logger(__name__)


class ModelError(ApplianceError):
    """A model version cannot be found, or not be moved to the wanted state."""


class NotAllowedError(ModelError):
    """A person without the right tried to decide on a model."""


@dataclass(frozen=True)
class Counts:
    """What one look into the spool did."""

    taken_in: int = 0
    evaluated: int = 0
    refused: int = 0
    known: int = 0


def trusted_signers(crossing_in: Path) -> dict[str, Ed25519PublicKey]:
    """Return whose model packages this node accepts: its own research zone's.

    Raises
    ------
    KeyFileError
        If the research zone's public key is not there.
    """
    return {RESEARCH_SIGNER: read_public_key(crossing_in / "research.pub")}


def take_in_candidates(zone: ClinicalZone, limits: Limits | None = None) -> Counts:
    """Take in the packages that wait in the crossing, and evaluation reports that came after theirs.

    Parameters
    ----------
    zone : ClinicalZone
        The clinical zone.
    limits : Limits, optional
        What opening one may cost.

    Returns
    -------
    Counts
        Refused packages are kept aside and listed with their reason.
    """
    outcomes: list[str] = []
    started = time.monotonic()
    for arrival in arrivals(zone.settings.crossing_in / "packages", zone.root / "models"):
        try:
            signers = trusted_signers(zone.settings.crossing_in)
        except KeyFileError:
            _LOG.error(NO_SIGNER, packages="waiting")
            break
        outcome = _take_in(zone, arrival, signers, limits)
        outcomes.append(outcome)
        remember(zone.root / "models", arrival)
        if arrival.report is not None or outcome == REFUSED:
            forget(arrival)  # else it waits for its report
        if time.monotonic() - started > _BUDGET_S:  # the caller has other duties; the rest waits
            break
    return Counts(
        taken_in=outcomes.count(TAKEN_IN) + outcomes.count(EVALUATED),
        evaluated=outcomes.count(EVALUATED),
        refused=outcomes.count(REFUSED),
        known=outcomes.count(""),
    )


def approve(zone: ClinicalZone, model_version_id: str, actor: str, to: str) -> None:
    """Let a model version serve, as shadow or for real; an active one replaces the active one of its name.

    Parameters
    ----------
    zone : ClinicalZone
        The clinical zone.
    model_version_id : str
        Row id.
    actor : str
        Row id of the user who decides.
    to : str
        ``shadow`` or ``active``.

    Raises
    ------
    NotAllowedError
        If the user lacks the right.
    ModelError
        If the version does not exist or cannot go there from where it is.
    """
    with writing(zone.engine) as session:
        _require(session, actor)
        version = _get(session, model_version_id)
        if to not in _ALLOWED.get(version.state, frozenset()):
            raise ModelError(f"a model version that is {version.state} cannot become {to[:16]}")
        if to == ModelState.ACTIVE:
            for other in _active(session, version.name):
                _decide(session, zone, other, ModelState.RETIRED, actor, f"{_REPLACED}{version.id}")
        _decide(session, zone, version, ModelState(to), actor, None)


def retire(zone: ClinicalZone, model_version_id: str, actor: str) -> None:
    """Take a model version out of service; raises like :func:`approve`."""
    with writing(zone.engine) as session:
        _require(session, actor)
        version = _get(session, model_version_id)
        if version.state not in _RETIRABLE:
            raise ModelError(f"a model version that is {version.state} cannot be retired")
        _decide(session, zone, version, ModelState.RETIRED, actor, "retired")


def rollback(zone: ClinicalZone, name: str, actor: str) -> str:
    """Put the version back that the active one replaced; return its row id.

    Raises
    ------
    NotAllowedError
        If the user lacks the right.
    ModelError
        If no version of this name is active, or it replaced none.
    """
    with writing(zone.engine) as session:
        _require(session, actor)
        active = _active(session, name)
        if not active:
            raise ModelError("no version of this name is active")
        statement = (
            select(ModelVersion)
            .where(
                ModelVersion.name == name,
                ModelVersion.state == ModelState.RETIRED,
                ModelVersion.reason == f"{_REPLACED}{active[0].id}",
            )
            .order_by(ModelVersion.decided_at.desc())
        )
        previous = session.scalars(statement).first()
        if previous is None:
            raise ModelError("the active version of this name replaced none")
        _decide(session, zone, active[0], ModelState.RETIRED, actor, "rolled back")
        _decide(session, zone, previous, ModelState.ACTIVE, actor, None)
        return previous.id


def list_versions(zone: ClinicalZone) -> list[ModelVersion]:
    """Return all model versions, newest first."""
    with reading(zone.engine) as session:
        return list(session.scalars(select(ModelVersion).order_by(ModelVersion.created_at.desc())))


def find_version(zone: ClinicalZone, text: str) -> ModelVersion:
    """Return a version by row id, by the start of it or of its package's hash (8 digits at least).

    Raises
    ------
    ModelError
        If none or several fit.
    """
    found = [
        version
        for version in list_versions(zone)
        if len(text) >= 8 and (version.id.startswith(text) or version.package_sha256.startswith(text))
    ]
    if len(found) != 1:
        raise ModelError("expected the id of one model version, or its first 8 or more digits")
    return found[0]


def _take_in(
    zone: ClinicalZone, arrival: Arrival, signers: Mapping[str, Ed25519PublicKey], limits: Limits | None
) -> str:
    from inference.errors import InferenceError  # noqa: PLC0415
    from inference.evaluation import read_report  # noqa: PLC0415
    from inference.package import Limits, load_package, read_limited  # noqa: PLC0415

    limits = limits or Limits()
    folder = zone.root / "models" / f"incoming-{new_id()}"
    report: dict[str, Any] | None = None
    try:
        package = load_package(arrival.package, folder, signers, limits)
        if arrival.report is not None:
            content = read_limited(arrival.report, limits.max_card_bytes)
            report = read_report(content, package.sha256, signers)
    except InferenceError as error:
        shutil.rmtree(folder, ignore_errors=True)
        return _refuse(zone, arrival, error, limits)
    return _accept(zone, package, report)


def _accept(zone: ClinicalZone, package: Package, report: dict[str, Any] | None) -> str:
    relative = f"models/{package.sha256}"
    target = zone.root / relative
    with writing(zone.engine) as session:
        known = session.scalar(select(ModelVersion).where(ModelVersion.package_sha256 == package.sha256))
        if known is not None:
            shutil.rmtree(package.folder)
            return _evaluate(session, zone, known, report)
        if target.exists():  # left behind by a process that died before its commit
            shutil.rmtree(target)
        os.replace(package.folder, target)  # noqa: PTH105  a folder
        version = ModelVersion(
            name=package.card.name,
            version=package.card.version,
            package_sha256=package.sha256,
            path=relative,
            state=ModelState.CANDIDATE,
            signer=package.signer,
            modalities="\\".join(package.card.input.modalities),
            provenance=dict(package.card.provenance),
        )
        session.add(version)
        session.flush()
        body = {"package_sha256": package.sha256, "signer": package.signer}
        zone.ledger.append(session, kind=TAKEN_IN, subject_id=version.id, body=body)
        _LOG.info(TAKEN_IN, model_version_id=version.id, evaluated=report is not None)
        return _evaluate(session, zone, version, report) or TAKEN_IN


def _evaluate(
    session: Session, zone: ClinicalZone, version: ModelVersion, report: dict[str, Any] | None
) -> str:
    """Move a candidate on when its report is there; an evaluation is never replaced."""
    if report is None or version.state != ModelState.CANDIDATE:
        return ""
    version.state = ModelState.EVALUATED
    version.metrics = {**report["metrics"], "facts": report["facts"]}
    zone.ledger.append(
        session,
        kind=EVALUATED,
        subject_id=version.id,
        body={"package_sha256": version.package_sha256},
    )
    return EVALUATED


def _refuse(zone: ClinicalZone, arrival: Arrival, error: InferenceError, limits: Limits) -> str:
    digest = file_sha256(arrival.package, limits.max_archive_bytes)
    with writing(zone.engine) as session:
        statement = select(ModelVersion).where(ModelVersion.package_sha256 == digest)
        if session.scalar(statement) is not None:
            return ""
        version = ModelVersion(
            name=arrival.package.stem[:64],
            version="",
            package_sha256=digest,
            path=keep_refused(arrival.package, zone.root, digest, limits.max_archive_bytes),
            state=ModelState.REFUSED,
            reason=str(error)[:500],
        )
        session.add(version)
        session.flush()
        zone.ledger.append(session, kind=REFUSED, subject_id=version.id, body={"reason": error.code})
        _LOG.warning(REFUSED, model_version_id=version.id, reason=error.code)
    return REFUSED


def _require(session: Session, actor: str) -> None:
    user = session.get(User, actor)
    if user is None or not user.enabled or Right.APPROVE_MODEL not in parse(user.rights):
        raise NotAllowedError(f"expected a user with the right {Right.APPROVE_MODEL}")


def _get(session: Session, model_version_id: str) -> ModelVersion:
    version = session.get(ModelVersion, model_version_id)
    if version is None:
        raise ModelError("the model version does not exist")
    return version


def _active(session: Session, name: str) -> list[ModelVersion]:
    statement = select(ModelVersion).where(ModelVersion.name == name, ModelVersion.state == ModelState.ACTIVE)
    return list(session.scalars(statement))


def _decide(
    session: Session,
    zone: ClinicalZone,
    version: ModelVersion,
    state: ModelState,
    actor: str,
    reason: str | None,
) -> None:
    before = version.state
    version.state, version.reason = state, reason
    version.decided_by, version.decided_at = actor, now()
    body = {"from": before, "to": state.value, "package_sha256": version.package_sha256}
    zone.ledger.append(session, kind=DECIDED, subject_id=version.id, body=body, actor=actor)
    _LOG.info(DECIDED, model_version_id=version.id, state=state.value)
