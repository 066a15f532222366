"""The process in which a foreign package is opened: limited memory and time, nothing to lose.

Run as ``python -m inference.examine``: one request as JSON on standard input, one answer as JSON on standard
output, ``{}`` when the package is good, else ``{"code", "message"}``.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from inference.errors import InferenceError, PackageError
from inference.package import Limits, open_package
from inference.unpacking import unpack


def main() -> int:
    """Answer one request."""
    request: dict[str, Any] = json.load(sys.stdin)
    limits = Limits(**request["limits"])
    restrict(limits)
    answer: dict[str, str] = {}
    try:
        examine(
            Path(request["source"]),
            Path(request["target"]),
            {
                name: Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
                for name, key in request["signers"].items()
            },
            limits,
        )
    except InferenceError as error:
        answer = {"code": error.code, "message": error.message}
    except MemoryError:
        answer = {"code": "package.limits", "message": "needs more memory than allowed"}
    json.dump(answer, sys.stdout)
    return 0


def restrict(limits: Limits) -> None:
    """Bound this process for good; it never gets more again."""
    seconds = max(1, int(limits.time_s))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.max_model_bytes, limits.max_model_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def examine(source: Path, target: Path, signers: dict[str, Ed25519PublicKey], limits: Limits) -> None:
    """Unpack, verify, check and try a package; who signed comes before what the bytes mean.

    Raises
    ------
    InferenceError
        Naming the first thing that is wrong.
    """
    unpack(source, target, limits)
    package = open_package(target, signers, limits)
    from inference.model_check import check_model  # noqa: PLC0415  parsers only after the signature

    check_model(package.model_path.read_bytes(), package.card)
    _try(package)


def _try(package: Any) -> None:
    import numpy as np  # noqa: PLC0415

    from inference.session import ModelSession  # noqa: PLC0415

    size = package.card.input.size
    session = ModelSession(package)
    ramp = np.linspace(-1, 1, 2 * math.prod(size), dtype=np.float32)
    batch = ramp.reshape(2, 1, *size)
    together = session.run(batch)
    if not np.allclose(together[1:], session.run(batch[1:]), atol=1e-4):
        raise PackageError("model.output", "an answer depends on the other pictures of its batch")


if __name__ == "__main__":
    sys.exit(main())
