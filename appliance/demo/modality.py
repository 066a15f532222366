"""A hospital's X-ray room: draws its studies, as another process.

``python -m appliance.demo.modality FOLDER --hospital INDEX --seed N`` writes a JSON line after each study and
``cohort.json`` at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.demo.cohorts import draw_cohort
from appliance.demo.hospitals import HOSPITALS

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="appliance.demo.modality")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hospital", type=int, required=True, choices=range(len(HOSPITALS)))
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args(argv)
    hospital = HOSPITALS[arguments.hospital]
    done = 0

    def drawn() -> None:
        nonlocal done
        done += 1
        sys.stdout.write(json.dumps({"done": done, "total": hospital.studies + 1}) + "\n")
        sys.stdout.flush()

    cohort = draw_cohort(hospital, arguments.hospital, arguments.folder, arguments.seed, drawn)
    cohort.write(arguments.folder / "cohort.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
