"""Parts of a protocol on the Federation page: what is new in its plan, its bounds, its preflight."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from appliance.federation import preflight_words as words
from appliance.federation.views import BETWEEN_PEERS
from appliance.web.panel.markup import count, el, join, when
from appliance.web.panel.parts import Column, badge, button, code, facts, nothing, notice, table

if TYPE_CHECKING:
    from markupsafe import Markup

    from appliance.federation import views


_RULES: Final = {"same_run": "of the same run", "same_task": "of the same task"}
_GRADES: Final = {
    "asks_more": ("warn", "asks more"),
    "other": ("idle", "changed"),
    "asks_less": ("ok", "asks less"),
}


def preflight(row: views.ProtocolView, *, can_ask: bool) -> Markup:
    """Draw the newest preflight, or that there is none yet, with the button that asks for one."""
    found = row.preflight
    waits = found is not None and found.state not in {"done", "dead"}
    again = "Preflight" if found is None else "Preflight again"
    ask = button("preflight", again, described=row.name, id=row.id) if can_ask and not waits else None
    if found is None:
        yet = el(
            "span", "No preflight yet: it looks at the local cohort and measures the time.", class_="muted"
        )
        return el("div", el("div", yet, ask, class_="head"), class_="preflight")
    state = badge(found.state, text=None if found.state != "done" else "preflight done")
    head = el("div", el("h4", "Preflight"), state, when(found.made_at or found.asked_at), ask, class_="head")
    if not found.report:
        progress = str(found.progress.get("stage", "")) if waits else ""
        return el("div", head, el("p", found.reason or progress, class_="muted"), class_="preflight")
    said = words.warnings(found.report)
    warned = (
        notice("warn", join(el("div", f"{text[0].upper()}{text[1:]}.") for text in said)) if said else None
    )
    return el("div", head, warned, facts(list(words.rows(found.report))), class_="preflight")


def comparison(row: views.ProtocolView) -> Markup | None:
    """Draw what is new against the last plan that was approved here, worst first."""
    found = row.comparison
    if found is None:
        return None
    against = join(
        (f"Against {found.name}, approved here ", when(found.approved_at), f", {_RULES[found.rule]}, plan "),
    )
    lead = el("p", against, code(found.plan_sha256), class_="muted")
    columns = (
        Column("Change", "tight"),
        Column("What", "wide"),
        Column("Then", "wide"),
        Column("Now", "wide"),
    )
    rows = [
        (
            badge("", tone=_GRADES[one.grade][0], text=_GRADES[one.grade][1]),
            one.words,
            _value(one.old),
            _value(one.new),
        )
        for one in found.differences
    ]
    same = nothing("Nothing differs.", "")
    return el("div", lead, table("What is new in this plan", columns, rows, empty=same), class_="comparison")


def _value(value: object) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def bounds(row: views.ProtocolView) -> str:
    """Write the bounds of a site's update."""
    samples = count(row.max_samples_per_site, "sample")
    return f"a site's update has a norm of at most {row.max_update_norm:g} and counts as at most {samples}"


def strategy(row: views.ProtocolView) -> str:
    """Write the strategy with its parameters."""
    given = row.plan.get("strategy", {}).get("parameters", {})
    said = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in sorted(given.items()))
    return f"{row.strategy} ({said})" if said else row.strategy


def readers(row: views.ProtocolView) -> str:
    """Write who can read what leaves: the sites that the plan names, or the coordinator, too."""
    if row.strategy in BETWEEN_PEERS:
        return "this site's own model: the peers that it goes to read it, and the coordinator on its way"
    encryption = row.plan.get("encryption")
    if not isinstance(encryption, dict):
        return "not encrypted: the coordinator reads them"
    return f"encrypted: only {', '.join(sorted(encryption.get('recipients', {})))} can read them"


def hours(row: views.ProtocolView) -> str:
    """Write how long this site has computed for the run, of how much."""
    limit = "no limit in the plan" if row.max_hours is None else f"of at most {row.max_hours:g}"
    return f"{row.hours:.2f} hours, {limit}"
