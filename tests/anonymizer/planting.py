"""Layers of marks over a real file: each writes them into one kind of place, and changes nothing else."""

from __future__ import annotations

import struct
from copy import deepcopy
from typing import TYPE_CHECKING, Final

from pydicom._dicom_dict import DicomDictionary

from anonymizer.rules import rule_for
from tests.anonymizer.kept_places import KEPT, STEERING
from tests.anonymizer.raw import Encapsulated, Item, Raw, RawFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.anonymizer.marks import Marks

    Layer = Callable[[RawFile, Marks], RawFile]

_TEXT: Final = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
_NUMBERS: Final = frozenset({"DS", "IS"})
_BINARY: Final = frozenset({
    "AT", "FD", "FL", "OB", "OD", "OF", "OL", "OV", "OW", "SL", "SS", "SV", "UL", "UN", "US", "UV",
})  # fmt: skip
_NUMERIC: Final = frozenset({"AT", "FD", "FL", "SL", "SS", "SV", "UL", "US", "UV"})
_OTHER_GROUPS: Final = frozenset({0x0000, 0x0002, 0x0004, 0x7FE0, 0xFFFE})
_CHARSET: Final = 0x00080005
_PIXEL_DATA: Final = 0x7FE00010
_SHARES: Final = 8
_SAFE_CREATOR: Final = "SIEMENS MR HEADER"  # has safe attributes in PS3.15 Table E.3.10-1


def value(vr: str, place: str, marks: Marks) -> bytes | None:
    """Return a mark as a value that its VR allows; None where a VR has no room for one."""
    where = f"{place} {vr}"
    if vr in _TEXT:
        word = marks.text(where)
        return (word.upper() if vr == "CS" else word).encode("ascii")
    if vr == "UI":
        return marks.uid(where).encode("ascii")
    if vr in {"DA", "DT"}:
        return (marks.date(where) + ("" if vr == "DA" else "123456.5")).encode("ascii")
    if vr in _NUMBERS:
        return marks.number(where).encode("ascii")
    if vr in _BINARY:
        return marks.text(where).encode("ascii").ljust(16, b"_")
    return None  # AS, TM: ages and times of day have no room for one; SQ


def _set(item: Item, tag: int, vr: str, place: str, marks: Marks) -> None:
    mark = value(vr, f"{place}({tag >> 16:04X},{tag & 0xFFFF:04X})", marks)
    if mark is not None:
        item[tag] = Raw(vr, mark)


def header(file: RawFile, marks: Marks) -> RawFile:
    """Mark every attribute of PS3.6 that is no kept place; numbers and terms that are there stay."""
    out = deepcopy(file)
    for tag, (vrs, *_, keyword) in DicomDictionary.items():
        vr = vrs.split(" or ")[0]
        old = out.body.get(tag)
        if tag >> 16 in _OTHER_GROUPS or keyword in STEERING or keyword in KEPT:
            continue
        if _measures(tag, vr):
            continue
        if old is not None and (isinstance(old.value, list) or vr not in _TEXT - {"CS"} | {"UI", "DA", "DT"}):
            continue
        _set(out.body, tag, vr, "", marks)
    return out


def _measures(tag: int, vr: str) -> bool:
    """Tell whether an attribute is a number or a defined term that Table E.1-1 does not name.

    What is measured or chosen is kept as it comes; a person who writes a name as such numbers is not found.
    """
    return vr in _NUMBERS | _NUMERIC | {"CS"} and rule_for(tag) is None


def _person(place: str, marks: Marks) -> Item:
    """Return an item with what describes a person, a machine and a private block, two levels deep."""
    found: Item = {}
    for tag, vr in (
        (0x00080050, "SH"), (0x00080080, "LO"), (0x00080081, "ST"), (0x00080090, "PN"), (0x00081010, "SH"),
        (0x00081030, "LO"), (0x00081155, "UI"), (0x00091001, "UN"), (0x00100010, "PN"), (0x00100020, "LO"),
        (0x00104000, "LT"), (0x00181000, "LO"), (0x0018A002, "DT"), (0x00204000, "LT"), (0x0040A123, "PN"),
        (0x0040A160, "UT"), (0x00400244, "DA"), (0x00420011, "OB"), (0x0042FFF1, "UN"), (0x0088FF55, "LO"),
    ):  # fmt: skip
        if vr not in {"DA", "DT"}:  # there are fewer dates than sequences
            _set(found, tag, vr, place, marks)
    found[0x00090010] = Raw("LO", marks.text(f"{place}(0009,0010) creator").encode("ascii"))
    return found


