"""Scores de-identified files by the ten actions of the MIDI-B benchmark, more strictly than it does.

What is expected follows from the original and PS3.15 Table E.1-1, by rules of this module: nothing of the
engine is asked. Stricter than the benchmark: a file that is neither released nor stopped with a reason fails;
what identifies must be gone from every value, not from its own place only; all dates of a patient move by the
same days; UIDs map one to one over all files, and references lead to the same instances as before; what
is kept is equal, not similar.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydicom import dcmread
from pydicom._uid_dict import UID_dictionary
from pydicom.encaps import generate_frames
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from anonymizer.engine import Quarantined, deidentify_file
from tests.anonymizer.expectations import (
    BURNT_IN,
    IDENTITY,
    NEEDED,
    USEFUL,
    fits,
    is_removed,
    is_safe_private,
)
from tests.anonymizer.material import UNSEEN
from tests.anonymizer.scores import Action, Scores
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydicom import DataElement, Dataset

_PIXELS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_WORD: Final = re.compile(r"[^\W_]{3,}")
_OWN: Final = frozenset({0x00100010, 0x00100020, 0x00120063, 0x00120064})  # what the engine itself writes
_LONG: Final = 6  # characters of an identifier that is looked for in other places than its own


@dataclass
class Links:
    """What must hold over all files: which value became which."""

    uids: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    patients: defaultdict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    days: defaultdict[tuple[str, str], set[int]] = field(default_factory=lambda: defaultdict(set))
    instances: dict[str, str] = field(default_factory=dict)
    references: set[tuple[str, str]] = field(default_factory=set)


def score(paths: Iterable[Path], folder: Path) -> Scores:
    """De-identify files into a folder, and score what comes out."""
    scores, links = Scores(), Links()
    for number, path in enumerate(paths):
        target = folder / f"{number:05d}.dcm"
        outcome = deidentify_file(path, target, UNSEEN)
        burnt_in = _is_burnt_in(path)
        if isinstance(outcome, Quarantined):
            known = bool(outcome.reason_code and outcome.reason) and not target.exists()
            scores.note(Action.FILE_PRESENT, known, path.name)
            scores.stopped[outcome.reason_code] += 1
        else:
            scores.note(Action.FILE_PRESENT, target.is_file(), path.name)
            scores.released += 1
            score_file(_read(path), _read(target), path.name, scores, links)
        if burnt_in:
            scores.note(Action.PIXELS_HIDDEN, isinstance(outcome, Quarantined), path.name)
        target.unlink(missing_ok=True)
    score_links(scores, links)
    return scores


def _read(path: Path) -> Dataset:
    ds = dcmread(path)
    ds.decode()
    return ds


def _is_burnt_in(path: Path) -> bool:
    """Tell whether an original says, or its SOP class lets expect, that its pixels show text."""
    try:
        ds = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID", "BurnedInAnnotation"])
        return ds.get("SOPClassUID") in BURNT_IN or ds.get("BurnedInAnnotation") == "YES"
    except (InvalidDicomError, EOFError, NotImplementedError, ValueError):
        return False


def score_file(source: Dataset, out: Dataset, name: str, scores: Scores, links: Links) -> None:
    """Score one released instance against its original, as pydicom reads both."""
    patient = (_text(source.get("PatientID")).strip(), _text(source.get("IssuerOfPatientID")).strip())
    links.patients[patient].add(_text(out.get("PatientID")))
    links.instances[source.SOPInstanceUID] = out.SOPInstanceUID
    for path, element, after in _pairs(source, out):
        where = f"{name} {path}"
        if element.VR == "UI":
            _score_uid(element, after, where, scores, links)
        elif element.VR in {"DA", "DT"}:
            _score_date(element, after, where, scores, links.days[patient])
        elif element.VR != "SQ" and is_removed(int(element.tag)):
            gone = after is None or not _words(element.value) & _words(after.value)
            scores.note(Action.TEXT_REMOVED, gone or (int(element.tag) in IDENTITY and _is_own(after)), where)
        elif (
            element.keyword in USEFUL
            and fits(element)
            and ("Rows" in source or element.keyword != "ImageType")
        ):
            _score_kept(element, after, where, scores)
    for keyword in NEEDED:
        scores.note(Action.TEXT_NOT_NULL, bool(_text(out.get(keyword))), f"{name} {keyword}")
    _score_identity_elsewhere(source, out, name, scores)
    _score_private(out, name, scores)
    _score_pixels(source, out, name, scores)
    meta = out.file_meta
    equal = (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID) == (
        out.SOPClassUID,
        out.SOPInstanceUID,
    )
    scores.note(Action.META_EQUALS_DATASET, equal, name)
    _note_references(source, links)


def _is_own(after: DataElement | None) -> bool:
    return after is not None and int(after.tag) in _OWN


def _pairs(
    source: Dataset, out: Dataset, path: str = ""
) -> Iterator[tuple[str, DataElement, DataElement | None]]:
    """Yield each element of the original with what it became; items are paired where none was taken away."""
    for element in source:
        tag = element.tag
        if tag.is_private or element.keyword in _PIXELS:
            continue
        after = out.get(tag) if tag in out else None
        here = f"{path}{element.keyword or tag}"
        yield here, element, after
        if element.VR == "SQ" and after is not None and len(after.value) == len(element.value):
            for number, (item, other) in enumerate(zip(element.value, after.value, strict=True)):
                yield from _pairs(item, other, f"{here}[{number}].")


def _values(element: DataElement | None) -> list[str]:
    if element is None or element.value is None:
        return []
    text = _text(element.value)
    return [part.strip() for part in text.split("\\")] if text else []


def _text(value: object) -> str:
    if value is None:
        return ""
    if (
        not isinstance(value, (str, bytes))
        and hasattr(value, "__iter__")
        and not hasattr(value, "components")
    ):
        return "\\".join(map(str, value))
    return str(value)


def _words(value: object) -> set[str]:
    return {word.casefold() for word in _WORD.findall(_text(value))}


def _score_uid(
    element: DataElement, after: DataElement | None, where: str, scores: Scores, links: Links
) -> None:
    before, now = _values(element), _values(after)
    for old in before:
        if old and not _is_registered(old):
            scores.note(Action.UID_CHANGED, old not in now, where)
    if len(now) == len(before):
        for old, new in zip(before, now, strict=True):
            if old and not _is_registered(old):
                links.uids[old].add(new)
            else:
                scores.note(Action.UID_CONSISTENT, old == new, where)


@lru_cache(maxsize=4096)
def _is_registered(uid: str) -> bool:
    return uid in UID_dictionary or (UID(uid).name != uid) or uid.startswith("1.2.840.10008.")


def _score_date(
    element: DataElement, after: DataElement | None, where: str, scores: Scores, days: set[int]
) -> None:
    before, now = _values(element), _values(after)
    if not any(now):
        scores.note(Action.DATE_SHIFTED, passed=True, where=where)
        return
    for old, new in zip(before, now, strict=False):
        moved = _days(old, new)
        if is_removed(int(element.tag)) and new.startswith("19000101"):
            continue  # a dummy
        scores.note(Action.DATE_SHIFTED, moved is not None and moved > 0 and old[8:14] == new[8:14], where)
        if moved is not None and len(old.replace(".", "")[:8]) == 8:
            days.add(moved)


def _days(old: str, new: str) -> int | None:
    """Return by how many days a value moved back; None when either is no whole date."""
    try:
        return (date.fromisoformat(_iso(old)) - date.fromisoformat(_iso(new))).days
    except ValueError:
        return None


def _iso(value: str) -> str:
    digits = value.replace(".", "", 2) if value[4:5] == "." else value
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:8]}"


def _score_kept(element: DataElement, after: DataElement | None, where: str, scores: Scores) -> None:
    scores.note(Action.TAG_RETAINED, after is not None, where)
    if after is None or not _values(element):
        return
    scores.note(Action.TEXT_NOT_NULL, any(_values(after)), where)
    scores.note(Action.TEXT_RETAINED, _values(element) == _values(after), where)


def _score_identity_elsewhere(source: Dataset, out: Dataset, name: str, scores: Scores) -> None:
    """Look for the patient's names and numbers in every value of the output, whole."""
    haystack = "\n".join(
        _text(element.value).casefold()
        for top in out
        if int(top.tag) not in _OWN
        for element in (
            [top] if top.VR != "SQ" else (inner for item in top.value for inner in item.iterall())
        )
        if element.VR not in {"SQ", "OB", "OW", "UN"}
    )
    for element in source.iterall():
        if int(element.tag) not in IDENTITY:
            continue
        for value in re.split(r"[\\^=]", _text(element.value)):
            wanted = value.strip().casefold()
            if len(wanted) >= _LONG:
                scores.note(
                    Action.TEXT_REMOVED, wanted not in haystack, f"{name} {element.keyword} elsewhere"
                )


