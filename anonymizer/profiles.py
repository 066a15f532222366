"""De-identification profiles: small declarative files that choose options, rules and what is released.

A profile is TOML: ``name``, ``description``, ``extends`` (another profile's name), ``options`` (names of
:class:`~anonymizer.options.Option`), ``release`` (codes of what otherwise waits for a person), ``[pixels]``
(``detect``: likely or always; ``recompress``: lossless, as-received or native) and ``[[rules]]`` with
``attribute`` (keyword, eight hexadecimal digits, or ``GGGGxxEE`` with ``private_creator``), ``action`` and,
for ``replace``, ``value``. Its hash covers all that it resolves to and the rule tables.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydicom.datadict import dictionary_VR, tag_for_keyword

from anonymizer import options as option_names
from anonymizer.errors import ProfileError
from anonymizer.options import Option
from anonymizer.text import Charset, fits

if TYPE_CHECKING:
    from anonymizer.regions import Region

DEFAULT: Final = "research-default"
RELEASABLE: Final = frozenset(
    {"structured_report", "graphic_annotation", "secondary_capture", "burned_in_annotation"}
)
"""Codes of waiting SOP classes that a profile may release, where the option that cleans them is chosen."""
_NEEDED: Final = {
    "structured_report": Option.CLEAN_STRUCTURED,
    "graphic_annotation": Option.CLEAN_GRAPHICS,
    "secondary_capture": Option.CLEAN_PIXELS,
    "burned_in_annotation": Option.CLEAN_PIXELS,
}
ACTIONS: Final = frozenset({"keep", "remove", "empty", "clean", "replace"})
_KEYS: Final = frozenset({"name", "description", "extends", "options", "release", "rules", "pixels"})
_PIXELS: Final = {"detect": ("likely", "always"), "recompress": ("lossless", "as-received", "native")}
_RULE_KEYS: Final = frozenset({"attribute", "private_creator", "action", "value", "reason"})
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_TAG: Final = re.compile(r"\(?([0-9A-Fa-f]{4}),?([0-9A-Fa-f]{4})\)?")
_PRIVATE: Final = re.compile(r"\(?([0-9A-Fa-f]{4}),?xx([0-9A-Fa-f]{2})\)?")
_NEVER_KEPT: Final = frozenset({"PN", "SQ", "UN", "OB"})
_REPLACEABLE: Final = frozenset(
    {"AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "SH", "ST", "TM", "UC", "UT"}
)
_IDENTITY: Final = frozenset(
    tag_for_keyword(keyword)
    for keyword in (
        "PatientName", "PatientID", "IssuerOfPatientID", "OtherPatientIDs", "PatientBirthDate",
        "PatientAddress", "PatientTelephoneNumbers", "AccessionNumber", "MedicalRecordLocator", "AdmissionID",
        "PatientIdentityRemoved", "DeidentificationMethod", "LongitudinalTemporalInformationModified",
        "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "SpecificCharacterSet",
    )
)  # fmt: skip
_TABLES: Final = (
    "annex_e.json", "modules.json", "stricter.json", "sop_classes.json", "safe_private.json", "sr_codes.json",
    "vocabulary.json", "body_parts.json", "regions.json", "head.json",
)  # fmt: skip


@dataclass(frozen=True, order=True)
class AttributeRule:
    """What a profile does with one attribute, wherever it occurs.

    Attributes
    ----------
    tag : int
        The attribute; of a private one the group and the low byte of the element.
    private_creator : str
        Empty for a standard attribute.
    action : str
        One of :data:`ACTIONS`.
    value : str
        What ``replace`` writes.
    """

    tag: int
    private_creator: str
    action: str
    value: str = ""


@dataclass(frozen=True)
class Profile:
    """A resolved profile.

    ``regions`` are rows of the table of machines beside those that come with the product.
    """

    name: str
    options: frozenset[Option]
    rules: tuple[AttributeRule, ...] = ()
    release: frozenset[str] = frozenset()
    detect: str = "likely"
    recompress: str = "lossless"
    regions: tuple[Region, ...] = ()
    description: str = field(default="", compare=False)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (64 hexadecimal digits) of what the profile resolves to and of the rule tables."""
        content: dict[str, Any] = {
            "options": sorted(self.options),
            "rules": [asdict(rule) for rule in sorted(self.rules)],
            "release": sorted(self.release),
            "pixels": [self.detect, self.recompress],
            "tables": _tables_digest(),
        }
        if self.regions:
            content["regions"] = sorted(json.dumps(asdict(row), sort_keys=True) for row in self.regions)
        return sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()

    @cached_property
    def by_tag(self) -> dict[int, AttributeRule]:
        """The rules for standard attributes."""
        return {rule.tag: rule for rule in self.rules if not rule.private_creator}

    @cached_property
    def by_private(self) -> dict[tuple[int, str, int], AttributeRule]:
        """The rules for private attributes by group, creator and low byte."""
        return {
            (rule.tag >> 16, rule.private_creator, rule.tag & 0xFF): rule
            for rule in self.rules
            if rule.private_creator
        }

    def __hash__(self) -> int:
        """Hash by content, once."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.name, self.hash))


@lru_cache(maxsize=1)
def _tables_digest() -> str:
    root = files("anonymizer.tables")
    return sha256(b"".join(sha256((root / name).read_bytes()).digest() for name in _TABLES)).hexdigest()


def bundled() -> tuple[str, ...]:
    """Return the names of the profiles that come with the package."""
    folder = files("anonymizer.tables") / "profiles"
    return tuple(
        sorted(path.name.removesuffix(".toml") for path in folder.iterdir() if path.name.endswith(".toml"))
    )


@lru_cache(maxsize=64)
def load_profile(name: str | Path = DEFAULT) -> Profile:
    """Load a profile that comes with the package, or a file.

    Parameters
    ----------
    name : str or Path
        A name of :func:`bundled`, or the path of a TOML file (with a separator or the suffix ``.toml``).

    Raises
    ------
    ProfileError
        If there is no such profile, or the file is none; the message says what and where.
    """
    return _resolve(_read(name), str(name), frozenset())


def _read(name: str | Path) -> dict[str, Any]:
    text = str(name)
    if isinstance(name, Path) or "/" in text or text.endswith(".toml"):
        try:
            content = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileError(f"profile {text}: cannot be read ({type(error).__name__})") from error
    elif text in bundled():
        content = (files("anonymizer.tables") / "profiles" / f"{text}.toml").read_text(encoding="utf-8")
    else:
        raise ProfileError(
            f"profile {text!r}: does not exist; expected a file or one of {', '.join(bundled())}"
        )
    try:
        return tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"profile {text}: not TOML: {error}") from error


def _resolve(content: dict[str, Any], where: str, below: frozenset[str]) -> Profile:
    unknown = content.keys() - _KEYS
    if unknown:
        raise ProfileError(f"profile {where}: unknown key {', '.join(sorted(unknown))}")
    name = content.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ProfileError(f"profile {where}: name: expected 1 to 32 of a-z 0-9 . _ -")
    if name in below:
        raise ProfileError(f"profile {where}: extends itself")
    base = _base(content.get("extends"), where, below | {name})
    chosen = _strings(content, "options", where)
    try:
        options = option_names.options_of(chosen if "options" in content else base.options)
    except ProfileError as error:
        raise ProfileError(f"profile {where}: {error}") from None
    release = frozenset(_strings(content, "release", where)) if "release" in content else base.release
    for code in sorted(release):
        if code not in RELEASABLE:
            raise ProfileError(
                f"profile {where}: release: {code!r} is none of {', '.join(sorted(RELEASABLE))}"
            )
        if _NEEDED[code] not in options:
            raise ProfileError(f"profile {where}: release: {code!r} needs the option {_NEEDED[code]}")
    own = [
        _rule(row, f"profile {where}: rule {number}") for number, row in enumerate(_rows(content, where), 1)
    ]
    keys = [(rule.tag, rule.private_creator) for rule in own]
    if len(set(keys)) < len(keys):
        raise ProfileError(f"profile {where}: two rules for one attribute")
    inherited = [rule for rule in base.rules if (rule.tag, rule.private_creator) not in set(keys)]
    chosen_pixels = _pixels(content.get("pixels", {}), base, where)
    return Profile(
        name,
        options,
        tuple(sorted([*inherited, *own])),
        release,
        chosen_pixels["detect"],
        chosen_pixels["recompress"],
        description=str(content.get("description", "")),
    )


def _pixels(table: object, base: Profile, where: str) -> dict[str, str]:
    """Return which instances are searched for text, and how masked ones are compressed."""
    if not isinstance(table, dict) or table.keys() - _PIXELS.keys():
        raise ProfileError(f"profile {where}: pixels: expected {' and '.join(_PIXELS)}")
    found: dict[str, str] = {}
    for key, allowed in _PIXELS.items():
        value = table.get(key, getattr(base, key))
        if value not in allowed:
            raise ProfileError(f"profile {where}: pixels.{key}: expected one of {', '.join(allowed)}")
        found[key] = value
    return found


def _base(name: object, where: str, below: frozenset[str]) -> Profile:
    if name is None:
        return Profile("", frozenset())
    if not isinstance(name, str):
        raise ProfileError(f"profile {where}: extends: expected a profile's name")
    return _resolve(_read(name), name, below)


def _strings(content: dict[str, Any], key: str, where: str) -> list[str]:
    value = content.get(key, [])
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise ProfileError(f"profile {where}: {key}: expected a list of names")
    return value


def _rows(content: dict[str, Any], where: str) -> list[dict[str, Any]]:
    rows = content.get("rules", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ProfileError(f"profile {where}: rules: expected tables [[rules]]")
    return rows


def _rule(row: dict[str, Any], where: str) -> AttributeRule:
    if row.keys() - _RULE_KEYS or not all(isinstance(value, str) for value in row.values()):
        raise ProfileError(f"{where}: expected texts {', '.join(sorted(_RULE_KEYS))}")
    action, creator = row.get("action", ""), row.get("private_creator", "").strip()
    if action not in ACTIONS:
        raise ProfileError(f"{where}: action: expected one of {', '.join(sorted(ACTIONS))}")
    if (action == "replace") != ("value" in row):
        raise ProfileError(f"{where}: value: expected with the action replace, and only there")
    if creator:
        if action not in {"keep", "clean", "remove"}:
            raise ProfileError(f"{where}: action: expected keep, clean or remove for a private attribute")
        return AttributeRule(_private_tag(row.get("attribute", ""), where), creator, action)
    tag = _standard_tag(row.get("attribute", ""), where)
    if tag in _IDENTITY:
        raise ProfileError(f"{where}: attribute: is written by the engine itself; no rule can change it")
    if action in {"keep", "replace"} and _vr(tag) in _NEVER_KEPT:
        raise ProfileError(f"{where}: action: {action} is not possible for VR {_vr(tag)}")
    value = row.get("value", "")
    if action == "replace" and not (
        value.isascii() and value and _vr(tag) in _REPLACEABLE and fits(_vr(tag), value.encode(), Charset(()))
    ):
        raise ProfileError(f"{where}: value: expected an ASCII text that VR {_vr(tag)} allows")
    return AttributeRule(tag, "", action, value)


def _standard_tag(attribute: str, where: str) -> int:
    match = _TAG.fullmatch(attribute)
    tag = int(match[1] + match[2], 16) if match else tag_for_keyword(attribute)
    if tag is None or tag >> 16 & 1 or tag >> 16 <= 0x0007 or not _vr(tag):
        raise ProfileError(f"{where}: attribute: expected a keyword or tag of PS3.6")
    return tag


def _private_tag(attribute: str, where: str) -> int:
    match = _PRIVATE.fullmatch(attribute)
    if match is None or int(match[1], 16) % 2 == 0:
        raise ProfileError(f"{where}: attribute: expected GGGGxxEE with an odd group for a private attribute")
    return int(match[1], 16) << 16 | int(match[2], 16)


def _vr(tag: int) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return ""
