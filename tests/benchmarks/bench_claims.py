"""What papers claim of their strategies, each where its paper says that it works: ``cloister bench claims``.

``python -m tests.benchmarks.bench_claims docs/federation/claims.md convex,sizes`` measures these parts,
writes their sections of the page and leaves the others as they stand. Whoever is compared is tuned over a
grid, what has to be beaten as well; the figures come from other seeds.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Final

from tests.benchmarks.bench_strategies import interval
from tests.benchmarks.claim_parts import PARTS
from trainer.local_round import use_threads

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.benchmarks.trials import Claim, Part

Order = tuple[str, str, str, int, int]  # part, title, entrant, seed, trial
Chosen = dict[tuple[str, str], int]
Found = dict[Order, float]


def run(parts: str = ",".join(PARTS), workers: int = 2) -> dict[str, Any]:
    """Measure parts; ``parts[name]["claims"][title][entrant]`` has figures by seed and paired differences."""
    unknown = set(parts.split(",")) - PARTS.keys()
    if unknown:
        raise ValueError(f"no part {min(unknown)!r}; expected some of {', '.join(PARTS)}")
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return {"parts": {name: _part(name, pool, workers) for name in parts.split(",")}}


def _part(name: str, pool: ProcessPoolExecutor, workers: int) -> dict[str, Any]:
    started = time.monotonic()
    tuned = tuning_orders(name)
    chosen = choose(dict(zip(tuned, pool.map(measure, tuned), strict=True)))
    orders = final_orders(name, chosen)
    found = dict(zip(orders, pool.map(measure, orders), strict=True))
    minutes = round((time.monotonic() - started) / 60, 1)
    return {"minutes": minutes, "workers": workers, "claims": summary(name, found, chosen)}


def tuning_orders(name: str) -> list[Order]:
    """Return every entrant's grid on every seed of tuning, one trial an order; a single one needs none."""
    part = PARTS[name]
    return [
        (name, claim.title, entrant, seed, position)
        for claim in part.claims
        for seed in part.tuning
        for entrant, trials in claim.entrants.items()
        for position in range(len(trials))
        if len(trials) > 1
    ]


def choose(found: Mapping[Order, float]) -> Chosen:
    """Return each entrant's best trial by its mean over the seeds of tuning; the first of equals."""
    scores: dict[tuple[str, str], dict[int, list[float]]] = {}
    for (name, title, entrant, _, position), score in found.items():
        better = -score if _claim(name, title).less else score
        scores.setdefault((title, entrant), {}).setdefault(position, []).append(better)
    return {key: max(by_trial, key=lambda one: mean(by_trial[one])) for key, by_trial in scores.items()}


def final_orders(name: str, chosen: Chosen) -> list[Order]:
    """Return each entrant's chosen trial on every seed of the figures, seed by seed."""
    return [
        (name, claim.title, entrant, seed, chosen.get((claim.title, entrant), 0))
        for claim in PARTS[name].claims
        for seed in PARTS[name].seeds
        for entrant in claim.entrants
    ]


def measure(order: Order) -> float:
    """Return the figure of a trial on a seed."""
    use_threads(1)
    name, title, entrant, seed, trial = order
    claim = _claim(name, title)
    return claim.measure(seed, claim.entrants[entrant][trial])


def _claim(name: str, title: str) -> Claim:
    [claim] = [one for one in PARTS[name].claims if one.title == title]
    return claim


def summary(name: str, found: Found, chosen: Chosen) -> dict[str, dict[str, dict[str, Any]]]:
    """Return figures by claim and entrant, beside the claim's first."""
    return {claim.title: _rows(claim, found, chosen) for claim in PARTS[name].claims}


