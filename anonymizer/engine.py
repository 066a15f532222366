"""The engine: one instance in, de-identified or stopped with a reason. Nothing else leaves.

Order: read strictly, stop what cannot be judged, apply the decisions of the SOP class's profile, look into
the pixel data, write the de-identification attributes, search the result for the original's identifiers,
write the file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from anonymizer import cleaning, keep_list, part10, pixels, verdicts
from anonymizer.dates import shift_days
from anonymizer.elements import MAX_INFLATED_BYTES
from anonymizer.errors import DecodingError, StopError, UnusablePatientIDError
from anonymizer.faces import decision
from anonymizer.identity import WRITTEN, identity_elements
from anonymizer.judgement import refuse_unjudgeable
from anonymizer.mapping import mapped
from anonymizer.options import Option
from anonymizer.patient import Patient
from anonymizer.profiles import Profile, load_profile
from anonymizer.pseudonyms import pseudonym
from anonymizer.residue import refuse_residue
from anonymizer.subject import Subject
from anonymizer.text import CHARSET, Charset
from anonymizer.transform import transform, without
from anonymizer.uids import well_known

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anonymizer.boxes import Box
    from anonymizer.elements import Bytes, Item
    from anonymizer.faces.decision import FaceFinder
    from anonymizer.keys import ProjectKeys
    from anonymizer.verdicts import Verdict

_SOP_CLASS, _MODALITY = 0x00080016, 0x00080060
_UIDS: Final = (
    (0x0020000D, "StudyInstanceUID (0020,000D)"),
    (0x0020000E, "SeriesInstanceUID (0020,000E)"),
    (0x00080018, "SOPInstanceUID (0008,0018)"),
)
_WAITS: Final = (StopError, DecodingError, UnusablePatientIDError)
_PATIENT_ID, _ISSUER = 0x00100020, 0x00100021


def _no_beat() -> None:
    """Nobody waits."""


@dataclass(frozen=True)
class Context:
    """What de-identification needs besides the instance.

    ``verdict`` is what a person decided of the instance. ``beat`` is called now and then while one instance
    takes long. ``also`` is what is known of the patient beside the instance: tag, VR and text of attributes
    of other instances of its study.
    ``faces`` finds what is removed of a head, which takes all instances of its series
    (:class:`anonymizer.faces.series.Faces`).
    """

    keys: ProjectKeys
    project: str
    max_date_shift_days: int = 365
    max_inflated_bytes: int = MAX_INFLATED_BYTES
    profile: Profile = field(default_factory=load_profile)
    verdict: Verdict = verdicts.NONE
    also: tuple[tuple[int, str, str], ...] = ()
    beat: Callable[[], None] = field(default=_no_beat, compare=False)
    faces: FaceFinder | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Released:
    """What came out; all UIDs are the mapped ones. ``boxes`` were blacked out."""

    pseudonym: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    modality: str
    size_bytes: int
    sha256: str
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Quarantined:
    """Why nothing came out; never a value of the instance."""

    reason_code: str
    reason: str


def deidentify_file(source: Path, target: Path, context: Context) -> Released | Quarantined:
    """De-identify a Part 10 file; the file as written is checked before it gets its name.

    Both files are mapped, not read: memory does not grow with uncompressed pixel data. ``target`` is written
    whole (temporary file beside it, renamed) or not at all; syncing is the caller's.

    Raises
    ------
    OSError
        If a file cannot be read or written.
    """
    temporary = target.with_name(f".{target.name}.part")
    try:
        with mapped(source) as content:
            return _deidentify_file(content, temporary, target, context)
    except _WAITS as error:
        return Quarantined(error.code, str(error))
    finally:
        temporary.unlink(missing_ok=True)


def _deidentify_file(content: Bytes, temporary: Path, target: Path, context: Context) -> Released:
    released, chunks = _deidentify(content, context)
    with temporary.open("wb") as file:
        file.writelines(chunks)
    del chunks
    with mapped(temporary) as output:
        refuse_residue(content, output, released.pseudonym, context)
    temporary.replace(target)
    return released


def deidentify(content: Bytes, context: Context) -> tuple[Released, list[Bytes]] | Quarantined:
    """De-identify the bytes of a Part 10 file; return the bytes of the new one in chunks."""
    try:
        released, chunks = _deidentify(content, context)
        refuse_residue(content, b"".join(chunks), released.pseudonym, context)
    except _WAITS as error:
        return Quarantined(error.code, str(error))
    return released, chunks


def _deidentify(content: Bytes, context: Context) -> tuple[Released, list[Bytes]]:
    file = part10.read(content, context.max_inflated_bytes)
    sop_class_uid = _required_uid(file.item, _SOP_CLASS, "SOPClassUID (0008,0016)")
    if sop_class_uid != file.sop_class_uid:
        raise StopError(
            "malformed", "MediaStorageSOPClassUID (0002,0002): expected the data set's SOPClassUID"
        )
    refuse_unjudgeable(file.item, sop_class_uid, context.profile, context.verdict.accepted)
    if keep_list.requires_pixel_data(sop_class_uid) and not pixels.ALL & file.item.keys():
        raise StopError("pixel_data_missing", "an image without pixel data; expected a whole instance")
    decisions = keep_list.decisions(sop_class_uid, context.profile)
    if decisions is None:
        raise StopError(
            "unknown_sop_class", "SOPClassUID (0008,0016): a class without an entry in the keep list"
        )
    originals = [_own_uid(file.item, tag, what) for tag, what in _UIDS]
    charset = Charset.of(_bytes_of(file.item, CHARSET))
    name, patient = _patient(file.item, charset, context)
    others = {tag: element for tag, element in file.item.items() if tag not in WRITTEN}
    item = transform(others, decisions, patient, charset)
    face = decision.face_areas(file, context.profile, context.faces)
    picture = cleaning.cleaned(
        file, item, sop_class_uid, context.profile, context.beat, context.verdict, face or ()
    )
    item = without(item | picture.elements, decisions, context.verdict.removed, patient)
    item.update(identity_elements(name, context.profile, looked=picture.looked, faceless=face is not None))
    study, series, sop_instance = (patient.uid(uid) for uid in originals)
    chunks = part10.write(item, sop_class_uid, sop_instance, picture.transfer_syntax_uid)
    digest = sha256()
    for chunk in chunks:
        digest.update(chunk)
    released = Released(
        pseudonym=name,
        study_instance_uid=study,
        series_instance_uid=series,
        sop_instance_uid=sop_instance,
        sop_class_uid=sop_class_uid,
        modality=pixels.text_of(item, _MODALITY),
        size_bytes=sum(map(len, chunks)),
        sha256=digest.hexdigest(),
        boxes=picture.boxes,
    )
    return released, chunks


def _bytes_of(item: Item, tag: int) -> Bytes | None:
    element = item.get(tag)
    return element.value if element is not None and isinstance(element.value, (bytes, memoryview)) else None


def _required_uid(item: Item, tag: int, what: str) -> str:
    uid = bytes(_bytes_of(item, tag) or b"").decode("ascii", "replace").strip(" \0")
    if not uid or len(uid) > 64 or not uid.replace(".", "").isdecimal():
        raise StopError("missing_uid", f"{what}: expected one UID")
    return uid


def _own_uid(item: Item, tag: int, what: str) -> str:
    """Return a UID of the patient's object; one of the standard's own would stay and name nothing."""
    uid = _required_uid(item, tag, what)
    if uid in well_known():
        raise StopError("well_known_uid", f"{what}: a UID that PS3.6 registers; expected one of its own")
    return uid


def read_patient(content: Bytes) -> tuple[str, str]:
    """Return PatientID and issuer of a file, trimmed, as the pseudonym is made of them.

    Raises
    ------
    AnonymizerError
        If the file cannot be read.
    """
    item = part10.read(content).item
    return _identity(item, Charset.of(_bytes_of(item, CHARSET)))


def _identity(item: Item, charset: Charset) -> tuple[str, str]:
    patient_id = charset.decode(_bytes_of(item, _PATIENT_ID) or b"")
    issuer = charset.decode(_bytes_of(item, _ISSUER) or b"")
    return patient_id.strip(" \0"), issuer.strip(" \0")


def _patient(item: Item, charset: Charset, context: Context) -> tuple[str, Patient]:
    patient_id, issuer = _identity(item, charset)
    name = pseudonym(context.keys, patient_id, issuer)
    days = shift_days(context.keys, patient_id, issuer, context.max_date_shift_days)
    if Option.FULL_DATES in context.profile.options:
        days = 0
    subject = Subject.of_item(item, charset) | Subject.of_values(context.also)
    return name, Patient(context.keys, days, context.profile, subject)
