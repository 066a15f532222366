"""Free text, cleaned: what is known to describe images stays, everything else goes (PS3.15 E.3.5).

An allow-list decides word by word: the vocabulary of series and protocol names, small numbers and their
units. A word that this data set says of a person goes, even when it is in the vocabulary. Descriptions of one
line are kept in part; longer texts stay whole or not at all: what is left of a sentence may say the opposite.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from anonymizer import rules
from anonymizer.subject import fold, words_of
from anonymizer.text import MULTI_LINE

if TYPE_CHECKING:
    from anonymizer.subject import Subject

_RUN: Final = re.compile(r"[^\W_]+(?:[.,]\d+)?")
_PARTS: Final = re.compile(r"[^\W\d_]+|\d+(?:[.,]\d+)?")
_DATE: Final = re.compile(
    r"(?<!\d)(?:\d{1,2}([-./ ])\d{1,2}\1(?:\d{4}|\d{2})|\d{4}([-./ ])\d{1,2}\2\d{1,2}"
    r"|\d{1,2}:\d{2}(?::\d{2})?)(?!\d)"
)
_YEAR: Final = re.compile(r"(?:18|19|20)\d\d")
_LONGEST_NUMBER: Final = 4
_GLUE: Final = " \t_-/,;:.()+*&|[]<>=^#!?%@'\"~"
_NEIGHBOURS_OF_NUMBERS: Final = 3


@lru_cache(maxsize=1)
def vocabulary() -> frozenset[str]:
    """Return the folded words that may stay: defined terms of PS3.16 Annex L and the package's own list."""
    own = rules.read_table("vocabulary.json")["words"]
    terms = rules.read_table("body_parts.json")["terms"]
    return frozenset(word for text in (*own, *terms) for word in words_of(text))


def clean_line(text: str, subject: Subject) -> str:
    """Return what may stay of a description of one line; empty when nothing may.

    The text is unchanged when all of it may stay. Where words are left out, one blank stands for them.
    """
    runs = list(_RUN.finditer(text))
    dates = [match.span() for match in _DATE.finditer(text)]
    kept = [
        _may_stay(run[0], subject) and not any(a < run.end() and run.start() < b for a, b in dates)
        for run in runs
    ]
    _drop_loose_numbers([run[0] for run in runs], kept)
    if all(kept) and _only_glue(_RUN.sub("", text)):
        return text.strip() if any(kept) else ""
    chosen = [run for run, stays in zip(runs, kept, strict=True) if stays]
    if not chosen:
        return ""
    out = [chosen[0][0]]
    for before, run in pairwise(chosen):
        between = text[before.end() : run.start()]
        out.append(between if len(between) <= _NEIGHBOURS_OF_NUMBERS and _only_glue(between) else " ")
        out.append(run[0])
    return "".join(out)


def may_stay_whole(text: str, subject: Subject) -> bool:
    """Tell whether a longer text holds nothing but what :func:`clean_line` keeps."""
    return clean_line(text, subject) == text.strip()


def cleaned_text(text: str, vr: str, subject: Subject) -> str | None:
    """Return what may stay of a text by its VR, None when nothing may; several values stay several."""
    if vr in MULTI_LINE:
        return text if text.strip() and may_stay_whole(text, subject) else None
    values = text.split("\\")
    lines = [clean_line(value, subject) for value in values]
    if not any(lines) or (vr == "CS" and lines != [value.strip() for value in values]):
        return None
    return "\\".join(lines)


def _only_glue(text: str) -> bool:
    return all(c in _GLUE or c in "\r\n\f" for c in text)


def _may_stay(run: str, subject: Subject) -> bool:
    folded = fold(run)
    if folded in subject.words:
        return False
    if folded in vocabulary():
        return True
    parts = _PARTS.findall(folded)
    if any(part in subject.words and not part.isdigit() for part in parts):
        return False
    short = len(parts) > 1 and max(map(len, parts)) < _LONGEST_NUMBER  # a kernel's or a level's name: B31f
    return all(
        _is_small_number(part) if part[0].isdigit() else part in vocabulary() or (short and len(part) == 1)
        for part in parts
    )


def _is_small_number(part: str) -> bool:
    whole = re.split("[.,]", part)[0]
    return len(whole) < _LONGEST_NUMBER or (len(whole) == _LONGEST_NUMBER and not _YEAR.fullmatch(whole))


def _drop_loose_numbers(runs: list[str], kept: list[bool]) -> None:
    """Drop numbers that stand among numbers: together they are a date, a telephone or another long number."""
    bare = [run.replace(".", "").replace(",", "").isdigit() for run in runs]
    start = 0
    while start < len(runs):
        end = start
        while end < len(runs) and bare[end]:
            end += 1
        if end - start >= _NEIGHBOURS_OF_NUMBERS:
            kept[start:end] = [False] * (end - start)
        start = max(end, start + 1)
