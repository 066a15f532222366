"""Sharing of de-identified studies between two sites of a federation, on the record of all.

A person at the giver decides for whom and on what grounds; what goes is a file that the receiver alone opens.
Each step is signed by the site that takes it and stands in the consortium's ledger: given, received,
withdrawn (the giver wants it erased), erased. Shared studies lie beside the research storage and are in no
training cohort: what both sites trained on would count twice.
"""

from __future__ import annotations

import csv
import os
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from appliance import logs
from appliance.consortium import block as blocks
from appliance.consortium import parcel
from appliance.consortium.block import Share
from appliance.consortium.errors import ConsortiumError
from appliance.consortium.manifest import Manifest, check_texts
from appliance.db.base import new_id, now
from appliance.db.engine import reading, writing
from appliance.db.research import StudyShare
from appliance.federation.errors import EnrolmentError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from appliance.consortium.chain import Chain
    from appliance.consortium.selection import Selection
    from appliance.consortium.speaking import Speaker

FOLDER: Final = "shared"
LABELS: Final = "labels.csv"
_LOG = logs.logger(__name__)


class SharingError(ConsortiumError):
    """A step of sharing that cannot be taken; the message says why."""


@dataclass(frozen=True)
class Terms:
    """For whom and on what grounds."""

    receiver: str
    ethics_number: str
    purpose: str


