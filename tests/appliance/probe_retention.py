"""Deletes what is due in a node's clinical zone; a test kills it anywhere."""

from __future__ import annotations

import sys
from pathlib import Path

from appliance import retention
from appliance.db.base import now
from appliance.node import open_clinical
from appliance.settings import load_settings

if __name__ == "__main__":
    zone = open_clinical(load_settings(Path(sys.argv[1])))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    retention.run(zone, now())