def nested(file: RawFile, marks: Marks) -> RawFile:
    """Mark an item in every eighth sequence of PS3.6 that the file lacks, and items in these.

    Which eighth depends on the file, so that a few files of a SOP class have them all.
    """
    out = deepcopy(file)
    share = sum(file.transfer_syntax.encode("ascii")) + len(file.body)
    for number, (tag, (vr, *_, keyword)) in enumerate(DicomDictionary.items()):
        if vr != "SQ" or tag in out.body or tag >> 16 in _OTHER_GROUPS or keyword in STEERING:
            continue
        if (number + share) % _SHARES:
            continue
        place = f"({tag >> 16:04X},{tag & 0xFFFF:04X})>"
        item = _person(place, marks)
        inner = _person(f"{place}(0040,A730)>", marks)
        inner[0x00091002] = Raw("SQ", [_person(f"{place}(0040,A730)>private>", marks)])
        item[0x0040A730] = Raw("SQ", [inner])
        out.body[tag] = Raw("SQ", [item])
    return out


def existing_items(file: RawFile, marks: Marks) -> RawFile:
    """Mark every item that the file has, at every level."""
    out = deepcopy(file)
    _mark_items(out.body, "", marks)
    return out


def _mark_items(item: Item, place: str, marks: Marks) -> None:
    for tag, raw in list(item.items()):
        if isinstance(raw.value, list):
            for number, inner in enumerate(raw.value):
                path = f"{place}({tag >> 16:04X},{tag & 0xFFFF:04X})[{number}]>"
                _mark_items(inner, path, marks)
                inner.update(
                    {t: r for t, r in _person(path, marks).items() if t not in inner or r.vr != "UI"}
                )


def private(file: RawFile, marks: Marks) -> RawFile:
    """Mark private blocks, of an unknown creator and of one with safe attributes, in values of every VR."""
    out = deepcopy(file)
    vrs = sorted(_TEXT | _BINARY | _NUMBERS | {"UI", "DA", "DT"})
    for group in (0x0009, 0x0019, 0x0029, 0x0051, 0x7FE1, 0x60A1):
        for block in (0x10, 0x11, 0xF0):
            creator = _SAFE_CREATOR if block == 0x11 else marks.text(f"creator of {group:04X}xx{block:02X}")
            out.body[group << 16 | block] = Raw("LO", creator.encode("ascii"))
            for low, vr in enumerate(vrs, 0x80):
                _set(out.body, group << 16 | block << 8 | low, vr, "private ", marks)
            item = {**_person(f"private {group:04X}>", marks)}
            out.body[group << 16 | block << 8 | 0xFE] = Raw("SQ", [item])
        _set(out.body, group << 16 | 0x2001, "LO", "private without creator ", marks)
    for low in range(0x40):  # the safe creator's own elements, as text
        _set(out.body, 0x00191100 | low, "LO", "private, safe creator ", marks)
        _set(out.body, 0x00511100 | low, "LO", "private, safe creator ", marks)
    return out


def bulk(file: RawFile, marks: Marks) -> RawFile:
    """Mark curves, overlays, the icon, encapsulated documents, padding and other bulk."""
    out = deepcopy(file)
    for plane in (0x6000, 0x6002, 0x601E):
        columns, rows = struct.pack("<H", 16), struct.pack("<H", 8)
        out.body[plane << 16 | 0x10], out.body[plane << 16 | 0x11] = Raw("US", rows), Raw("US", columns)
        for low, vr in ((0x22, "LO"), (0x1500, "LO"), (0x3000, "OW"), (0x4000, "LT"), (0x1001, "CS")):
            _set(out.body, plane << 16 | low, vr, "overlay ", marks)
    for curve in (0x5000, 0x5002, 0x501E):
        for low, vr in ((0x22, "LO"), (0x30, "SH"), (0x2500, "LO"), (0x3000, "OW"), (0x200C, "OW")):
            _set(out.body, curve << 16 | low, vr, "curve ", marks)
    pdf = f"%PDF-1.4\n1 0 obj<</Author({marks.text('PDF author')})>>endobj\n%%EOF\n".encode("ascii")
    out.body[0x00420011] = Raw("OB", pdf)
    _set(out.body, 0x00420010, "ST", "document title ", marks)
    icon: Item = {
        tag: Raw("US", struct.pack("<H", number))
        for tag, number in (
            (0x00280002, 1), (0x00280010, 4), (0x00280011, 4), (0x00280100, 8), (0x00280101, 8),
            (0x00280102, 7), (0x00280103, 0),
        )
    }  # fmt: skip
    icon[_PIXEL_DATA] = Raw("OB", marks.text("icon image").encode("ascii").ljust(16, b"_"))
    out.body[0x00880200] = Raw("SQ", [icon])
    for tag, vr in ((0xFFFCFFFC, "OB"), (0x7FE00003, "OV"), (0x04000520, "OB"), (0x50003000, "OW")):
        _set(out.body, tag, vr, "bulk ", marks)
    return out


