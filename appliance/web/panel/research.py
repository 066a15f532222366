"""Asking the research zone: what happens when nobody answers, and what a person reads then."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from appliance.research_client import ResearchRefusedError, ResearchUnavailableError
from appliance.web.panel.markup import el
from appliance.web.panel.page import ActionRefusedError, NotThereError
from appliance.web.panel.parts import notice

if TYPE_CHECKING:
    from collections.abc import Callable

    from markupsafe import Markup

T = TypeVar("T")


def ask(question: Callable[[], T]) -> T | None:
    """Return the zone's answer; None when nobody answers now."""
    try:
        return question()
    except ResearchUnavailableError:
        return None
    except ResearchRefusedError as error:
        raise NotThereError(str(error)) from error


def act(deed: Callable[[], T]) -> T:
    """Do something in the zone.

    Raises
    ------
    ActionRefusedError
        If the zone refuses, or does not answer.
    """
    try:
        return deed()
    except ResearchUnavailableError as error:
        raise ActionRefusedError("The research zone does not answer now; try again in a moment.") from error
    except ResearchRefusedError as error:
        raise ActionRefusedError(f"Refused: {error}.") from error


def away() -> Markup:
    """Draw what stands where the zone does not answer."""
    return notice(
        "warn",
        el("b", "The research zone does not answer. "),
        "Its process research agent is starting or has stopped; this page shows it again by itself.",
    )