def _score_private(out: Dataset, name: str, scores: Scores) -> None:
    """Let no private element pass that PS3.15 does not list as safe, wherever it is."""
    for element in out.iterall():
        if not element.tag.is_private or element.tag.is_private_creator:
            continue
        safe = is_safe_private(element.tag.group, element.tag.element & 0xFF)
        scores.note(Action.TEXT_REMOVED, safe, f"{name} private {element.tag}")


def _score_pixels(source: Dataset, out: Dataset, name: str, scores: Scores) -> None:
    for keyword in _PIXELS:
        if keyword not in source:
            continue
        where = f"{name} {keyword}"
        if keyword not in out:
            scores.note(Action.PIXELS_RETAINED, passed=False, where=where)
            continue
        pixels = _native if not source.file_meta.TransferSyntaxUID.is_encapsulated else _decoded
        before = pixels(source, keyword)
        if before is None:  # what nothing here decodes is compared from the scans on
            scores.note(Action.PIXELS_RETAINED, _scans(source) == _scans(out), where)
        else:
            scores.note(Action.PIXELS_RETAINED, before == pixels(out, keyword), where)


def _native(ds: Dataset, keyword: str) -> bytes | None:
    return hashlib.sha256(bytes(ds[keyword].value)).digest()


def _decoded(ds: Dataset, keyword: str) -> bytes | None:
    try:
        return hashlib.sha256(ds.pixel_array.tobytes()).digest()
    except (NotImplementedError, RuntimeError):
        return None


