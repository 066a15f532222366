"""``python -m appliance.federation.initial TARGET``: the initial model of the plan on standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from trainer import strategies
from trainer.errors import TrainerError
from trainer.federation.plan import Plan
from trainer.weights_io import save


def main() -> int:
    """Write the model; 1 when the plan's network cannot be built."""
    try:
        plan = Plan.loads(sys.stdin.read())
        from trainer.networks import initial_weights  # noqa: PLC0415 - torch, only for a readable plan

        chosen = strategies.get(plan.strategy.name)
        save(Path(sys.argv[1]), chosen.prepared(initial_weights(plan.task, plan.seed)))
    except TrainerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
