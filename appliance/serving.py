"""Inference on a study revision: models that fit, results as DICOM, deliveries; everything idempotent."""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from appliance import durable, figures, logs, serving_rows
from appliance.db.clinical import ModelState
from appliance.db.engine import reading, writing
from appliance.models import trusted_signers
from inference.errors import InferenceError, NotApplicableError, PackageError, ResultError
from inference.results.identity import check_same_patient
from inference.study import (
    answer_study,
    build_results,
    build_segment_results,
    fits,
    is_own_result,
    nothing_read,
    read_instance,
    segment_study,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pydicom import Dataset

    from appliance.node import ClinicalZone
    from appliance.serving_rows import Facts, Made, Model, Source
    from appliance.work import Claim
    from inference.results.context import ResultContext, SegmentContext
    from inference.session import ModelSession

MODEL_FAILED: Final = "inference.model_failed"
PICTURE_UNREADABLE: Final = "inference.picture_unreadable"
DONE: Final = "inference.done"
NOT_APPLICABLE: Final = "not applicable"
_SESSIONS: Final = 4
_PERMANENT: Final = ("identity.", "pixel.", "volume.", "instance.", "result.")

_LOG = logs.logger(__name__)


@dataclass(frozen=True)
class _Picture:
    source: Source
    path: Path
    header: Dataset


@dataclass(frozen=True)
class _Said:
    """What a model said: results by kind, what it could not read and why, what was found as plain values."""

    results: Sequence[tuple[str, Dataset]]
    unreadable: Sequence[tuple[Path, str]]
    probability: float | None
    finding: dict[str, Any]


@dataclass(frozen=True)
class _Failure:
    model: Model
    error: InferenceError


def infer_study(zone: ClinicalZone, claim: Claim) -> None:
    """Run every active and shadow model that fits a study revision and queue what it made for delivery.

    Results already made of the same instances are not made again, so neither a second message nor our own
    results that come back from the PACS lead to new ones. Ends the claim: done, with a note where a model
    cannot read what the study has.

    Parameters
    ----------
    zone : ClinicalZone
        The clinical zone.
    claim : Claim
        A job whose subject is a row of ``study_revision``.
    """
    with reading(zone.engine) as session:
        facts = serving_rows.load(session, claim.subject_id)
    if facts is None:
        claim.die("the study revision does not exist")
        return
    if facts.outdated:
        with writing(zone.engine) as session:
            serving_rows.record_outdated(session, zone.ledger, facts)
            claim.finish(session)
        return
    made, failures = _run_models(zone, claim, facts)
    unfit = [one for one in failures if isinstance(one.error, NotApplicableError)]
    blocking = [one for one in failures if one.model.state == ModelState.ACTIVE and one not in unfit]
    with writing(zone.engine) as session:
        jobs = serving_rows.store(
            session, zone.ledger, facts, made, int(claim.row.priority), not_applicable=len(unfit)
        )
        if not blocking:
            claim.finish(session, note="; ".join(f"{NOT_APPLICABLE}: {_told(one)}" for one in unfit) or None)
    for job_id in jobs:
        zone.wake("deliver", job_id)
    if blocking:
        _end_failed(claim, blocking[0])
    _LOG.info(DONE, study_revision_id=facts.revision_id, results=sum(len(item.files) for item in made))


def _told(failure: _Failure) -> str:
    return f"model {failure.model.name} {failure.model.version}: {failure.error}"


def _end_failed(claim: Claim, failure: _Failure) -> None:
    reason = _told(failure)
    if failure.error.code.startswith(_PERMANENT):
        claim.die(reason)
    else:
        claim.fail(reason)


def _run_models(zone: ClinicalZone, claim: Claim, facts: Facts) -> tuple[list[Made], list[_Failure]]:
    pictures = _pictures(zone, facts)
    made: list[Made] = []
    failures: list[_Failure] = []
    for model in facts.models:
        began = time.monotonic()
        try:
            result = _run_model(zone, claim, facts, model, pictures)
        except InferenceError as error:
            _LOG.warning(MODEL_FAILED, model_version_id=model.id, reason=logs.safe_reason(error))
            failures.append(_Failure(model, error))
            continue
        if result is not None:
            figures.observe(figures.INFERENCE_SECONDS, time.monotonic() - began, model.name)
            made.append(result)
    return made, failures


def _pictures(zone: ClinicalZone, facts: Facts) -> list[_Picture]:
    """Read the headers of what no node of ours made; a file that cannot be read fails the whole study."""
    found = []
    for source in facts.sources:
        path = zone.root / source.path
        header = read_instance(path, with_pixels=False)
        if not is_own_result(header):
            found.append(_Picture(source, path, header))
    return found


def _run_model(
    zone: ClinicalZone, claim: Claim, facts: Facts, model: Model, pictures: Sequence[_Picture]
) -> Made | None:
    """Return what the model made, or None when nothing fits or it has been made of the same instances."""
    if not any(str(picture.header.get("Modality", "")) in model.modalities for picture in pictures):
        return None
    loaded = _session(zone.root / model.path, model.package_sha256, zone)
    fitting = [picture for picture in pictures if fits(picture.header, loaded.card)]
    if not fitting:
        return None
    sources_sha256 = serving_rows.fingerprint(picture.source for picture in fitting)
    if facts.has_result(model, sources_sha256):
        return None
    check_identity(facts, [picture.header for picture in pictures])
    paths = [picture.path for picture in fitting]
    origin = _origin(facts, model, loaded)
    ask = _segments if loaded.card.segmenting else _findings
    said = ask(loaded, paths, origin, claim.heartbeat)
    _tell_unreadable(model, fitting, said.unreadable)
    if not said.results:
        raise nothing_read(said.unreadable)
    return serving_rows.Made(
        model=model,
        files=tuple(_write_all(zone, facts, model, said.results)),
        probability=said.probability,
        finding={**said.finding, "unreadable": len(said.unreadable), "sources_sha256": sources_sha256},
    )


def _findings(
    loaded: ModelSession, paths: Sequence[Path], origin: dict[str, Any], alive: Callable[[], None]
) -> _Said:
    from inference.results.context import ResultContext  # noqa: PLC0415

    outcome = answer_study(loaded, paths, alive)
    if not outcome.answers:
        return _Said((), outcome.unreadable, None, {})
    context = ResultContext(answers=outcome.answers, unreadable=len(outcome.unreadable), **origin)
    results = list(build_results(context, outcome.paths).items())
    return _Said(results, outcome.unreadable, context.leading.probabilities[0], _finding(context))


def _segments(
    loaded: ModelSession, paths: Sequence[Path], origin: dict[str, Any], alive: Callable[[], None]
) -> _Said:
    from inference.results.context import SegmentContext  # noqa: PLC0415

    outcome = segment_study(loaded, paths, alive)
    if not outcome.marked:
        return _Said((), outcome.unreadable, None, {})
    context = SegmentContext(marked=outcome.marked, unreadable=len(outcome.unreadable), **origin)
    return _Said(build_segment_results(context), outcome.unreadable, None, segment_rows(context))


def _origin(facts: Facts, model: Model, loaded: ModelSession) -> dict[str, Any]:
    """Return what every result says of where it comes from: fields of ``Making``."""
    from inference.results.context import Predecessor  # noqa: PLC0415
    from inference.results.uids import result_uid  # noqa: PLC0415

    return {
        "card": loaded.card,
        "package_sha256": model.package_sha256,
        "revision_id": facts.revision_id,
        "made_at": facts.assembled_at,
        "software_version": version("cloister"),
        "predecessors": tuple(
            Predecessor(
                study_instance_uid=facts.study_instance_uid,
                series_instance_uid=result_uid(previous.revision_id, previous.package_sha256, "sr.series"),
                sop_class_uid=previous.sop_class_uid,
                sop_instance_uid=previous.sop_instance_uid,
            )
            for previous in facts.predecessors(model)
        ),
    }


def _write_all(
    zone: ClinicalZone, facts: Facts, model: Model, results: Sequence[tuple[str, Dataset]]
) -> Iterator[serving_rows.MadeFile]:
    """Save results; of several of one kind each has a number."""
    seen: Counter[str] = Counter()
    for kind, ds in results:
        seen[kind] += 1
        suffix = kind if seen[kind] == 1 else f"{kind}-{seen[kind]}"
        relative = f"results/{facts.revision_id}/{model.package_sha256[:32]}.{suffix}.dcm"
        yield serving_rows.MadeFile(
            kind=kind,
            sop_class_uid=str(ds.SOPClassUID),
            sop_instance_uid=str(ds.SOPInstanceUID),
            path=_save(zone.root, ds, relative),
        )


def segment_rows(context: SegmentContext) -> dict[str, Any]:
    """Return what was marked, as plain JSON values: a row for each segment of each series.

    ``volume_ml`` is None of single pictures; ``cut_off`` says that the segment reaches the model's edge. Of
    a model of anomalies ``score`` says how far marked pixels differ, and ``deviation_threshold`` from where
    on they are marked, both as shares of black to white.
    """
    found: dict[str, Any] = {
        "segments": [
            {
                "series": number,
                "number": segment.number,
                "code": segment.code,
                "scheme": segment.scheme,
                "meaning": segment.meaning,
                "voxels": marked.voxels(segment),
                "volume_ml": round(marked.volume_ml(segment), 3) if marked.voxel_mm3 else None,
                "cut_off": segment.number in marked.cut_off,
                "score": None if marked.score is None else vars(marked.score),
            }
            for number, marked in enumerate(context.marked, start=1)
            for segment in context.segments
        ],
        "series": len(context.marked),
        "pictures": len(context.sources),
    }
    if context.grey_threshold is not None:
        found["deviation_threshold"] = round(context.grey_threshold, 6)
    return found


def finding_rows(context: ResultContext) -> list[dict[str, Any]]:
    """Return what the leading picture says of each finding, as plain JSON values."""
    return [
        {
            "code": finding.code,
            "scheme": finding.scheme,
            "meaning": finding.meaning,
            "threshold": finding.threshold,
            "probability": probability,
            "called": probability >= finding.threshold,
        }
        for finding, probability in zip(context.findings, context.leading.probabilities, strict=True)
    ]


def _finding(context: ResultContext) -> dict[str, Any]:
    rows = finding_rows(context)
    return {
        **rows[0],
        "findings": rows,
        "pictures": len(context.answers),
    }


def check_identity(facts: Facts, headers: Sequence[Dataset]) -> None:
    """Refuse a study whose instances name different patients, or another one than the study's row.

    Raises
    ------
    ResultError
        ``identity.mismatch``.
    """
    check_same_patient(headers)
    for header in headers:
        if str(header.get("StudyInstanceUID", "")) != facts.study_instance_uid:
            raise ResultError("identity.mismatch", "an instance belongs to another study")
        if patient_id(header) != facts.patient_id.strip():
            raise ResultError("identity.mismatch", "an instance names another patient than the study")


def patient_id(header: Dataset) -> str:
    """Return the Patient ID as the index keeps it, several values with the backslash between them."""
    value = header.get("PatientID") or ""
    return (value if isinstance(value, str) else "\\".join(value)).strip()


def _tell_unreadable(
    model: Model, fitting: Sequence[_Picture], unreadable: Sequence[tuple[Path, str]]
) -> None:
    ids = {picture.path: picture.source.id for picture in fitting}
    for path, code in unreadable:
        _LOG.warning(PICTURE_UNREADABLE, model_version_id=model.id, instance_id=ids[path], reason=code)


def _session(folder: Path, package_sha256: str, zone: ClinicalZone) -> ModelSession:
    return _load(
        os.getpid(), folder, package_sha256, zone.settings.inference.threads, zone.settings.crossing_in
    )


@functools.lru_cache(maxsize=_SESSIONS)
def _load(pid: int, folder: Path, package_sha256: str, threads: int, crossing_in: Path) -> ModelSession:
    """Load a model once in this process; a forked child loads its own."""
    del pid
    from inference.package import open_package  # noqa: PLC0415
    from inference.session import ModelSession  # noqa: PLC0415  onnxruntime only in this process

    package = open_package(folder, trusted_signers(crossing_in))
    if package.sha256 != package_sha256:
        raise PackageError("package.hash", "not the package that was approved")
    return ModelSession(package, threads)


def _save(root: Path, ds: Dataset, relative: str) -> str:
    """Write a result whole or not at all; return its path relative to the clinical root."""
    target = root / relative
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = BytesIO()
    ds.save_as(content, enforce_file_format=True)
    durable.write_whole(target, content.getvalue())
    return relative
