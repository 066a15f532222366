"""Write a new run into a coordinator's book, with the first model that its plan gives."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from appliance.db.base import now
from appliance.db.coordinator import FinishedRound, MemberState
from appliance.db.engine import reading
from appliance.federation import coordinator, members, provision
from appliance.federation.errors import CoordinatorError
from trainer.encryption import ENCRYPTED
from trainer.federation.errors import PlanError
from trainer.federation.peering import record
from trainer.federation.plan import Plan, default_expiry
from trainer.weights_io import Stored, load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from appliance.federation.book import Book

    FirstModel = Callable[[Plan, Path, Path | None], dict[str, Any]]


def initial_model(plan: Plan, folder: Path, earlier: Path | None) -> dict[str, Any]:
    """Make the first model in a process of its own, so that torch is not loaded here."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = folder / "initial.safetensors"
    argv = [
        sys.executable,
        "-m",
        "appliance.federation.initial",
        str(target),
        *([] if earlier is None else [str(earlier)]),
    ]
    made = subprocess.run(argv, input=plan.dumps().encode(), check=False, capture_output=True, timeout=300)
    if made.returncode != 0:
        raise CoordinatorError(f"no initial model: {made.stderr.decode(errors='replace').strip()[-300:]}")
    return load(target)


def add(root: Path, plan_file: Path, first_model: FirstModel = initial_model) -> str:
    """Read a plan, make its initial model, write the run down; return its id.

    Parameters
    ----------
    first_model : callable
        Makes the model of a plan in the run's folder, from an earlier model's file where the plan names one.

    Raises
    ------
    CoordinatorError
        If the plan cannot be read, needs more sites than there are, or asks for a strategy or parameters
        that do not exist.
    """
    federation = provision.load(root)
    book = coordinator.open_book(federation)
    plan = read_plan(plan_file, _recipients(book))
    sites = members.active(book.engine)
    if plan.min_sites > len(sites):
        raise CoordinatorError(f"min_sites: expected at most {len(sites)}, the federation's sites")
    earlier = _earlier(book, plan.initial_sha256) if plan.initial_sha256 else None
    return book.add_run(plan, first_model(plan, federation.runs / plan.run_id, earlier))


def _earlier(book: Book, digest: str) -> Path:
    """Return where this coordinator keeps a finished round's model of that hash."""
    query = select(FinishedRound.checkpoint_path).where(FinishedRound.model_sha256 == digest)
    with reading(book.engine) as session:
        path = session.scalars(query.order_by(FinishedRound.finished_at)).first()
    if path is None:
        raise CoordinatorError("initial_sha256: expected the model of a finished round of this coordinator")
    if not (book.root / path).is_file():
        raise CoordinatorError(
            "initial_sha256: that round's model was removed to make room; expected one of the run's newest"
        )
    names = list(Stored(book.root / path))
    if record.is_one(names):
        raise CoordinatorError("initial_sha256: no model stands for that round; its sites keep their own")
    if any(name.startswith(ENCRYPTED) for name in names):
        raise CoordinatorError("initial_sha256: that model is encrypted, and its sites alone can read it")
    return book.root / path


def _recipients(book: Book) -> dict[str, str]:
    """Return the keys of the sites that take part, as the consortium's ledger has them."""
    found = members.members(book.engine)
    return {one.name: one.signing_key for one in found if one.state == MemberState.ACTIVE and one.signing_key}


def read_plan(path: Path, recipients: Mapping[str, str]) -> Plan:
    """Read a plan file; a missing ``run_id``, ``expires_at`` or recipient of an encryption is filled in.

    Parameters
    ----------
    recipients : Mapping
        The key of every site that takes part: who gets an encryption's key where the file names nobody.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CoordinatorError(f"{path.name}: cannot be read; expected a plan as JSON") from error
    if not isinstance(content, dict):
        raise CoordinatorError(f"{path.name}: expected a JSON object")
    content.setdefault("run_id", f"run-{secrets.token_hex(6)}")
    content.setdefault("expires_at", default_expiry(now()).isoformat())
    encryption = content.get("encryption")
    if isinstance(encryption, dict):
        encryption.setdefault("recipients", dict(recipients))
    try:
        plan = Plan.from_json(content)
    except PlanError as error:
        raise CoordinatorError(f"{path.name}: {error}") from error
    if plan.encryption is not None and not plan.encryption.recipients.items() <= recipients.items():
        raise CoordinatorError("encryption.recipients: expected sites that take part, with their own keys")
    return plan
