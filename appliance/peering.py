"""A round between peers at this site: the work of the research worker where each site has a model of its own.

What a round leaves for the next one lies with the site's state and survives whatever process dies. Whether it
counted says the record, which the consortium's ledger names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from appliance import firsts, logs
from appliance.consortium import replica
from appliance.db.base import new_id
from appliance.db.engine import reading, writing
from appliance.db.research import Round
from appliance.errors import ApplianceError
from appliance.federation import roundfiles

if TYPE_CHECKING:
    from appliance.heartbeat import Heartbeat
    from appliance.node import ResearchZone
    from appliance.training import Work
    from appliance.work import Claim
    from trainer.federation.peering.kept import Kept
    from trainer.federation.peering.letters import Mail
    from trainer.federation.peering.site import Post
    from trainer.local_round import LocalUpdate
    from trainer.peers import Peer
    from trainer.weights_io import Weights

MODEL_SENT: Final = "peer.model_sent"
KIND: Final = "send"

_LOG = logs.logger(__name__)


class PeeringError(ApplianceError):
    """What this site is asked for is not of the run between peers that it knows."""


@dataclass(frozen=True, eq=False)
class Part:
    """A site's part in a round, up to its training.

    Parameters
    ----------
    before : Peer
        What the site holds after its last round, counted or not.
    now : Peer
        What it trains: with the models that it merged for this round.
    taken : dict
        By site, the version that was merged.
    """

    post: Post
    mail: Mail
    before: Peer
    now: Peer
    taken: dict[str, int]

    def told(self, update: LocalUpdate, number: int) -> tuple[Weights, Weights]:
        """Return what leaves after training, and what stays for the next round."""
        from trainer.federation.peering import site  # noqa: PLC0415
        from trainer.strategies import Contribution  # noqa: PLC0415

        contribution = Contribution(self.post.site, update.delta, update.samples)
        letter, kept = site.told(
            self.post, self.before, self.now, contribution, number, self.mail.there, self.taken
        )
        return letter.arrays(), kept.arrays()


def begin(zone: ResearchZone, work: Work, samples: int) -> Part:
    """Bring this site's model up to the record of the round before, and merge what came for this one.

    Parameters
    ----------
    samples : int
        Training cases here.

    Raises
    ------
    UnfitModelError
        See :func:`appliance.firsts.check_peer`.
    """
    from trainer.federation.peering import letters, site  # noqa: PLC0415 - other work starts without it

    post, mail = _post(work), letters.read_mail(roundfiles.read_mail(zone.root, work.row))
    if work.row.number == 1:
        mail = letters.Mail(mail.there, mail.messages, work.weights)
    kept = _kept(work)
    before = site.settled(post, kept, mail)
    now, taken = before, dict[str, int]()
    if post.pulls:
        counted = min(samples, work.plan.max_samples_per_site)
        now, taken = site.gathered(post, before, mail, counted)
    earlier = None if kept is None else kept.before
    firsts.check_peer(zone, work.plan, work.row, before, now.weights, earlier)
    return Part(post, mail, before, now, taken)


def final(zone: ResearchZone, work: Work) -> Weights:
    """Return this site's own model at the end of the run; raises PeeringError if it never trained."""
    from trainer.federation.peering import letters, site  # noqa: PLC0415

    post, mail = _post(work), letters.read_mail(roundfiles.read_mail(zone.root, work.row))
    if not post.record.version(post.site):
        raise PeeringError("this site has no model of its own: it trained in no round that counted")
    return dict(site.settled(post, _kept(work), mail).weights)


def send(zone: ResearchZone, claim: Claim, work: Work, progress: Heartbeat) -> None:
    """Give this site's model out for the peer that asks for it, as the record names it."""
    from trainer import weights_io  # noqa: PLC0415
    from trainer.federation.aggregation import fingerprint  # noqa: PLC0415
    from trainer.federation.peering import letters, record, site  # noqa: PLC0415

    row, plan = work.row, work.plan
    arrays, to = letters.read_order_to_send(work.weights)
    with reading(zone.engine) as session:
        known = replica.model_of(session, plan.sha256, row.number - 1)
    if row.number == 1 or known != fingerprint(arrays):
        raise PeeringError("a model is asked for on another record than the consortium's ledger names")
    progress("send", 0, 1)
    post = site.Post(plan, row.site, record.read(arrays))
    letter = site.sent(post, _kept(work), to)
    relative = f"federation/updates/{row.id}-{new_id()}.safetensors"
    digest = weights_io.save(zone.root / relative, letter.arrays())
    with writing(zone.engine) as session:
        stored = session.get(Round, row.id)
        if stored is None:
            raise PeeringError("the round's row is gone")
        stored.output_path, stored.output_sha256 = relative, digest
        session.flush()
        body = {"round_id": row.id, "model_sha256": letter.said, "update_sha256": digest}
        zone.ledger.append(session, kind=MODEL_SENT, subject_id=row.id, body=body)
        claim.finish(session)
    _LOG.info(MODEL_SENT, round_id=row.id)


def _post(work: Work) -> Post:
    from trainer.federation.peering import record, site  # noqa: PLC0415

    row = work.row
    number = row.number if row.kind == "finalize" else row.number - 1
    return site.Post(work.plan, row.site, record.standing(number, work.weights, row.global_model_sha256))


def _kept(work: Work) -> Kept | None:
    from trainer.federation.peering.kept import read_kept  # noqa: PLC0415

    return read_kept(work.own) if work.own else None