@dataclass(frozen=True)
class Sharing:
    """Takes steps of sharing for a site."""

    speaker: Speaker

    @property
    def _folder(self) -> Path:
        return self.speaker.zone.root / FOLDER

    def give(self, chosen: Selection, terms: Terms, output: Path, actor: str) -> StudyShare:
        """Write a parcel for another site, and say so in the ledger.

        Raises
        ------
        SharingError
            If sharing is switched off, or the receiver is no other active member with a known key.
        ParcelError
            If a file is not what it should be, or the disk does not take the parcel.
        ConsortiumError, FederationError
            From the coordinator. If it is away once the parcel is written, :meth:`announce` says it later.
        """
        self._allowed()
        check_texts(ethics_number=terms.ethics_number, purpose=terms.purpose)
        chain = self.speaker.sync()
        state, key = chain.members.get(terms.receiver, ("", ""))
        if state != "active" or not key or terms.receiver == self.speaker.site:
            raise SharingError("the receiver: expected another active member of the federation")
        manifest = Manifest(
            giver=self.speaker.site,
            receiver=terms.receiver,
            ethics_number=terms.ethics_number,
            purpose=terms.purpose,
            at=now().isoformat(),
            studies=chosen.studies,
            subjects=chosen.subjects,
            files=chosen.files,
            labels=chosen.labels,
        )
        parcel.write(output, manifest, chosen.paths, key, self._folder / "work")
        row = StudyShare(
            id=new_id(),
            manifest_sha256=manifest.sha256,
            manifest=asdict(manifest),
            giver=manifest.giver,
            receiver=manifest.receiver,
            decided_by=actor[:64],
        )
        return self._step(row, "given", chain, actor)

    def receive(self, path: Path, actor: str) -> StudyShare:
        """Open a parcel that the ledger knows, keep its files apart, and say so.

        Raises
        ------
        SharingError
            If the ledger does not name this parcel as given to this site, or it was received already.
        ParcelError
            If it cannot be opened, or a file is not what it should be: nothing is kept then.
        ConsortiumError, FederationError
            From the coordinator; see :meth:`give`.
        """
        self._allowed()
        chain = self.speaker.sync()
        with parcel.opened(path, self.speaker.zone.keys.signing, self._folder / "work") as (manifest, packed):
            self._expected(chain, manifest)
            folder = self._folder / manifest.sha256
            making = self._folder / "work" / new_id()
            making.mkdir(mode=0o700, parents=True)
            try:
                parcel.unpack(packed, manifest, making)
                _write_labels(making / LABELS, manifest)
                making.replace(folder)
            finally:
                shutil.rmtree(making, ignore_errors=True)
        row = StudyShare(
            id=new_id(),
            manifest_sha256=manifest.sha256,
            manifest=asdict(manifest),
            giver=manifest.giver,
            receiver=manifest.receiver,
            step="given",
            path=str(folder.relative_to(self.speaker.zone.root)),
            decided_by=actor[:64],
        )
        return self._step(row, "received", chain, actor)

    def withdraw(self, share_id: str, actor: str) -> StudyShare:
        """Ask the receiver, on the record, to erase what it was given; raises as :meth:`erase`."""
        row, chain = self._open(share_id)
        if row.giver != self.speaker.site or row.step not in {"given", "received"}:
            raise SharingError("expected a share that this site gave and that stands")
        return self._step(row, "withdrawn", chain, actor)

    def erase(self, share_id: str, actor: str) -> StudyShare:
        """Erase what was received, and say so.

        Raises
        ------
        SharingError
            If it is no share of this site in that standing.
        ConsortiumError, FederationError
            From the coordinator; the files are gone before it is told.
        """
        row, chain = self._open(share_id)
        if row.receiver != self.speaker.site or row.step not in {"received", "withdrawn"}:
            raise SharingError("expected a share that this site received and has not erased")
        shutil.rmtree(self._folder / row.manifest_sha256, ignore_errors=True)
        if (self._folder / row.manifest_sha256).exists():
            raise SharingError("the files could not be erased; look at the research zone's folder")
        return self._step(row, "erased", chain, actor)

    def announce(self) -> list[StudyShare]:
        """Say what the coordinator does not know yet, and learn what others said; return all shares."""
        self._follow(self.speaker.sync())
        for row in shares(self.speaker):
            if row.pending is not None:
                self._say(row)
        return shares(self.speaker)

    def _allowed(self) -> None:
        if not self.speaker.zone.settings.federation.share_studies:
            raise SharingError("sharing is switched off here; an administrator sets federation.share_studies")

    def _expected(self, chain: Chain, manifest: Manifest) -> None:
        said = chain.shares.get(manifest.sha256)
        given = (manifest.giver, self.speaker.site, manifest.studies, len(manifest.files))
        if said is None or (said.giver, said.receiver, said.studies, said.instances) != given:
            raise SharingError("the ledger does not name this parcel as given to this site")
        if said.step != "given" or (self._folder / manifest.sha256).exists():
            with reading(self.speaker.zone.engine) as session:
                known = session.scalar(_by_manifest(manifest.sha256)) is not None
            if known or said.step != "given":
                raise SharingError(f"the parcel is not to be received: it is {said.step}")
            shutil.rmtree(self._folder / manifest.sha256)  # left by a process that was killed before its row

    def _open(self, share_id: str) -> tuple[StudyShare, Chain]:
        chain = self.speaker.sync()
        self._follow(chain)
        with reading(self.speaker.zone.engine) as session:
            row = session.get(StudyShare, share_id)
        if row is None:
            raise SharingError("there is no share of this id here")
        if row.pending is not None:
            raise SharingError("an earlier step is not in the ledger yet; run: cloister share announce")
        return row, chain

    def _follow(self, chain: Chain) -> None:
        """Take over the steps that stand in the ledger."""
        with writing(self.speaker.zone.engine) as session:
            for row in session.scalars(select(StudyShare)):
                said = chain.shares.get(row.manifest_sha256)
                if said is None:
                    continue
                row.step = said.step
                if row.pending is not None and said.step == row.pending["share"]["step"]:
                    row.pending = None

    def _step(self, row: StudyShare, step: str, chain: Chain, actor: str) -> StudyShare:
        manifest = row.manifest
        share = Share(
            federation=chain.federation,
            site=self.speaker.site,
            step=step,
            giver=row.giver,
            receiver=row.receiver,
            manifest=row.manifest_sha256,
            studies=manifest["studies"],
            instances=len(manifest["files"]),
            head_size=chain.size,
            head_root=chain.head.root,
        )
        row.pending = asdict(blocks.sign_share(share, self.speaker.zone.keys.signing))
        with writing(self.speaker.zone.engine) as session:
            row = session.merge(row)
            session.flush()
            body: dict[str, Any] = {"manifest_sha256": share.manifest, "studies": share.studies}
            body |= {"instances": share.instances}
            self.speaker.zone.ledger.append(
                session, kind=f"share.{step}", subject_id=row.id, body=body, actor=actor[:64]
            )
        _LOG.info("share.step", share_id=row.id, step=step, instances=share.instances)
        return self._say(row)

    def _say(self, row: StudyShare) -> StudyShare:
        """Have the pending step appended; a refused one is dropped, one that did not arrive is kept."""
        pending = blocks.read_share(row.pending)
        try:
            self.speaker.say(pending)
        except EnrolmentError:
            self._follow(self.speaker.sync())  # an answer that was lost: then it stands there already
            if self._again(row.id).pending is not None:
                with writing(self.speaker.zone.engine) as session:
                    session.get_one(StudyShare, row.id).pending = None
                raise
        self._follow(self.speaker.sync())
        return self._again(row.id)

    def _again(self, share_id: str) -> StudyShare:
        with reading(self.speaker.zone.engine) as session:
            return session.get_one(StudyShare, share_id)


def shares(speaker: Speaker) -> list[StudyShare]:
    """Return all shares of this site, oldest first."""
    with reading(speaker.zone.engine) as session:
        return list(session.scalars(select(StudyShare).order_by(StudyShare.created_at, StudyShare.id)))


def _by_manifest(digest: str) -> Any:
    return select(StudyShare).where(StudyShare.manifest_sha256 == digest)


def _write_labels(path: Path, manifest: Manifest) -> None:
    """Write labels as ``cloister simulate`` and the label import read them."""
    columns: Sequence[str] = ("patient_id", "study_instance_uid", "label", "value")
    with path.open("x", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(asdict(one) for one in manifest.labels)
        file.flush()
        os.fsync(file.fileno())
