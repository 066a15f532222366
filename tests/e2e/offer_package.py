"""Leave a model package in the crossing, as the research zone does; run as the research zone's user."""

from __future__ import annotations

import os
from pathlib import Path

from appliance import node
from appliance.settings import load_settings
from inference.evaluation import sign_report
from inference.package import pack, package_sha256, write_package
from tests.inference.material import make_card, make_onnx


def main() -> None:
    """Write ``run-1.json`` and ``run-1.zip``."""
    settings = load_settings(Path(os.environ["CLOISTER_CONFIG"]))
    zone = node.open_research(settings)
    folder = zone.root / "offered"
    write_package(folder, make_onnx(), make_card(), zone.keys.signing)
    spool = settings.crossing_in / "packages"
    report = sign_report(package_sha256(folder), {"auc": 0.9}, {"rounds": 3}, zone.keys.signing)
    (spool / "run-1.json").write_bytes(report)
    pack(folder, spool / "run-1.zip")


if __name__ == "__main__":
    main()
