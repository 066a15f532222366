"""What the federation was worth: each site's own model, pooled data, everything measured at every site.

``python -m appliance.demo.baselines SPEC.json --model NAME...`` reads each research zone, with its cached
inputs, and trains with the update budget of the federation. It writes JSON lines: progress, then the result.
Models alone cross from one site to another here; data do only where ``pooled`` is true.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance import node
from appliance.datasets import select_cases
from appliance.federation import coordinator, provision
from appliance.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.datasets import Dataset
    from trainer.metrics import Metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="appliance.demo.baselines")
    parser.add_argument("spec", type=Path)
    parser.add_argument("--model", action="append", required=True, help="global, pooled or a site's name")
    arguments = parser.parse_args(argv)
    spec = json.loads(arguments.spec.read_text(encoding="utf-8"))
    _say(measure(spec, arguments.model))
    return 0


def measure(spec: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """Make models and measure each at every site.

    Parameters
    ----------
    spec : Mapping
        ``sites``: name to configuration file; ``coordinator``: its folder; ``run_id``; ``pooled``.
    wanted : sequence of str
        Models: ``global``, ``pooled``, or the name of a site for the model of its own data.

    Returns
    -------
    dict
        ``auc[model][site]``.
    """
    from trainer import baselines  # noqa: PLC0415 - torch loads here
    from trainer.local_round import use_threads  # noqa: PLC0415

    use_threads(1)
    book = coordinator.open_book(provision.load(Path(spec["coordinator"])))
    plan = book.plan(spec["run_id"])
    datasets = {name: _dataset(Path(config), plan.task) for name, config in spec["sites"].items()}
    table: dict[str, dict[str, Any]] = {}
    for done, name in enumerate(wanted):
        _say({"done": done, "total": len(wanted)})
        if name == "global":
            weights = book.checkpoint(spec["run_id"]).weights
        elif name != "pooled":
            weights = baselines.train_local(
                plan.task, datasets[name], rounds=plan.total_rounds, seed=plan.seed
            )
        elif spec["pooled"]:
            weights = baselines.train_pooled(plan.task, datasets, rounds=plan.total_rounds, seed=plan.seed)
        else:
            continue
        table |= baselines.cross_evaluate(plan.task, {name: weights}, datasets)
    return {
        "done": len(wanted),
        "total": len(wanted),
        "auc": {model: {site: _auc(m) for site, m in row.items()} for model, row in table.items()},
    }


def _dataset(config: Path, task: Any) -> Dataset:
    from trainer import datasets  # noqa: PLC0415 - pydicom loads here

    zone = node.open_research(load_settings(config))
    try:
        selection = select_cases(zone, task)
        return datasets.build(selection.cases, task, zone.root / "datasets" / "cache")
    finally:
        zone.engine.dispose()


def _auc(metrics: Metrics) -> float | None:
    return None if metrics.auc is None else metrics.auc.estimate


def _say(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
