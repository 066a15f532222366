"""A supervisor over small processes that misbehave.

Run ``python -m tests.appliance.probe_supervisor ROOT [--start-within-s S] NAME...``. Names: ``good`` ends on
SIGTERM; ``stubborn`` ignores it and has a grandchild in a session of its own; ``failing`` ends at once;
``parent`` starts one too and waits; any other is a process of a real node.
"""

from __future__ import annotations

import sys
from pathlib import Path

from appliance import forking, logs, node, supervisor
from appliance.settings import Settings

_SLEEP = "import time; time.sleep(600)"
_GRANDCHILD = (
    "import subprocess, sys; "
    f"subprocess.Popen([sys.executable, '-S', '-c', {_SLEEP!r}], start_new_session=True)"
)
PROGRAMS = {
    "good": _SLEEP,
    "stubborn": f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {_GRANDCHILD}; {_SLEEP}",
    "failing": "import sys; sys.exit(3)",
    "parent": f"{_GRANDCHILD}; {_SLEEP}",
}


def main() -> None:
    """Run the supervisor."""
    root, names = Path(sys.argv[1]), sys.argv[2:]
    start_within_s = supervisor.START_WITHIN_S
    if names[0] == "--start-within-s":
        start_within_s, names = float(names[1]), names[2:]
    settings = Settings(data_root=root)
    logs.setup(settings.logging, "supervisor")
    node.create_node(settings)
    config = root.parent / "cloister.toml"
    config.write_text(f'data_root = "{root}"\n')
    forking.preload()
    start_real = forking.forker(config)
    start_probe = supervisor.spawner(lambda name: [sys.executable, "-S", "-c", PROGRAMS[name]])

    def start(name: str) -> int:
        return start_probe(name) if name in PROGRAMS else start_real(name)

    supervisor.Supervisor(settings, names, start, start_within_s=start_within_s).run()


if __name__ == "__main__":
    main()
