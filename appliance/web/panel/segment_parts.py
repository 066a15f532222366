"""What a model marked: as a line in a list, and as a table."""

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
    """A segment in one series; ``volume_ml`` is None of single pictures, too small where it is cut off.

    ``score`` is highest and mean difference of what is marked, as shares of black to white, of a model of
    anomalies.
    """

    series: int
    meaning: str
    code: str
    voxels: int
    volume_ml: float | None
    cut_off: bool
    score: tuple[float, float] | None = None

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
            score=_score(row.get("score")),
        )
        for row in finding.get("segments") or ()
    )


def _score(value: Mapping[str, Any] | None) -> tuple[float, float] | None:
    return None if value is None else (float(value["highest"]), float(value["mean"]))


def threshold(finding: Mapping[str, Any]) -> float | None:
    """Return from which difference on a model of anomalies marks, as a share of black to white."""
    value = finding.get("deviation_threshold")
    return None if value is None else float(value)


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
                el("small", _difference(*row.score)) if row.score else None,
            ),
            row.voxels,
            DASH if row.volume_ml is None else f"{row.volume_ml:.3f} mL",
        )
        for row in rows
    ]
    return table("Segments", columns, body, compact=True)


def _difference(highest: float, mean: float) -> str:
    return f"differs by up to {100 * highest:.1f} %, mean {100 * mean:.1f} %"
