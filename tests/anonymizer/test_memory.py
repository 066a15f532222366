"""Memory does not grow with uncompressed pixel data: files are mapped and written in views."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from anonymizer.mapping import SMALL_BYTES
from tests.anonymizer.material import ct, encode

if TYPE_CHECKING:
    from pathlib import Path

FRAMES, ROWS = 500, 512
PROGRAM = """
import sys
from pathlib import Path
from anonymizer import engine
from tests.anonymizer.material import CONTEXT, ct, encode
engine.deidentify(encode(ct()), CONTEXT)  # tables are read
def anonymous():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1])
before, peak = anonymous(), 0
source, target = Path(sys.argv[1]), Path(sys.argv[2])
import threading
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())
threading.Thread(target=watch, daemon=True).start()
outcome = engine.deidentify_file(source, target, CONTEXT)
done.set()
print(type(outcome).__name__, max(peak, anonymous()) - before)
"""


def large(path: Path) -> int:
    """Write a multi-frame XA instance whose frames lie in a hole of the file; return the frames' bytes."""
    ds = ct(rows=2, columns=2)
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.12.1"
    ds.Modality, ds.NumberOfFrames, ds.Rows, ds.Columns = "XA", str(FRAMES), ROWS, ROWS
    ds.PixelData = b"\x5a\x5a\x5a\x5a"
    content = encode(ds)
    size = FRAMES * ROWS * ROWS * 2
    at = content.index(b"\xe0\x7f\x10\0OW")
    with path.open("wb") as file:
        file.write(content[: at + 8] + size.to_bytes(4, "little"))
        file.truncate(at + 12 + size)
    return size


def test_a_quarter_of_a_gigabyte_needs_a_few_megabytes(tmp_path: Path) -> None:
    source, target = tmp_path / "in.dcm", tmp_path / "out.dcm"
    size = large(source)
    assert size > 50 * SMALL_BYTES
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(source), str(target)], capture_output=True, text=True, check=True
    )
    kind, grown_kib = run.stdout.split()
    assert kind == "Released"
    assert target.stat().st_size > size
    assert int(grown_kib) * 1024 < size // 8
