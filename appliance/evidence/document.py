"""The PDF of an evidence pack: a few pages that a privacy officer reads and files."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any, Final
from xml.sax.saxutils import escape

from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle, getSampleStyleSheet
from reportlab.lib.units import mm
from reportlab.platypus import Paragraph, SimpleDocTemplate, Spacer, Table, TableStyle

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reportlab.pdfgen.canvas import Canvas
    from reportlab.platypus import Flowable

_STYLES: Final = getSampleStyleSheet()
_TEXT: Final = ParagraphStyle("text", parent=_STYLES["Normal"], fontSize=9, leading=12)
_CELL: Final = ParagraphStyle("cell", parent=_TEXT, fontSize=8, leading=10)
_MONO: Final = ParagraphStyle("mono", parent=_CELL, fontName="Courier", fontSize=7, leading=9, wordWrap="CJK")
_HEAD: Final = ParagraphStyle("head", parent=_STYLES["Heading2"], fontSize=12, spaceBefore=10, spaceAfter=4)
_WIDTH: Final = A4[0] - 40 * mm
_INK, _LINE, _SHADE = colors.HexColor("#1f2d3d"), colors.HexColor("#c5ced8"), colors.HexColor("#eef2f6")

_GRID: Final[Any] = (
    ("LINEBELOW", (0, 0), (-1, -1), 0.4, _LINE),
    ("VALIGN", (0, 0), (-1, -1), "TOP"),
    ("TOPPADDING", (0, 0), (-1, -1), 2),
    ("BOTTOMPADDING", (0, 0), (-1, -1), 3),
)


def pdf(facts: dict[str, Any], signature: str) -> bytes:
    """Return the document.

    Parameters
    ----------
    facts : dict
        As :func:`appliance.evidence.gathering.gather` returns them.
    signature : str
        Of the JSON, in hexadecimal; printed so that paper and file can be matched.
    """
    buffer = BytesIO()
    document = SimpleDocTemplate(
        buffer,
        pagesize=A4,
        leftMargin=20 * mm,
        rightMargin=20 * mm,
        topMargin=18 * mm,
        bottomMargin=18 * mm,
        title=f"De-identification evidence: {facts['project']}",
        author=facts["node"],
    )
    footer = f"{facts['node']} · {facts['project']} · {facts['made_at']}"
    document.build(
        [*_summary(facts), *_decisions(facts), *_rules(facts), *_samples(facts), *_seal(facts, signature)],
        onFirstPage=_footer(footer),
        onLaterPages=_footer(footer),
    )
    return buffer.getvalue()


def _footer(text: str) -> Any:
    def draw(canvas: Canvas, document: SimpleDocTemplate) -> None:
        canvas.saveState()
        canvas.setFont("Helvetica", 7)
        canvas.setFillColor(_INK)
        canvas.drawString(20 * mm, 10 * mm, text)
        canvas.drawRightString(A4[0] - 20 * mm, 10 * mm, str(document.page))
        canvas.restoreState()

    return draw


def _paragraph(text: object, style: ParagraphStyle = _CELL) -> Paragraph:
    return Paragraph(escape(str(text)), style)


def _table(rows: Iterable[Sequence[object]], widths: Sequence[float], *, header: bool = True) -> Table:
    cells = [[entry if isinstance(entry, Paragraph) else _paragraph(entry) for entry in row] for row in rows]
    table = Table(cells, colWidths=[_WIDTH * width for width in widths], repeatRows=int(header))
    table.setStyle(TableStyle(_GRID))
    if header:
        table.setStyle(TableStyle([("BACKGROUND", (0, 0), (-1, 0), _SHADE)]))
    return table


def _summary(facts: dict[str, Any]) -> list[Flowable]:
    counts, profile = facts["counts"], facts["profile"]
    reasons = counts["quarantined_by_reason"]
    found = [
        Paragraph("De-identification: evidence", _STYLES["Title"]),
        _table(
            [
                ("Node", facts["node"]),
                ("Research project", facts["project"]),
                ("Made at", facts["made_at"]),
                ("Profile", f"{profile['name']}: {profile['description']}"),
                ("Profile hash", _paragraph(profile["hash"], _MONO)),
                ("Dates move back by", f"1 to {profile['max_date_shift_days']} days, one number per patient"),
            ],
            (0.25, 0.75),
            header=False,
        ),
        Paragraph("What was done", _HEAD),
        _table(
            [
                ("", "Instances"),
                ("Released", counts["instances_released"]),
                ("Stopped, inside the hospital", counts["instances_quarantined"]),
                ("… of these by the independent check", counts["stopped_by_the_check"]),
                ("Decisions of a person that are still open", counts["quarantine_open"]),
            ],
            (0.7, 0.3),
        ),
    ]
    if reasons:
        rows = [("Why stopped", "Items"), *((code.replace("_", " "), n) for code, n in reasons.items())]
        found += [Spacer(1, 3 * mm), _table(rows, (0.7, 0.3))]
    used: list[Sequence[object]] = [("Profile hash in the ledger", "Study revisions")]
    used += [(_paragraph(row["hash"] or "before hashes were kept", _MONO), row["revisions"])
             for row in facts["profiles_used"]]  # fmt: skip
    return [*found, Spacer(1, 3 * mm), _table(used, (0.8, 0.2))]


def _decisions(facts: dict[str, Any]) -> list[Flowable]:
    """Say what people decided of what was stopped."""
    if not facts["decisions"]:
        return []
    rows: list[Sequence[object]] = [("Stopped for", "Decided", "For", "Boxes", "State", "By (row ids)")]
    for row in facts["decisions"]:
        people = " and ".join(by[:8] for by in (row["decided_by"], row["confirmed_by"]) if by)
        code = row["code"].replace("_", " ")
        rows.append((code, row["outcome"], row["scope"], row["boxes"], row["state"], people))
    widths = (0.3, 0.12, 0.14, 0.1, 0.14, 0.2)
    return [Paragraph("What people decided", _HEAD), _table(rows, widths)]


def _rules(facts: dict[str, Any]) -> list[Flowable]:
    profile = facts["profile"]
    found: list[Flowable] = [
        Paragraph("By which rules", _HEAD),
        _table(
            [("Code (CID 7050)", "Option"), *((c["value"], c["meaning"]) for c in profile["codes"])],
            (0.25, 0.75),
        ),
        Spacer(1, 3 * mm),
        _table(
            [("Table", "Edition"), *((t["table"], t["edition"]) for t in facts["tables"])],
            (0.6, 0.4),
        ),
    ]
    if profile["rules"]:
        rows = [("Attribute", "Rule of the hospital's own")]
        rows += [
            (f"{r['tag']} {r['private_creator']}".strip(), f"{r['action']} {r['value']}".strip())
            for r in profile["rules"]
        ]
        found += [Spacer(1, 3 * mm), _table(rows, (0.4, 0.6))]
    return found


def _samples(facts: dict[str, Any]) -> list[Flowable]:
    intro = (
        "Released instances, chosen by a hash of their row ids, were de-identified once more by the profile "
        "above and searched by the independent check. The attributes that changed are in the JSON."
    )
    rows: list[Sequence[object]] = [("Instance (row id)", "Modality", "Outcome", "Kept", "Changed", "Gone")]
    for sample in facts["samples"]:
        counts = sample.get("attributes", {})
        rows.append(
            (
                _paragraph(sample["instance"], _MONO),
                sample.get("modality", ""),
                f"{sample['outcome']}{', ' + sample['check'] if 'check' in sample else ''}".replace("_", " "),
                counts.get("kept", ""),
                counts.get("changed", 0) + counts.get("added", 0) if counts else "",
                counts.get("removed", 0) + counts.get("emptied", 0) if counts else "",
            )
        )
    widths = (0.32, 0.12, 0.26, 0.1, 0.1, 0.1)
    return [Paragraph("Samples", _HEAD), _paragraph(intro, _TEXT), Spacer(1, 2 * mm), _table(rows, widths)]


def _seal(facts: dict[str, Any], signature: str) -> list[Flowable]:
    ledger = facts["ledger"]
    return [
        Paragraph("Seal", _HEAD),
        _table(
            [
                ("Ledger", f"{ledger['entries']} entries"),
                ("Ledger head", _paragraph(ledger["head"], _MONO)),
                ("Signature of evidence.json (Ed25519)", _paragraph(signature, _MONO)),
            ],
            (0.3, 0.7),
            header=False,
        ),
        Spacer(1, 10 * mm),
        _table(
            [("Privacy officer, date", "Decision"), (Paragraph("<br/><br/><br/>", _CELL), "")], (0.5, 0.5)
        ),
    ]
