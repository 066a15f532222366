"""A preflight's report in words, for the panel and the command line."""

from __future__ import annotations

from typing import Any, Final

WARNINGS: Final = {
    "cohort_too_small": "fewer subjects than are needed here",
    "nothing_to_train_on": "no usable training case",
    "one_class_to_train_on": "all training cases have the same label",
    "few_of_one_class": "few training cases of one label",
    "held_out_cannot_be_measured": "the held-out part lacks one label, so no AUC can be measured",
    "subjects_on_both_sides": "subjects are in training and held out",
    "pictures_on_both_sides": "the same pictures are in training and held out",
    "nothing_marked_in_held_out": "nothing is marked in the held-out part, so no Dice can be measured",
    "few_healthy_to_train_on": "few healthy training cases",
    "nothing_healthy_in_held_out": "no held-out case is healthy: no threshold, no Dice, no model package",
    "segment_missing": "a segment of the task is in no training case",
    "few_cases_of_a_segment": "few training cases of a segment",
    "pictures_of_other_subjects_repeat": "pictures of different subjects are the same",
    "hours_do_not_suffice": "the plan's hours do not suffice for its rounds here",
    "rounds_too_slow": "a round takes longer here than the plan waits",
}


def rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return title and text of each part of a report."""
    is_masked = "segments" in report or "healthy" in report
    found = [
        ("Instances", _instances(report)),
        ("Training", _part(report["train"], is_masked)),
        ("Held out", _part(report["held_out"], is_masked)),
        ("Repeats", _repeats(report["repeats"])),
        ("Missing", _missing(report["missing"])),
        ("Cohort", f"at least {report['minimum_cohort']} subjects are needed"),
    ]
    if "segments" in report:
        found.insert(3, ("Segments", _segments(report["segments"])))
    return found if report["timing"] is None else [*found, ("Time", _time(report))]


def warnings(report: dict[str, Any]) -> list[str]:
    """Return what a person should know before approving."""
    return [WARNINGS.get(code, code) for code in report["warnings"]]


def skipped(cases: dict[str, Any]) -> str:
    """Write which instances were left out and why; empty when none was."""
    reasons = sorted((cases.get("skipped") or {}).items())
    return ", ".join(f"{number} {reason.replace('_', ' ').replace('.', ' ')}" for reason, number in reasons)


def _instances(report: dict[str, Any]) -> str:
    return f"{report['used']} used of {report['eligible']} eligible; left out: {skipped(report) or 'none'}"


def _part(part: dict[str, int], is_masked: bool) -> str:
    cases = f"{part['cases']} cases of {part['subjects']} subjects"
    if is_masked:
        return f"{cases}: {part['positive']} with something marked, {part['negative']} with nothing"
    share = "" if not part["cases"] else f" ({100 * part['positive'] / part['cases']:.0f} % yes)"
    return f"{cases}: {part['positive']} yes, {part['negative']} no{share}"


def _repeats(found: dict[str, int]) -> str:
    return (
        f"{found['identical']} identical and {found['similar']} similar among {found['compared']} pictures; "
        f"{found['of_other_subjects']} with another subject's, {found['across_split']} across the split"
    )


def _segments(found: dict[str, int]) -> str:
    return ", ".join(f"{code} in {count}" for code, count in found.items()) + " training cases"


def _missing(found: dict[str, int]) -> str:
    if "subjects_with_masks" in found:
        return f"{found['subjects_with_masks']} subjects with masks; all others are taken to be healthy"
    if "pictures_without_masks" in found:
        without, alone = found["pictures_without_masks"], found["masks_without_pictures"]
        return f"{without} subjects with pictures and no mask, {alone} with masks alone"
    without, other = found["labelled_without_pictures"], found["labelled_of_other_modality"]
    return f"{without} labelled subjects without a picture, {other} with other modalities alone"


def _time(report: dict[str, Any]) -> str:
    timing = report["timing"]
    limit = (
        "the plan sets no limit"
        if report["max_hours"] is None
        else f"the plan allows {report['max_hours']:g}"
    )
    return (
        f"{timing['round_seconds']:.1f} s for a round, {timing['run_hours']:.2f} hours for "
        f"{report['total_rounds']} rounds ({limit}; measured on {timing['measured_steps']} steps)"
    )
