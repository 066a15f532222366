"""The form of a peer: identity, what it sends to us, what we send to it, TLS, schedule."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from appliance import schedules
from appliance.web.panel.markup import el
from appliance.web.panel.parts import FIELD, badge, card, check_field, select_field, text_field

if TYPE_CHECKING:
    from collections.abc import Mapping

    from markupsafe import Markup

USES: Final = (
    ("may_send", "send studies to this node"),
    ("may_query", "query and retrieve what this node holds"),
    ("is_destination", "receive results from this node"),
    ("is_archive", "be queried and fetched from"),
)
_SYNTAXES: Final = (
    ("", "as stored"),
    ("1.2.840.10008.1.2.1", "Explicit VR Little Endian"),
    ("1.2.840.10008.1.2", "Implicit VR Little Endian"),
    ("1.2.840.10008.1.2.5", "RLE Lossless"),
    ("1.2.840.10008.1.2.4.70", "JPEG Lossless"),
    ("1.2.840.10008.1.2.4.80", "JPEG-LS Lossless"),
    ("1.2.840.10008.1.2.4.90", "JPEG 2000 Lossless"),
)
_DAYS: Final[Mapping[str, str]] = MappingProxyType(
    dict(zip(schedules.DAYS, ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"), strict=True))
)
_CHECKS: Final = (
    "may_send",
    "may_query",
    "is_destination",
    "is_archive",
    "tls",
    "commitment",
    "watch_silence",
)
_TEXTS: Final = (
    "name",
    "ae_title",
    "host",
    "protocol",
    "url",
    "credential",
    "certificate_sha256",
    "transfer_syntax_uid",
)
_NUMBERS: Final = ("port", "max_associations", "max_instances_per_minute", "max_kib_per_s")
_SECONDS: Final = ("quiet_period_s", "max_wait_s")


def draw(peer_id: str, values: Mapping[str, Any], *, secret_stored: bool) -> Markup:
    """Draw the form with what is stored."""
    save = el("button", "Save", type="submit", class_="button primary")
    return el(
        "form",
        el("input", type="hidden", name=f"{FIELD}id", value=peer_id),
        el(
            "div",
            el("div", _identity(values), _tls(values), class_="column"),
            el("div", _from_it(values), _schedule(values["schedule"]), class_="column"),
            _to_it(values, secret_stored=secret_stored),
            class_="grid three",
        ),
        el("div", save, class_="buttons save"),
        data_action="change",
        class_="peer-form",
        id=f"peer-form-{peer_id}",
    )


def _identity(values: Mapping[str, Any]) -> Markup:
    return card(
        "Identity",
        _text(values, "name", "Name", maxlength=64),
        _text(values, "ae_title", "AE title", maxlength=16, required=False),
        el(
            "div",
            _text(
                values,
                "host",
                "Address",
                required=False,
                maxlength=255,
                hint="For a sender also 10.1.2.0/24.",
            ),
            _number(values, "port", "Port", hint="If we call it."),
            class_="two",
        ),
        class_="fields",
    )


def _tls(values: Mapping[str, Any]) -> Markup:
    return card(
        "TLS",
        check_field(
            "tls",
            "TLS alone, in both directions",
            checked=values["tls"],
            hint="It is turned away without, and never called without.",
        ),
        _text(
            values,
            "certificate_sha256",
            "SHA-256 of its certificate",
            required=False,
            maxlength=120,
            hint="If given, it must show this certificate and no other.",
        ),
        class_="fields",
    )


def _from_it(values: Mapping[str, Any]) -> Markup:
    bound = "0: no bound of its own."
    return card(
        "It calls us",
        check_field("may_send", "May send studies", checked=values["may_send"]),
        check_field("may_query", "May query and retrieve", checked=values["may_query"]),
        check_field(
            "watch_silence",
            "Alarm when it falls silent",
            checked=values["watch_silence"],
            hint="Learned from when it sends usually.",
        ),
        _number(values, "max_associations", "Associations at once", hint=bound),
        _number(values, "max_instances_per_minute", "Instances a minute", hint=bound),
        el(
            "div",
            _number(values, "quiet_period_s", "Quiet period (s)", hint="Empty: the node's."),
            _number(values, "max_wait_s", "Longest wait (s)", hint="Empty: the node's."),
            class_="halves",
        ),
        class_="fields",
    )


def _to_it(values: Mapping[str, Any], *, secret_stored: bool) -> Markup:
    protocols = (("dimse", "DIMSE (C-STORE)"), ("dicomweb", "DICOMweb"))
    current = values["transfer_syntax_uid"]
    syntaxes = _SYNTAXES if current in dict(_SYNTAXES) else (*_SYNTAXES, (current, current))
    mark = badge("well", text="stored") if secret_stored else badge("open", text="not stored yet")
    return card(
        "We call it",
        check_field("is_destination", "Receives results", checked=values["is_destination"]),
        check_field("is_archive", "Archive: we query it and fetch from it", checked=values["is_archive"]),
        check_field(
            "commitment",
            "Ask for Storage Commitment",
            checked=values["commitment"],
            hint="A result counts as delivered when it commits.",
        ),
        select_field("protocol", "Protocol", protocols, str(values["protocol"])),
        _text(
            values,
            "url",
            "DICOMweb URL",
            required=False,
            maxlength=255,
            hint="Such as https://pacs.example/dicom-web.",
        ),
        _text(
            values,
            "credential",
            "Name of its secret",
            required=False,
            maxlength=64,
            hint="Once it is saved, the secret itself is stored with the button above.",
        ),
        el("div", mark) if values["credential"] else None,
        select_field("transfer_syntax_uid", "Sent", syntaxes, current),
        _number(values, "max_kib_per_s", "KiB a second", hint="0: no bound."),
        class_="fields",
    )


def _schedule(schedule: Mapping[str, Any]) -> Markup:
    chosen = schedule.get("days") or schedules.DAYS
    return card(
        "When we send to it",
        el(
            "div",
            (check_field("days", text, checked=day in chosen, value=day) for day, text in _DAYS.items()),
            class_="days",
        ),
        el(
            "div",
            text_field("from", "From", kind="time", value=schedule.get("from", ""), required=False),
            text_field("to", "Until", kind="time", value=schedule.get("to", ""), required=False),
            class_="halves",
        ),
        el("small", "No times: all day. Over midnight counts to the day it begins on.", class_="muted"),
        class_="fields",
    )


def _text(values: Mapping[str, Any], name: str, label: str, **more: Any) -> Markup:
    return text_field(name, label, value=str(values[name] or ""), **more)


def _number(values: Mapping[str, Any], name: str, label: str, hint: str) -> Markup:
    value = values[name]
    text = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text_field(name, label, kind="number", value=text, required=False, hint=hint, min=0)


def changes_of(fields: Mapping[str, str]) -> dict[str, Any]:
    """Read the whole form: a mark that is absent is not set.

    Raises
    ------
    ValueError
        Naming a field that is no number or no schedule.
    """
    changes: dict[str, Any] = {name: fields.get(name, "") for name in _TEXTS}
    changes |= {name: name in fields for name in _CHECKS}
    changes |= {name: whole(name, fields.get(name, "")) for name in _NUMBERS}
    changes |= {name: _seconds(name, fields.get(name, "")) for name in _SECONDS}
    days = fields.get("days", "").split(",")
    if not fields.get("days"):
        raise ValueError("schedule: expected at least one day")
    try:
        changes["schedule"] = schedules.make(days, fields.get("from", ""), fields.get("to", ""))
    except ValueError as error:
        raise ValueError(f"schedule: {error}") from error
    return changes


def whole(name: str, text: str) -> int:
    """Read a whole number; empty is 0."""
    text = text.strip()
    if text and not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ValueError(f"{name}: expected a whole number")
    return int(text or 0)


def _seconds(name: str, text: str) -> float | None:
    text = text.strip()
    if not text:
        return None
    if not (text.isascii() and text.replace(".", "", 1).isdecimal() and len(text) < 12):
        raise ValueError(f"{name}: expected seconds, or nothing")
    return float(text)
