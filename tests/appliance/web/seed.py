"""A node with a day's work in its databases: invented people, drawn radiographs, real signatures."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from sqlalchemy import select

from appliance.auth import ROLES, Right, users
from appliance.db.base import WorkState, now
from appliance.db.clinical import (
    ClinicalJob,
    Instance,
    ModelState,
    ModelVersion,
    QuarantineItem,
    Result,
    Series,
    Study,
    StudyRevision,
    StudyState,
)
from appliance.db.engine import writing
from appliance.db.peers import Delivery, Peer, RejectedCaller
from appliance.db.research import (
    Crossing,
    Label,
    Preflight,
    Protocol,
    ProtocolState,
    Receipt,
    ResearchInstance,
    ResearchJob,
    Round,
    Subject,
)
from appliance.demo.drawing import draw
from appliance.demo.hospitals import HOSPITALS
from appliance.node import open_clinical, open_research
from inference.results import sc
from tests.appliance.training_node import make_plan
from tests.appliance.web import seed_fetches, seed_pictures, seed_shares
from tests.inference.material import make_context, make_instance
from tests.trainer.samples import small_task
from trainer.federation import receipt as receipts

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from appliance.node import ClinicalZone, ResearchZone
    from appliance.settings import Settings

PASSWORD: Final = "correct horse battery"
DX: Final = "1.2.840.10008.5.1.4.1.1.1.1"
FINDING: Final = {
    "scheme": "SCT",
    "code": "427359005",
    "meaning": "Solitary nodule of lung",
    "threshold": 0.5,
}
NAMES: Final = (
    "Abel^Ruth", "Brandt^Jonas", "Castell^Mira", "Dorn^Emil", "Ekman^Liv", "Falk^Peter", "Gruber^Ines",
    "Holm^Karin", "Ibsen^Nora", "Jansen^Pim", "Keller^Otto", "Lindqvist^Sara",
)  # fmt: skip


@dataclass(frozen=True)
class Seed:
    """Row ids of what was planted."""

    admin: str
    studies: tuple[str, ...]
    results: tuple[str, ...]
    pictures: tuple[str, ...]
    models: dict[str, str]  # state -> id
    dead_job: str
    quarantine: str
    caller: str
    destination: str
    fetch: str
    instance: str  # whose file is there
    pending_protocol: str
    run_id: str
    receipt: str  # row id
    dead_round: str


def seed(settings: Settings) -> Seed:
    """Plant everything in a node that was just made."""
    clinical, research = open_clinical(settings), open_research(settings)
    try:
        planted = _clinical(clinical)
        learned = _research(research)
    finally:
        clinical.engine.dispose()
        research.engine.dispose()
    return Seed(**planted, **learned)


def add_users(zone: ClinicalZone) -> str:
    """Add one user for each right on top of ``view`` and for each role, one with none; return the admin."""
    wanted: dict[str, list[Right]] = {"ada": list(Right), "viewer": [Right.VIEW], "nobody": []}
    wanted |= {right.value: [Right.VIEW, right] for right in Right if right != Right.VIEW}
    wanted |= {f"role.{name}": sorted(rights) for name, rights in ROLES.items()}
    with writing(zone.engine) as session:
        made = {
            name: users.add_user(session, zone.ledger, name=name, password=PASSWORD, rights=rights).id
            for name, rights in wanted.items()
        }
    return made["ada"]


def _clinical(zone: ClinicalZone) -> dict[str, Any]:
    admin = add_users(zone)
    at = now()
    with writing(zone.engine) as session:
        peers = _peers(session, at)
        models = _models(session, admin, at)
        studies = [_study(session, number, name, at) for number, name in enumerate(NAMES)]
        caller = RejectedCaller(
            calling_ae_title="CT_ROOM3",
            called_ae_title=zone.settings.dicom.ae_title,
            address="127.0.0.7",
            reason="unknown_ae_title",
            count=3,
        )
        stranger = RejectedCaller(
            calling_ae_title="PACS",
            called_ae_title=zone.settings.dicom.ae_title,
            address="127.0.0.8",
            reason="wrong_address",
        )
        session.add_all((caller, stranger))
        session.flush()
        results = _results(zone, session, studies[:5], models, peers["workstation"], at)
        dead = _jobs(session, studies, at)
        item = _quarantine(session, studies[6], at)
        fetch = seed_fetches.plant(session, studies, admin, at)
        instance = seed_pictures.plant(zone, session, studies[4])
        for study in studies:
            body = {"instances": study.instance_count}
            zone.ledger.append(session, kind="study.assembled", subject_id=study.id, body=body)
    return {
        "admin": admin,
        "studies": tuple(study.id for study in studies),
        "results": tuple(result.id for result in results),
        "pictures": tuple(result.id for result in results if result.kind == "sc"),
        "models": {model.state: model.id for model in models},
        "dead_job": dead,
        "quarantine": item,
        "caller": caller.id,
        "destination": peers["workstation"].id,
        "fetch": fetch,
        "instance": instance,
    }


def _peers(session: Session, at: datetime) -> dict[str, Peer]:
    peers = {
        "pacs": Peer(name="PACS", ae_title="PACS", host="10.20.0.0/24", may_send=True, last_seen_at=at),
        "workstation": Peer(
            name="Reading room 2", ae_title="WS2", host="127.0.0.1", port=104, is_destination=True
        ),
        "old": Peer(name="Old archive", ae_title="ARCHIVE", host="10.20.1.9", may_send=True, enabled=False),
    }
    session.add_all(peers.values())
    session.flush()
    return peers


def _models(session: Session, admin: str, at: datetime) -> list[ModelVersion]:
    auc = {"estimate": 0.912, "low": 0.861, "high": 0.951}
    metrics = {"samples": 58, "positives": 27, "threshold": 0.5, "auc": auc, "log_loss": 0.387}
    found = []
    for number, state in enumerate(
        (ModelState.ACTIVE, ModelState.RETIRED, ModelState.EVALUATED, ModelState.SHADOW, ModelState.REFUSED)
    ):
        sha = hashlib.sha256(f"package {number}".encode()).hexdigest()
        model = ModelVersion(
            name="nodule" if number != 3 else "effusion",
            version=f"2026.{number + 1}",
            package_sha256=sha,
            path=f"models/{sha}",
            state=state,
            reason="signature.unknown: the signer is not one of this node's"
            if state == ModelState.REFUSED
            else None,
            signer="research",
            modalities="CR\\DX",
            metrics=metrics if state != ModelState.REFUSED else {},
            provenance={"run_id": "run-1", "round": 8, "sites": 3, "strategy": "fedprox"},
            decided_by=admin if state in {ModelState.ACTIVE, ModelState.RETIRED, ModelState.SHADOW} else None,
            decided_at=at - timedelta(hours=number + 1),
            created_at=at - timedelta(days=number),
        )
        session.add(model)
        found.append(model)
    session.flush()
    found[1].reason = f"replaced by {found[0].id}"
    return found


def _study(session: Session, number: int, name: str, at: datetime) -> Study:
    received = at - timedelta(minutes=7 * number * number)
    state = StudyState.RECEIVING if number == 0 else StudyState.ASSEMBLED
    if number == 7:
        state = StudyState.QUARANTINED
    study = Study(
        study_instance_uid=f"1.2.826.0.1.3680043.8.498.{1000 + number}",
        issuer_of_patient_id="HOSP",
        patient_id=f"P{70311 + 37 * number}",
        patient_name=name,
        study_date="20261123",
        study_description="Chest pa" if number % 3 else "Thorax in zwei Ebenen",
        modalities="CR" if number % 4 == 3 else "DX",
        calling_ae_title="PACS",
        state=state,
        reason="identity.mismatch: two patients in one study" if number == 7 else None,
        instance_count=1 + number % 2,
        revision=0 if number == 0 else 2 if number == 4 else 1,
        first_received_at=received - timedelta(seconds=4),
        last_received_at=received,
    )
    session.add(study)
    session.flush()
    series = Series(
        study_id=study.id,
        series_instance_uid=f"{study.study_instance_uid}.1",
        modality=study.modalities,
        body_part_examined="CHEST",
    )
    session.add(series)
    session.flush()
    for index in range(study.instance_count):
        uid = f"{study.study_instance_uid}.1.{index}"
        session.add(
            Instance(
                series_id=series.id,
                sop_instance_uid=uid,
                sop_class_uid=DX,
                transfer_syntax_uid="1.2.840.10008.1.2.1",
                path=f"instances/{number}-{index}.dcm",
                size_bytes=8_400_000 + 1000 * number,
                sha256=hashlib.sha256(uid.encode()).hexdigest(),
                calling_ae_title="PACS",
                received_at=received,
            )
        )
    for revision in range(1, study.revision + 1):
        released = "partial" if number == 6 else "quarantined" if number == 7 else "released"
        session.add(
            StudyRevision(
                study_id=study.id,
                number=revision,
                instance_count=study.instance_count,
                assembled_at=received + timedelta(seconds=60),
                rule_outcome={"rules": ["everything"], "research": True, "inference": True},
                deidentification_state="" if number < 2 else released,
                released_count=0 if number in {0, 1, 7} else study.instance_count,
                quarantined_count=1 if number in {6, 7} else 0,
            )
        )
    session.flush()
    return study


def _last_revision(session: Session, study: Study) -> StudyRevision:
    statement = (
        select(StudyRevision).where(StudyRevision.study_id == study.id).order_by(StudyRevision.number.desc())
    )
    found = session.scalars(statement).first()
    assert found is not None
    return found


def _results(
    zone: ClinicalZone,
    session: Session,
    studies: list[Study],
    models: list[ModelVersion],
    destination: Peer,
    at: datetime,
) -> list[Result]:
    found = []
    for number, study in enumerate(studies[1:]):
        probability = (0.93, 0.12, 0.41, 0.77)[number]
        pixels = draw(np.random.default_rng(number), HOSPITALS[0].look, lesion=probability > 0.5).pixels
        context = make_context([make_instance(pixels)], probabilities=[(probability,)])
        path = zone.root / "results" / f"{study.id}.dcm"
        path.parent.mkdir(exist_ok=True)
        sc.build_capture(context).save_as(path, enforce_file_format=True)
        model = models[3] if number == 3 else models[0]
        for kind, sop_class in (("sc", "1.2.840.10008.5.1.4.1.1.7"), ("sr", "1.2.840.10008.5.1.4.1.1.88.33")):
            result = Result(
                study_id=study.id,
                study_revision_id=_last_revision(session, study).id,
                model_version_id=model.id,
                kind=kind,
                sop_class_uid=sop_class,
                sop_instance_uid=f"2.25.{9000 + 2 * number + (kind == 'sr')}",
                path=str(path.relative_to(zone.root)),
                probability=probability,
                finding=FINDING,
                shadow=number == 3,
                created_at=at - timedelta(minutes=5 * number),
            )
            session.add(result)
            session.flush()
            found.append(result)
            if number != 3:
                _deliver(session, result, destination, number, at)
    return found


def _deliver(session: Session, result: Result, destination: Peer, number: int, at: datetime) -> None:
    state = ("delivered", "delivered", "queued")[number]
    delivery = Delivery(
        result_id=result.id,
        peer_id=destination.id,
        state=state,
        delivered_at=at if state == "delivered" else None,
        proof=("committed", "read_back", "")[number],
        proved_at=at if state == "delivered" else None,
        reason=None if state == "delivered" else "the peer refused the association",
    )
    session.add(delivery)
    session.flush()
    job = ClinicalJob(kind="deliver", subject_id=delivery.id, dedupe_key=f"deliver {delivery.id}")
    job.state = WorkState.DONE if state == "delivered" else WorkState.FAILED
    job.reason = delivery.reason
    job.attempts = 1 if state == "delivered" else 3
    job.next_try_at = None if state == "delivered" else at + timedelta(seconds=40)
    session.add(job)


def _jobs(session: Session, studies: list[Study], at: datetime) -> str:
    dead = ""
    for number, study in enumerate(studies[1:], start=1):
        revision = _last_revision(session, study)
        for kind in ("deidentify", "infer"):
            job = ClinicalJob(kind=kind, subject_id=revision.id, dedupe_key=f"{kind} {revision.id}")
            job.state, job.attempts = WorkState.DONE, 1
            job.updated_at = at - timedelta(minutes=number)
            if number == 1 and kind == "deidentify":
                job.state = WorkState.RUNNING
            if number == 8 and kind == "infer":
                job.state, job.attempts, job.reason = (
                    WorkState.DEAD,
                    5,
                    "picture: its photometric interpretation is none that the model takes",
                )
            session.add(job)
            session.flush()
            dead = job.id if job.state == WorkState.DEAD else dead
    return dead


def _quarantine(session: Session, study: Study, at: datetime) -> str:
    rows = (
        (
            "deidentify",
            "burned_in_annotation",
            "the instance says that text is burnt into its pixels",
            study.id,
            None,
        ),
        ("deidentify", "unusable_patient_id", "the patient ID is empty or a placeholder", study.id, None),
        ("index", "not_dicom", "the received bytes are not a DICOM data set", None, None),
        ("index", "duplicate_differs", "an instance of this UID is here already, with other bytes", None, at),
    )
    first = ""
    for number, (stage, code, reason, study_id, resolved) in enumerate(rows):
        item = QuarantineItem(
            stage=stage,
            reason_code=code,
            reason=reason,
            study_id=study_id,
            dedupe_key=f"seed {number}",
            calling_ae_title="PACS",
            resolved_at=resolved,
            created_at=at - timedelta(minutes=11 * number),
        )
        session.add(item)
        session.flush()
        first = first or item.id
    return first


def _research(zone: ResearchZone) -> dict[str, Any]:
    at = now()
    plan = make_plan(small_task(modalities=("DX", "CR"), label="lung-nodule", name="nodule"))
    with writing(zone.engine) as session:
        _cohort(session, zone)
        document = {**plan.to_json(), "total_rounds": 8}
        running = Protocol(
            plan_sha256=plan.sha256,
            run_id=plan.run_id,
            name="nodule",
            plan=document,
            state=ProtocolState.APPROVED,
            expires_at=at + timedelta(days=30),
            decided_by="admin",
            decided_at=at - timedelta(hours=3),
            approved_at=at - timedelta(hours=3),
            created_at=at - timedelta(hours=4),
        )
        pending = Protocol(
            plan_sha256=hashlib.sha256(b"another plan").hexdigest(),
            run_id="run-2",
            name="effusion",
            plan={**document, "run_id": "run-2", "name": "effusion", "total_rounds": 12, "max_hours": 6.0},
            expires_at=at + timedelta(days=7),
        )
        session.add_all((running, pending))
        session.flush()
        dead = _rounds(session, zone, running, at)
        _preflight(session, pending.id)
        seed_shares.plant(session, zone.settings.federation.site, at)
        zone.ledger.append(session, kind="protocol.proposed", subject_id=pending.id)
        shown = session.scalars(select(Receipt.id).order_by(Receipt.created_at)).first()
        return {
            "pending_protocol": pending.id,
            "run_id": plan.run_id,
            "receipt": shown,
            "dead_round": dead,
        }


def _preflight(session: Session, protocol_id: str) -> None:
    """File a preflight that warns."""
    session.add(
        ResearchJob(
            kind="preflight",
            subject_id=protocol_id,
            dedupe_key=f"preflight:{protocol_id}",
            state=WorkState.DONE,
        )
    )
    report = {
        "eligible": 40,
        "used": 36,
        "skipped": {"unlabelled": 3, "pixel.values": 1},
        "train": {"cases": 27, "positive": 9, "negative": 18, "subjects": 27},
        "held_out": {"cases": 9, "positive": 4, "negative": 5, "subjects": 9},
        "repeats": {"compared": 36, "identical": 2, "similar": 0, "of_other_subjects": 2, "across_split": 1},
        "missing": {"labelled_without_pictures": 2, "labelled_of_other_modality": 0},
        "timing": {"round_seconds": 41.5, "run_hours": 0.14, "measured_steps": 6},
        "minimum_cohort": 5,
        "max_hours": 6.0,
        "total_rounds": 12,
        "warnings": ["few_of_one_class", "pictures_on_both_sides"],
    }
    session.add(Preflight(protocol_id=protocol_id, report=report))


def _cohort(session: Session, zone: ResearchZone) -> None:
    session.add(Crossing(id="0" * 32, kind="instances", item_count=40))
    for number in range(40):
        subject = Subject(pseudonym=f"pseudonym-{number:03d}")
        session.add(subject)
        session.flush()
        session.add(
            ResearchInstance(
                subject_id=subject.id,
                study_instance_uid=f"2.25.{number}0",
                series_instance_uid=f"2.25.{number}1",
                sop_instance_uid=f"2.25.{number}2",
                sop_class_uid=DX,
                modality="DX",
                path=f"instances/{number}.dcm",
                size_bytes=8_000_000,
                sha256=hashlib.sha256(str(number).encode()).hexdigest(),
                crossing_id="0" * 32,
            )
        )
        session.add(Label(pseudonym=subject.pseudonym, name="lung-nodule", value=number % 2, source="csv"))
    del zone


def _rounds(session: Session, zone: ResearchZone, protocol: Protocol, at: datetime) -> str:
    dead = ""
    for number in range(1, 8):
        auc = 0.58 + 0.35 * (1 - 0.62 ** (number - 1))
        metrics = {
            "samples": 31,
            "positives": 15,
            "threshold": 0.5,
            "auc": {"estimate": auc, "low": auc - 0.08, "high": min(1.0, auc + 0.06)},
            "sensitivity": {"estimate": auc - 0.05, "low": auc - 0.2, "high": auc},
            "specificity": {"estimate": auc - 0.02, "low": auc - 0.15, "high": auc + 0.02},
            "log_loss": 0.71 * 0.85 ** (number - 1),
        }
        row = Round(
            run_id=protocol.run_id,
            number=number,
            kind="train",
            site=zone.settings.federation.site,
            plan_sha256=protocol.plan_sha256,
            global_model_sha256=hashlib.sha256(f"model {number}".encode()).hexdigest(),
            protocol_id=protocol.id,
            input_path=f"federation/{number}.safetensors",
            state=WorkState.DONE if number < 6 else WorkState.RUNNING if number == 7 else WorkState.DEAD,
            samples=118 if number < 6 else 0,
            metrics=metrics if number < 6 else {},
            train_seconds=6.2 + number / 10 if number < 6 else None,
            attempts=1,
            created_at=at - timedelta(minutes=30 - number),
            updated_at=at - timedelta(minutes=30 - number),
        )
        if number == 6:
            row.reason, row.attempts = "the lease was lost five times", 5
        if number == 7:
            row.progress = {"stage": "train", "done": 12, "total": 30}
        session.add(row)
        session.flush()
        dead = row.id if row.state == WorkState.DEAD else dead
        if number < 6:
            _receipt(session, zone, row, at)
    return dead


def _receipt(session: Session, zone: ResearchZone, row: Round, at: datetime) -> None:
    departure = receipts.Departure(
        run_id=row.run_id,
        number=row.number,
        kind=row.kind,
        site=row.site,
        plan_sha256=row.plan_sha256,
        global_model_sha256=row.global_model_sha256,
        update_sha256=hashlib.sha256(f"update {row.number}".encode()).hexdigest(),
        size_bytes=182_344,
        tensors=tuple(
            receipts.Tensor(f"layer{number}.weight", (64, 50), "float32", 12_800, 0.2) for number in range(14)
        ),
        samples=row.samples,
        dataset_sha256=hashlib.sha256(b"dataset").hexdigest(),
        metric_names=("auc", "log_loss", "sensitivity", "specificity"),
        update_norm=0.8125,
        protocol_id=row.protocol_id,
        approved_by="cli:officer",
        eligible=140,
        used=131,
        skipped={"unlabelled": 9},
    )
    signed = receipts.sign(receipts.build(departure, at), zone.keys.signing)
    stored = Receipt(
        round_id=row.id, body=dict(signed.body), body_sha256=signed.body_sha256, signature=signed.signature
    )
    session.add(stored)
    session.flush()
    row.receipt_id = stored.id
