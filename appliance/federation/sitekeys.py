"""The key of encrypted updates at a site: who may have it; made or taken once per plan, and kept sealed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance import durable, logs
from appliance.consortium import block as blocks
from appliance.consortium.errors import BlockFormError
from appliance.consortium.replica import followed_here
from appliance.db.engine import reading, writing
from appliance.db.research import Protocol
from appliance.federation import envelope, refusals
from appliance.federation.envelope import Envelope, EnvelopeError
from trainer.errors import TrainerError, UnfitModelError, UpdateError
from trainer.federation.plan import Plan
from trainer.strategies.fedavg import rate_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sqlalchemy.orm import Session

    from appliance.node import ResearchZone
    from trainer.encryption.ckks import Key
    from trainer.weights_io import Array, Weights

KEY_TAKEN: Final = "encryption.key_taken"
OTHER_KEY: Final = "other_key"

_LOG = logs.logger(__name__)


def is_among_recipients(session: Session, zone: ResearchZone, plan: Plan) -> bool:
    """Whether the plan's key goes to this site, and to no keys but those of the consortium's ledger."""
    if plan.encryption is None:
        return True
    recipients = plan.encryption.recipients
    own = blocks.public_hex(zone.keys.signing.public_key())
    if recipients.get(zone.settings.federation.site) != own:
        return False
    try:
        with followed_here(session) as chain:
            return all(chain.key(site) == key for site, key in recipients.items())
    except BlockFormError:
        return False  # the replica itself stops rounds, with its own word


def offer(zone: ResearchZone, plan_sha256: str) -> str:
    """Return the envelope that this site took, or a new one of its own.

    A new one is not kept: it counts when the coordinator hands it on, as any other site's.

    Raises
    ------
    EnvelopeError
        If the plan is not known here, or its key may not be shared.
    """
    from trainer.encryption import ckks  # noqa: PLC0415 - the scheme's library loads here

    plan = _plan(zone, plan_sha256)
    path = _path(zone, plan_sha256)
    if path.is_file():
        return path.read_text(encoding="ascii")
    site, signing = zone.settings.federation.site, zone.keys.signing
    return envelope.seal(ckks.new_secret(), plan, site, signing).text


def take(zone: ResearchZone, plan_sha256: str, text: str) -> None:
    """Keep the envelope that the coordinator hands on; the first of a plan stands.

    Raises
    ------
    EnvelopeError
        If it is none of this plan's, holds no key of the scheme, or another one was taken before.
    """
    plan = _plan(zone, plan_sha256)
    path = _path(zone, plan_sha256)
    if path.is_file():
        if path.read_text(encoding="ascii") != text:
            with writing(zone.engine) as session:
                refusals.note(session, zone.ledger, OTHER_KEY, _protocol(session, plan_sha256).id)
            raise EnvelopeError("another encryption key than the one that was taken here for this plan")
        return
    found = envelope.read(text, plan)
    _opened(zone, found)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    durable.write_whole(path, text.encode("ascii"))
    with writing(zone.engine) as session:
        protocol = _protocol(session, plan_sha256)
        body = {"plan_sha256": plan_sha256, "envelope_sha256": found.sha256}
        zone.ledger.append(session, kind=KEY_TAKEN, subject_id=protocol.id, body=body)
    _LOG.info(KEY_TAKEN, protocol_id=protocol.id)


def key_of(zone: ResearchZone, plan: Plan) -> Key:
    """Return the key of an encrypted run; raises EnvelopeError when none was taken here."""
    path = _path(zone, plan.sha256)
    if not path.is_file():
        raise EnvelopeError("no encryption key was taken here for this plan")
    return _opened(zone, envelope.read(path.read_text(encoding="ascii"), plan))


def readable(key: Key, plan: Plan, weights: Mapping[str, Array], rounds: int) -> Weights:
    """Decrypt a global model after so many rounds; raises UnfitModelError for what is none."""
    from trainer.encryption import model  # noqa: PLC0415 - the scheme's library loads here

    most = rounds * plan.max_update_norm * rate_of(plan.strategy.parameters)
    try:
        return model.readable(key, weights, plan.turns, most)
    except UpdateError as error:
        raise UnfitModelError(str(error)) from error


def _opened(zone: ResearchZone, found: Envelope) -> Key:
    from trainer.encryption.ckks import Key  # noqa: PLC0415 - the scheme's library loads here

    try:
        return Key.of_sites(found.open(zone.keys.signing))
    except TrainerError as error:
        raise EnvelopeError(str(error)) from error


def _plan(zone: ResearchZone, plan_sha256: str) -> Plan:
    with reading(zone.engine) as session:
        plan = Plan.from_json(_protocol(session, plan_sha256).plan)
        if plan.encryption is None or not is_among_recipients(session, zone, plan):
            raise EnvelopeError("the plan has no encryption key that may be shared")
        return plan


def _protocol(session: Session, plan_sha256: str) -> Protocol:
    row = session.scalar(select(Protocol).where(Protocol.plan_sha256 == plan_sha256))
    if row is None:
        raise EnvelopeError("the plan is not known here")
    return row


def _path(zone: ResearchZone, plan_sha256: str) -> Path:
    return zone.root / "federation" / "keys" / f"{plan_sha256}.json"
