"""What a segmenting model marked: as a line in a list, and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.web.panel.markup import DASH, el
from appliance.web.panel.parts import Column, stack, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from markupsafe import Markup


@dataclass(frozen=True)
class SegmentRow:
    """A segment in one series; ``volume_ml`` is None of single pictures, too small where it is cut off."""

    series: int
    meaning: str
    code: str
    voxels: int
    volume_ml: float | None
    cut_off: bool

    @property
    def size(self) -> str:
        """How large it is: its volume, or how many pixels."""
        return f"{self.voxels} pixels" if self.volume_ml is None else f"{self.volume_ml:.3f} mL"


def read(finding: Mapping[str, Any]) -> tuple[SegmentRow, ...]:
    """Read what inference stored of a result; empty for findings."""
    return tuple(
        SegmentRow(
            series=int(row["series"]),
            meaning=str(row["meaning"]),
            code=f"{row['scheme']} {row['code']}",
            voxels=int(row["voxels"]),
            volume_ml=row["volume_ml"],
            cut_off=bool(row["cut_off"]),
        )
        for row in finding.get("segments") or ()
    )


def names(rows: tuple[SegmentRow, ...]) -> str:
    """Name the segments, each once."""
    return ", ".join(dict.fromkeys(row.meaning for row in rows))


def draw_table(rows: tuple[SegmentRow, ...]) -> Markup:
    """Draw the segments; which series each is of, where there are several."""
    several = len({row.series for row in rows}) > 1
    columns = (Column("Segment", "wide"), Column("Voxels", "number"), Column("Volume", "number"))
    body = [
        (
            stack(
                row.meaning,
                el("small", row.code),
                el("small", f"series {row.series}") if several else None,
                el("small", "cut off at the edge of what the model sees") if row.cut_off else None,
            ),
            row.voxels,
            DASH if row.volume_ml is None else f"{row.volume_ml:.3f} mL",
        )
        for row in rows
    ]
    return table("Segments", columns, body, compact=True)
