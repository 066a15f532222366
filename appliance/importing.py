"""The research side of the crossing: bundles are verified, copied and filed, once each."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance import crossing, logs
from appliance.crossing import Bundle, BundleError, InstanceItem, LabelItem
from appliance.db.base import now
from appliance.db.engine import reading, writing
from appliance.db.research import Crossing, Label, ResearchInstance, Subject

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from sqlalchemy.orm import Session

    from appliance.node import ResearchZone

BUNDLE_IMPORTED: Final = "crossing.imported"
BUNDLE_REFUSED: Final = "crossing.refused"
INSTANCES_FOLDER: Final = "instances"
FIRST_LOOK_AGAIN_S: Final = 30.0
LAST_LOOK_AGAIN_S: Final = 900.0

_LOG = logs.logger(__name__)


@dataclass(frozen=True)
class Counts:
    """What one pass over the spool did."""

    bundles: int = 0
    instances: int = 0
    labels: int = 0
    refused: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Add up two passes."""
        return Counts(
            self.bundles + other.bundles,
            self.instances + other.instances,
            self.labels + other.labels,
            self.refused + other.refused,
        )


class Refusals:
    """Bundles that were not as they must be, and when to look at each again.

    Nothing but a person changes such a bundle, so the pauses grow from half a minute to a quarter of an hour.
    """

    def __init__(self) -> None:
        self._times: dict[str, int] = {}
        self._due_at: dict[str, datetime] = {}

    def __len__(self) -> int:
        """Return how many bundles are refused now."""
        return len(self._times)

    def keep(self, bundle_ids: Collection[str]) -> None:
        """Forget bundles that are gone from the spool."""
        for bundle_id in self._times.keys() - set(bundle_ids):
            self.forget(bundle_id)

    def waiting(self, bundle_id: str, at: datetime) -> bool:
        """Whether it is too early to look at this bundle again."""
        due_at = self._due_at.get(bundle_id)
        return due_at is not None and at < due_at

    def add(self, bundle_id: str, at: datetime) -> None:
        """Note a refusal."""
        times = self._times[bundle_id] = self._times.get(bundle_id, 0) + 1
        pause_s = min(FIRST_LOOK_AGAIN_S * 2 ** min(times - 1, 20), LAST_LOOK_AGAIN_S)
        self._due_at[bundle_id] = at + timedelta(seconds=pause_s)

    def forget(self, bundle_id: str) -> None:
        """Note that the bundle is refused no more."""
        self._times.pop(bundle_id, None)
        self._due_at.pop(bundle_id, None)


def import_bundles(
    zone: ResearchZone, refusals: Refusals | None = None, at: datetime | None = None
) -> Counts:
    """Import every bundle in the spool that is not imported yet, and acknowledge it.

    A bundle is one transaction after its files are in place; repeated, it does nothing but acknowledge. One
    that is not as it must be is refused: logged, not acknowledged, and no obstacle to the others.

    Parameters
    ----------
    refusals : Refusals or None
        Kept from pass to pass: what it holds is not read again before its time.
    at : datetime or None
        The present moment, if another than now.
    """
    refusals = Refusals() if refusals is None else refusals
    at = now() if at is None else at
    bundle_ids = crossing.bundle_ids(zone.settings)
    refusals.keep(bundle_ids)
    counts = Counts()
    for bundle_id in bundle_ids:
        if refusals.waiting(bundle_id, at):
            continue
        try:
            counts += _import(zone, bundle_id)
        except BundleError as error:
            _LOG.error(BUNDLE_REFUSED, bundle_id=bundle_id, reason=str(error))
            refusals.add(bundle_id, at)
            counts += Counts(refused=1)
        else:
            refusals.forget(bundle_id)
    crossing.forget_acknowledgements(zone.settings)
    return counts


def _import(zone: ResearchZone, bundle_id: str) -> Counts:
    with reading(zone.engine) as session:
        known = session.get(Crossing, bundle_id) is not None
    counts = Counts()
    if not known:
        bundle = crossing.read_bundle(zone.settings, bundle_id)
        paths = _copy(zone, bundle)
        with writing(zone.engine) as session:
            counts = _file(zone, session, bundle, paths)
        _LOG.info(BUNDLE_IMPORTED, bundle_id=bundle_id, instances=counts.instances, labels=counts.labels)
    crossing.acknowledge(zone.settings, bundle_id)
    return counts


def _copy(zone: ResearchZone, bundle: Bundle) -> dict[str, str]:
    """Copy the bundle's files, named by their hash; return path by hash, relative to the storage root."""
    paths: dict[str, str] = {}
    for item in bundle.items:
        if isinstance(item, InstanceItem) and item.sha256 not in paths:
            path = f"{INSTANCES_FOLDER}/{item.sha256[:2]}/{item.sha256}.dcm"
            if not (zone.root / path).exists():  # it appears there only after its hash was checked
                crossing.copy_verified(bundle, item, zone.root / path)
            paths[item.sha256] = path
    return paths


def _file(zone: ResearchZone, session: Session, bundle: Bundle, paths: dict[str, str]) -> Counts:
    instances = labels = 0
    for item in bundle.items:
        if isinstance(item, InstanceItem):
            instances += _file_instance(session, bundle, item, paths[item.sha256])
        else:
            labels += _file_label(session, item)
    session.add(Crossing(id=bundle.id, kind=bundle.kind, item_count=len(bundle.items)))
    body = {"items": len(bundle.items), "instances": instances, "labels": labels}
    zone.ledger.append(session, kind=BUNDLE_IMPORTED, subject_id=bundle.id, body=body)
    return Counts(bundles=1, instances=instances, labels=labels)


def _subject(session: Session, pseudonym: str) -> Subject:
    subject = session.scalar(select(Subject).where(Subject.pseudonym == pseudonym))
    if subject is None:
        subject = Subject(pseudonym=pseudonym)
        session.add(subject)
        session.flush()
    return subject


def _file_instance(session: Session, bundle: Bundle, item: InstanceItem, path: str) -> int:
    """File an instance; return 1 when it is new or changed. A later release replaces an earlier one."""
    subject = _subject(session, item.pseudonym)
    known = session.scalar(
        select(ResearchInstance).where(ResearchInstance.sop_instance_uid == item.sop_instance_uid)
    )
    if known is not None and known.sha256 == item.sha256:
        return 0
    row = known if known is not None else ResearchInstance(sop_instance_uid=item.sop_instance_uid)
    row.subject_id = subject.id
    row.study_instance_uid = item.study_instance_uid
    row.series_instance_uid = item.series_instance_uid
    row.sop_class_uid = item.sop_class_uid
    row.modality = item.modality
    row.path = path
    row.size_bytes = item.size_bytes
    row.sha256 = item.sha256
    row.crossing_id = bundle.id
    session.add(row)
    session.flush()
    return 1


def _file_label(session: Session, item: LabelItem) -> int:
    """File a label; return 1 when it is new or changed. A later one of the same source replaces it."""
    known = session.scalar(
        select(Label).where(
            Label.pseudonym == item.pseudonym,
            Label.study_instance_uid == item.study_instance_uid,
            Label.name == item.name,
            Label.source == item.source,
        )
    )
    if known is not None and known.value == item.value:
        return 0
    row = known if known is not None else Label(
        pseudonym=item.pseudonym,
        study_instance_uid=item.study_instance_uid,
        name=item.name,
        source=item.source,
    )  # fmt: skip
    row.value = item.value
    session.add(row)
    session.flush()
    return 1