def _scans(ds: Dataset) -> list[bytes]:
    """Return each frame from its last start of scan (JPEG) or of data (JPEG 2000) on, without padding."""
    frames = generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames") or 1))
    return [
        frame[max(frame.rfind(b"\xff\xda"), frame.rfind(b"\xff\x93"), 0) :].rstrip(b"\0\xff")
        for frame in frames
    ]


def _note_references(source: Dataset, links: Links) -> None:
    for element in source.iterall():
        if element.keyword == "ReferencedSOPInstanceUID" and element.value:
            links.references.add((source.SOPInstanceUID, str(element.value)))


def score_links(scores: Scores, links: Links) -> None:
    """Score what holds over all files: maps are functions and one to one, dates keep their distances."""
    for action, found in (
        (Action.UID_CONSISTENT, links.uids),
        (Action.PATIENT_ID_CONSISTENT, links.patients),
    ):
        sources: defaultdict[str, set[object]] = defaultdict(set)
        for old, new in found.items():
            scores.note(action, len(new) == 1, "one original, several replacements")
            for one in new:
                sources[one].add(old)
        for olds in sources.values():
            scores.note(action, len(olds) == 1, "several originals, one replacement")
    for days in links.days.values():
        scores.note(Action.DATE_SHIFTED, len(days) <= 1, "dates of one patient moved by different days")
    for origin, target in links.references:
        if target in links.instances and target in links.uids and origin in links.instances:
            same = links.uids[target] == {links.instances[target]}
            scores.note(Action.REFERENCE_RESOLVES, same, "a reference to a released instance")


def files() -> list[Path]:
    """Return the files of the public data."""
    return sorted(path for path in (shared_data_dir() / "dicom").rglob("*") if path.is_file())


def main() -> None:
    """Score all files, and write the table and the failures."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = score(files(), Path(folder))
    sys.stdout.write(f"{scores.released} released, stopped: {dict(scores.stopped)}\n{scores.table()}\n")
    for (action, where), count in Counter(scores.failures).most_common():
        sys.stdout.write(f"failed: {action}: {where} ({count})\n")


if __name__ == "__main__":
    main()
