"""A session in a process of its own answers, refuses and ends as one in this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from appliance.children import children_of
from inference.errors import SessionError
from inference.package import open_package, write_package
from inference.session import ModelSession
from inference.session_process import SessionProcess
from tests.appliance.servers import wait_until
from tests.inference.material import EDGE
from tests.inference.segment_material import make_segment_card, make_segment_onnx

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from numpy.typing import NDArray

    from inference.package import Package

HOLDER = """
import os, sys, time
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from appliance.children import children_of
from inference.package import open_package
from inference.session_process import SessionProcess
key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(sys.argv[2]))
with SessionProcess(open_package(Path(sys.argv[1]), {"site": key})):
    print(*children_of(os.getpid()), flush=True)
    time.sleep(60)
"""


def batch_of(count: int, size: tuple[int, ...] = (EDGE, EDGE)) -> NDArray[np.float32]:
    return np.random.default_rng(count).normal(0, 1, (count, 1, *size)).astype(np.float32)


def own_process() -> int:
    (pid,) = (pid for pid in children_of(os.getpid()) if b"session_process" in command_of(pid))
    return pid


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_it_answers_what_a_session_here_answers(package: Package) -> None:
    here = ModelSession(package)
    with SessionProcess(package) as there:
        for batch in (batch_of(3), batch_of(1), batch_of(300), batch_of(6)[::2]):
            assert np.array_equal(there.run(batch), here.run(batch))


def test_large_answers_of_voxels_come_whole(tmp_path: Path, signing_key: Ed25519PrivateKey) -> None:
    card = make_segment_card()
    write_package(tmp_path, make_segment_onnx(size=card.input.size), card, signing_key)
    package = open_package(tmp_path, {"site": signing_key.public_key()})
    batch = batch_of(40, card.input.size)
    with SessionProcess(package) as there:
        assert np.array_equal(there.run(batch), ModelSession(package).run(batch))


def test_its_process_sees_no_setting_and_ends_with_the_block(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOISTER_DATABASE_URL", "secret")
    with SessionProcess(package):
        pid = own_process()
        assert b"CLOISTER_" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert pid not in children_of(os.getpid())


def test_a_model_that_cannot_be_loaded_is_named_and_leaves_no_process(package: Package) -> None:
    package.model_path.write_bytes(b"no model")
    before = children_of(os.getpid())
    with pytest.raises(SessionError, match=r"session\.load"), SessionProcess(package):
        pass
    assert children_of(os.getpid()) == before


def test_input_of_another_shape_is_refused_as_here(package: Package) -> None:
    with SessionProcess(package) as there, pytest.raises(SessionError, match=r"session\.input"):
        there.run(batch_of(1, (EDGE, EDGE + 1)))


@pytest.mark.parametrize("count", [1, 3000])
def test_a_process_that_was_killed_is_an_error_and_no_waiting(package: Package, count: int) -> None:
    with SessionProcess(package) as there:
        os.kill(own_process(), signal.SIGKILL)
        with pytest.raises(SessionError, match=r"session\.process"):
            there.run(batch_of(count))


def test_it_ends_when_its_asker_is_killed(package_folder: Path, signing_key: Ed25519PrivateKey) -> None:
    key = signing_key.public_key().public_bytes_raw().hex()
    argv = [sys.executable, "-c", HOLDER, str(package_folder), key]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        assert b"session_process" in command_of(pid)
        holder.kill()
    wait_until(lambda: b"session_process" not in command_of(pid), 10.0, "the process ends")