def _rows(claim: Claim, found: Found, chosen: Chosen) -> dict[str, dict[str, Any]]:
    values = {entrant: _by_seed(found, claim.title, entrant) for entrant in claim.entrants}
    first = next(iter(values.values()))
    return {
        entrant: {
            "values": list(by_seed.values()),
            "trial": claim.entrants[entrant][chosen.get((claim.title, entrant), 0)].told(),
            "tried": len(claim.entrants[entrant]),
            "beside": interval([value - first[seed] for seed, value in by_seed.items()]),
        }
        for entrant, by_seed in values.items()
    }


def _by_seed(found: Found, title: str, entrant: str) -> dict[int, float]:
    return {seed: value for (_, of, who, seed, _), value in found.items() if (of, who) == (title, entrant)}


def page(before: str, figures: Mapping[str, Any]) -> str:
    """Return the page with these parts written anew; others stay as they stand in it."""
    standing = {section.partition("\n")[0]: section for section in before.split("\n## ")[1:]}
    sections = {
        part.title: section(name, figures["parts"][name])
        if name in figures["parts"]
        else standing.get(part.title, "")
        for name, part in PARTS.items()
    }
    return "\n## ".join([_HEAD, *(one.rstrip() + "\n" for one in sections.values() if one)])


def section(name: str, figures: Mapping[str, Any]) -> str:
    """Return a part's section of the page, without the marks of its heading."""
    part = PARTS[name]
    lines = [part.title, "", part.about, "", *_how(name, part, figures), ""]
    for claim in part.claims:
        lines += [f"### {claim.title}", "", claim.about, ""]
        lines += [f"| | chosen | {claim.figure} | difference to the first | |", "| - " * 5 + "|"]
        rows = figures["claims"][claim.title].items()
        lines += [_row(claim, position, entrant, row) for position, (entrant, row) in enumerate(rows)]
        lines.append("")
    return "\n".join(lines)


def _how(name: str, part: Part, figures: Mapping[str, Any]) -> Iterable[str]:
    seeds, tuning = part.seeds, part.tuning
    yield f"Means over {len(seeds)} seeds ({seeds[0]} to {seeds[-1]}); parameters are the best of as many as"
    yield f"the table says, where it says so, by the mean over {len(tuning)} others"
    yield f"({tuning[0]} to {tuning[-1]})."
    yield ""
    yield "```sh"
    command = f"python -m tests.benchmarks.bench_claims docs/federation/claims.md {name}"
    yield f"{command}  # {figures['minutes']} minutes, {figures['workers']} processes"
    yield f"cloister bench claims --parts {name} --json figures.json  # the same figures, of every seed"
    yield "```"


def _row(claim: Claim, position: int, entrant: str, row: Mapping[str, Any]) -> str:
    chosen = f"{row['trial']} (of {row['tried']})" if row["tried"] > 1 else row["trial"]
    start = f"| {entrant} | {chosen} | {mean(row['values']):.3f} |"
    if position == 0:
        return f"{start} | |"
    beside = row["beside"]
    difference = f"{beside['mean']:+.3f} [{beside['low']:+.3f}, {beside['high']:+.3f}]"
    return f"{start} {difference} | {verdict(claim, beside)} |"


def verdict(claim: Claim, beside: Mapping[str, float]) -> str:
    """Say what a difference shows, where its interval leaves zero out."""
    if beside["low"] <= 0 <= beside["high"]:
        return "no difference shown"
    return "better" if (beside["mean"] < 0) == claim.less else "worse"


_HEAD: Final = """# What papers claim of their strategies

Each strategy beside what it has to beat, where its paper says that it works. Seeds
draw the cases, the initial model and the order of training; differences are paired by seed, with 95 %
intervals (Student's t), one comparison at a time, without correction for their number. Whoever is compared is
tuned over a grid, what has to be beaten as well, on seeds that no figure comes from.
Data are small and training is short: directions, not what a hospital can expect.
"""


if __name__ == "__main__":
    written, asked = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ",".join(PARTS)
    figures = run(asked)
    written.write_text(page(written.read_text(encoding="utf-8"), figures), encoding="utf-8")
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