def _code(meaning: str, scheme: str = "99LOCAL", code: str = "1") -> Raw:
    return Raw(
        "SQ",
        [
            {
                0x00080100: Raw("SH", code.encode("ascii")),
                0x00080102: Raw("SH", scheme.encode("ascii")),
                0x00080104: Raw("LO", meaning.encode("ascii")),
            }
        ],
    )


def report(file: RawFile, marks: Marks) -> RawFile:
    """Mark a tree of content items: every value type, names of concepts of local schemes, observers."""
    out = deepcopy(file)
    out.body[0x0040A730] = Raw("SQ", _content("", marks, depth=3))
    return out


def _content(place: str, marks: Marks, depth: int) -> list[Item]:
    kinds = (
        ("TEXT", 0x0040A160, "UT"), ("PNAME", 0x0040A123, "PN"), ("DATETIME", 0x0040A120, "DT"),
        ("DATE", 0x0040A121, "DA"), ("UIDREF", 0x0040A124, "UI"), ("NUM", 0x0040A162, "ST"),
        ("CODE", 0x0040A160, "UT"),
    )  # fmt: skip
    items = []
    for kind, tag, vr in kinds:
        path = f"{place}{kind}>"
        item: Item = {
            0x0040A010: Raw("CS", b"CONTAINS"),
            0x0040A040: Raw("CS", kind.encode("ascii")),
            0x0040A043: _code(marks.text(f"{path}concept name")),
        }
        _set(item, tag, vr, path, marks)
        if kind == "CODE":
            item[0x0040A168] = _code(marks.text(f"{path}concept code"))
        if depth:
            item[0x0040A730] = Raw("SQ", _content(path, marks, 0 if kind != "TEXT" else depth - 1))
        items.append(item)
    return items


def file_meta(file: RawFile, marks: Marks) -> RawFile:
    """Mark the preamble and the file meta information, its private part included."""
    out = deepcopy(file)
    out.preamble = marks.text("preamble").encode("ascii").ljust(128, b"\0")
    for number, vr in (
        (0x0013, "SH"), (0x0016, "AE"), (0x0017, "AE"), (0x0018, "AE"), (0x0026, "UR"), (0x0031, "OB"),
        (0x0012, "UI"), (0x0100, "UI"), (0x0102, "OB"), (0x0003, "UI"),
    ):  # fmt: skip
        _set(out.meta, 0x00020000 | number, vr, "meta ", marks)
    return out


CHARSETS: Final[Mapping[str, tuple[str, str]]] = {
    "": ("ascii", ""), "ISO_IR 100": ("latin-1", "äöüß"), "ISO_IR 144": ("iso8859-5", "Иванов"),
    "ISO_IR 127": ("iso8859-6", "قباني"), "ISO_IR 192": ("utf-8", "山田太郎"),
    "GB18030": ("gb18030", "王小东"), "\\ISO 2022 IR 87": ("iso2022_jp", "山田"),
    "\\ISO 2022 IR 149": ("euc_kr", ""), "ISO_IR 13": ("shift_jis", "ﾔﾏﾀﾞ"),
}  # fmt: skip
"""By term of (0008,0005): how Python encodes it, and letters of it to go with the marks."""


def charset(term: str) -> Layer:
    """Return the layer that declares a character set and marks text in its letters."""
    encoding, letters = CHARSETS[term]

    def layer(file: RawFile, marks: Marks) -> RawFile:
        out = deepcopy(file)
        out.body[_CHARSET] = Raw("CS", term.encode("ascii"))
        for tag, vr in (
            (0x00100010, "PN"), (0x00080090, "PN"), (0x00104000, "LT"), (0x00081030, "LO"),
            (0x00080080, "LO"),
            (0x0008103E, "LO"), (0x00181030, "LO"), (0x00204000, "LT"), (0x00081010, "SH"),
        ):  # fmt: skip
            word = marks.text(f"charset {term} ({tag >> 16:04X},{tag & 0xFFFF:04X})")
            text = f"{word}^Hans={letters}^{word.upper()}={word}" if vr == "PN" else f"{letters} {word}"
            out.body[tag] = Raw(vr, text.encode(encoding))
        return out

    return layer


LAYERS: Final[Mapping[str, Layer]] = {
    "header": header,
    "nested": nested,
    "existing items": existing_items,
    "private": private,
    "bulk": bulk,
    "report": report,
    "file meta": file_meta,
    **{f"charset {term or 'default'}": charset(term) for term in CHARSETS},
}
"""By name; after each of them an instance is released if it was before."""


def fragments_of(file: RawFile) -> list[bytes]:
    """Return the fragments of the pixel data; none when it is native or there is none."""
    raw = file.body.get(_PIXEL_DATA)
    return raw.value.fragments if raw is not None and isinstance(raw.value, Encapsulated) else []
