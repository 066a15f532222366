"""The independent check's place in the engine: what it may find, and what happens when it finds more."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from anonymizer import keep_list, verify
from anonymizer.errors import StopError
from anonymizer.identity import identity_elements
from anonymizer.options import Option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anonymizer.elements import Bytes, Item
    from anonymizer.engine import Context
    from anonymizer.profiles import Profile


def refuse_residue(original: Bytes, output: Bytes, pseudonym: str, context: Context) -> None:
    """Stop an output that holds what its original says of the patient.

    Raises
    ------
    StopError
        Code ``residual_identifier``, with places and kinds; ``not_verified`` when the check cannot follow.
    """
    constant = _allowed(context.profile)
    allowed = verify.Allowed(constant.tags, constant.written | {pseudonym}, constant.uids, constant.dates)
    try:
        found = verify.check(original, output, allowed, context.max_inflated_bytes, context.also)
    except verify.VerificationError as error:
        raise StopError("not_verified", f"the output could not be checked: {error}") from error
    found = [finding for finding in found if finding.where not in context.verdict.standing]
    if found:
        places = ", ".join(f"{finding.where} ({finding.kind})" for finding in found)
        raise StopError("residual_identifier", f"what identifies in the original is still in {places}")


@lru_cache(maxsize=16)
def _allowed(profile: Profile) -> verify.Allowed:
    return verify.Allowed(
        keep_list.let_through(profile),
        frozenset(_texts(identity_elements("", profile))),
        uids=Option.UIDS in profile.options,
        dates=Option.FULL_DATES in profile.options,
    )


def _texts(item: Item) -> Iterator[str]:
    for element in item.values():
        if isinstance(element.value, tuple):
            for nested in element.value:
                yield from _texts(nested)
        elif isinstance(element.value, bytes):
            yield from (part.strip(" \0") for part in element.value.decode("ascii").split("\\"))
