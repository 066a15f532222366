"""``python -m appliance.federation.initial TARGET [EARLIER]``: the first model of the plan on standard input.

``EARLIER`` is the file of the model that the plan names by hash.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from trainer.errors import TrainerError, WeightsError
from trainer.federation.plan import Plan
from trainer.weights_io import load, save, sha256


def main() -> int:
    """Write the model; 1 when the plan's network cannot be built."""
    gc.disable()  # this process ends before there is anything to collect
    try:
        plan = Plan.loads(sys.stdin.read())
        from trainer.first_model import first_model  # noqa: PLC0415 - torch, only for a readable plan

        earlier = None
        if plan.initial_sha256:
            path = Path(sys.argv[2])
            if sha256(path) != plan.initial_sha256:
                raise WeightsError("initial_sha256: the stored model differs from this hash")
            earlier = load(path)
        save(Path(sys.argv[1]), first_model(plan.task, plan.strategy.name, plan.seed, earlier))
    except TrainerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
