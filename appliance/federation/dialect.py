"""Which Cloister is at the other end: both sides say what they speak, and refuse what they cannot.

The protocol's number goes up with every change of orders, answers, statements, blocks or the form in which
arrays travel that the other side has to know of; a new field of a plan needs none, since a site that does not
know it says so.

1. Arrays travel as the engine's archives.
2. Arrays travel as one stream (:mod:`appliance.federation.arraystream`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from appliance.federation.errors import EnrolmentError, FederationError

if TYPE_CHECKING:
    from collections.abc import Mapping

PROTOCOL: Final = 2
OLDEST: Final = 2  # with which this version still works
OTHER_VERSION: Final = "other_version"
_MAX_NUMBER: Final = 1_000_000
_MAX_TEXT: Final = 40


class DialectError(FederationError):
    """What the other side says of its version is none."""


@dataclass(frozen=True)
class Dialect:
    """What one side speaks: its release, its protocol, and the oldest protocol that it works with.

    All are empty for a release that said nothing of it.
    """

    cloister: str = ""
    protocol: int = 0
    oldest: int = 0

    def __str__(self) -> str:
        """Return it for people."""
        if not self.cloister:
            return "an earlier Cloister, which does not say its version"
        return f"Cloister {self.cloister} (protocol {self.protocol})"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@cache
def own() -> Dialect:
    """Return what this program speaks."""
    return Dialect(version("cloister"), PROTOCOL, OLDEST)


def read(value: object) -> Dialect:
    """Read what the other side says; an empty object is a release that said nothing.

    Raises
    ------
    DialectError
        If it is neither.
    """
    if value == {}:
        return Dialect()
    if not isinstance(value, dict) or not {"cloister", "protocol", "oldest"} <= set(value):
        raise DialectError("version: expected cloister, protocol and oldest")
    text, numbers = value["cloister"], (value["protocol"], value["oldest"])
    if not isinstance(text, str) or not 0 < len(text) <= _MAX_TEXT or not text.isprintable():
        raise DialectError("version: cloister: expected a short text")
    if not all(type(one) is int and 0 <= one <= _MAX_NUMBER for one in numbers):
        raise DialectError("version: protocol, oldest: expected whole numbers")
    return Dialect(text, *numbers)


def mismatch(there: Dialect, here_name: str, there_name: str) -> str:
    """Return why this side cannot work with the other one, with both versions; empty when it can.

    Parameters
    ----------
    here_name, there_name : str
        What people call the sides: "this site", "the coordinator".
    """
    here = own()
    if there.protocol >= here.oldest and here.protocol >= there.oldest:
        return ""
    older = here_name if here.protocol < there.oldest else there_name
    return f"{here_name} runs {here}, {there_name} {there}: update Cloister at {older}"


def check_coordinator(answer: Mapping[str, Any]) -> None:
    """Raise EnrolmentError where a coordinator's answer is of a version with which this site cannot work."""
    try:
        wrong = mismatch(read(answer.get("speaks", {})), "this site", "the coordinator")
    except DialectError as error:
        raise EnrolmentError(f"the coordinator's answer: {error}") from error
    if wrong:
        raise EnrolmentError(wrong)


def beside(told_by: str) -> str:
    """Return what a refusal of an unknown thing adds where the coordinator's release is another one."""
    if told_by in {"", str(own())}:
        return ""
    return f"; this site runs {own()}, the coordinator {told_by[:80]}: update the older one"
