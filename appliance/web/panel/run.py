"""One run: its curves on this site's held-out cases, its rounds, its receipts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from appliance.auth.rights import Right
from appliance.federation import preflight_words
from appliance.web.panel import receipt, research, run_curves
from appliance.web.panel.federation import figure, interval
from appliance.web.panel.markup import DASH, duration, el, when
from appliance.web.panel.page import Drawing, NotThereError, Page, Query
from appliance.web.panel.parts import Column, badge, card, code, grid, nothing, page_head, stack, table, tile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from markupsafe import Markup

    from appliance.federation import views
    from appliance.web.desk import Desk, Viewer


@dataclass(frozen=True)
class RunPageView:
    """A run as this site sees it; ``run`` is None when the research zone does not answer."""

    site: str
    run: views.RunView | None
    receipts: tuple[views.ReceiptView, ...]


def load(desk: Desk, viewer: Viewer, query: Query) -> RunPageView:
    """Ask the research zone."""
    del viewer
    run_id, client = query.text("run_id"), desk.research
    found = research.ask(lambda: (client.runs(), client.receipts(limit=1000)))
    site = desk.settings.federation.site
    if found is None:
        return RunPageView(site, None, ())
    runs, receipts = found
    run = next((one for one in runs if one.run_id == run_id and one.rounds), None)
    run = run or next((one for one in runs if one.run_id == run_id), None)
    if run is None:
        raise NotThereError("run: unknown here")
    return RunPageView(site, run, tuple(one for one in receipts if one.run_id == run_id))


def draw(view: RunPageView, viewer: Viewer) -> Drawing:
    """Draw the run."""
    del viewer
    back = ("/federation", "Federation")
    if view.run is None:
        return {"head": page_head("Run", back=back), "body": research.away()}
    run = view.run
    return {
        "head": page_head(
            run.name, marks=badge(run.protocol_state), lead=f"{run.run_id} · {run.strategy}", back=back
        ),
        "tiles": _tiles(run),
        "curves": run_curves.draw(view.site, run),
        "rounds": card("Rounds", _rounds(run)),
        "receipts": card(
            "What left the building", receipt.listed(view.receipts, nothing("Nothing has left in this run."))
        ),
    }


def _tiles(run: views.RunView) -> Markup:
    done = [one for one in run.rounds if one.state == "done" and one.kind == "train"]
    seconds = sum(one.train_seconds or 0 for one in done)
    first, last = _ends(run)
    return grid(
        tile("Rounds finished", f"{run.finished_rounds} of {run.total_rounds}"),
        tile("Cases in the last round", done[-1].samples if done else DASH),
        tile(f"{figure(run)[1]}, first to last", f"{first} → {last}", note="on this site's held-out cases"),
        tile("Training here", duration(seconds), note="all rounds together"),
        class_="tiles",
    )


def _ends(run: views.RunView) -> tuple[str, str]:
    known = [found[0] for one in run.rounds if (found := interval(one.metrics, figure(run)[0]))]
    return (f"{known[0]:.3f}", f"{known[-1]:.3f}") if known else (DASH, DASH)


_KINDS: Final = {
    "finalize": " · evaluation",
    "aggregate": " · aggregation",
    "send": " · model for a peer",
}


def _rounds(run: views.RunView) -> Markup:
    columns = (
        Column("Round", "tight"),
        Column("State", "wide"),
        Column("Cases", "number"),
        Column(f"{figure(run)[1]} (95 % CI)", "tight"),
        Column("Loss", "number"),
        Column("Training", "number"),
        Column("Data set", "tight"),
        Column("Last change", "tight"),
    )
    rows = [
        (
            f"{one.number}{_KINDS.get(one.kind, '')}",
            stack(
                badge(one.state),
                _progress(one),
                el("span", one.reason, class_="reason") if one.reason else None,
            ),
            _cases(one),
            _headline(one, figure(run)[0]),
            f"{one.metrics['log_loss']:.3f}"
            if isinstance(one.metrics.get("log_loss"), int | float)
            else DASH,
            duration(one.train_seconds) if one.train_seconds is not None else DASH,
            code(one.dataset_version_id or "", length=8),
            when(one.updated_at, seconds=True),
        )
        for one in reversed(run.rounds)
    ]
    return table("Rounds", columns, rows, empty=nothing("No round has run here yet."))


def _cases(one: views.RoundView) -> Markup | str:
    """Write how many cases were trained on, and what of this site's instances was left out and why."""
    if not one.samples:
        return DASH
    skipped = preflight_words.skipped(one.cases)
    used = f"{one.cases['used']} used of {one.cases['eligible']}" if "used" in one.cases else None
    return stack(
        str(one.samples),
        el("small", used) if used else None,
        el("small", f"left out: {skipped}") if skipped else None,
    )


def _headline(one: views.RoundView, name: str) -> str:
    found = interval(one.metrics, name)
    return DASH if found is None else f"{found[0]:.3f} ({found[1]:.2f} to {found[2]:.2f})"


def _progress(one: views.RoundView) -> Markup | None:
    if one.state != "running":
        return None
    return el("span", progress_words(one.progress), class_="reason")


def progress_words(progress: Mapping[str, object]) -> str:
    """Write how far a piece of work is."""
    stage, done, total = (progress.get(key) for key in ("stage", "done", "total"))
    if isinstance(done, int) and isinstance(total, int):
        return f"{stage or 'step'}: {done} of {total}"
    return str(stage) if stage else "under way"


PAGE: Final = Page(
    path="/federation/runs/{run_id}", title="Run", right=Right.VIEW, load=load, draw=draw, menu="/federation"
)
