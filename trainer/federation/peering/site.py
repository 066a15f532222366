"""A site's part in a round between peers: bring its model up to the record, say what training changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trainer.errors import StrategyError, UpdateError
from trainer.federation.aggregation import fingerprint
from trainer.federation.peering.kept import Kept
from trainer.federation.peering.letters import Letter, Mail
from trainer.peers import Peer, Replica, dfedavgm
from trainer.peers.braintorrent import advanced, merged
from trainer.peers.dfedavgm import WHOLE, bits_of
from trainer.peers.quantised import CODES
from trainer.strategies.base import check_update

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.federation.peering.record import Record
    from trainer.federation.plan import Plan
    from trainer.strategies import Contribution
    from trainer.weights_io import Array

PULLS = "braintorrent"  # the rule whose models go to who asks for them


class OtherHistoryError(StrategyError):
    """The record says of this site what it did not tell, or the site lost what it told."""


@dataclass(frozen=True)
class Post:
    """What a site works with in a round: the plan, its own name, the record that it goes on from."""

    plan: Plan
    site: str
    record: Record

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The strategy's."""
        return self.plan.strategy.parameters

    @property
    def pulls(self) -> bool:
        """Whether models go to who asks for them; else each message goes to all neighbours."""
        return self.plan.strategy.name == PULLS


def settled(post: Post, kept: Kept | None, mail: Mail) -> Peer:
    """Return what a site holds now that its last round is over, counted or not.

    A round counts where the record names its version. Its messages are taken over here and nowhere else, so
    that none counts twice however often a round is asked for.

    Parameters
    ----------
    kept : Kept, optional
        What its last round left; None before the first.

    Raises
    ------
    OtherHistoryError
        If the record is of another history than what is kept.
    UpdateError
        If a message is not what its sender told of.
    """
    version = post.record.version(post.site)
    if kept is None:
        if version:
            raise OtherHistoryError("what this site's last round left is gone; it cannot go on without it")
        return _new(post, mail)
    if version == kept.before.version:
        return kept.before
    if version != kept.said.version:
        raise OtherHistoryError("the record is of another version of this site's model than it keeps")
    if post.record.model(post.site) != fingerprint(kept.said.weights):
        raise OtherHistoryError("the record names another model of this site than it told of")
    if post.pulls:
        known = {site: Replica(number, {}) for site, number in kept.taken.items()}
        return replace(
            kept.before,
            weights=kept.said.weights,
            version=version,
            start={},
            known={**kept.before.known, **known},
        )
    return _mixed(post, kept, mail, version)


def gathered(post: Post, peer: Peer, mail: Mail, samples: int) -> tuple[Peer, dict[str, int]]:
    """Merge the models that came, which the record has to name and the site must not know yet.

    Returns
    -------
    tuple
        The site with the mean, and by sender the version that went into it.

    Raises
    ------
    UpdateError
        If a model is another one than the record names, or not newer than what was merged before.
    """
    newer = {}
    for site, weights in mail.messages.items():
        version = post.record.version(site)
        if site == post.site or version <= peer.replica(site).version:
            raise UpdateError("names", "a peer's model: expected a newer one than was merged before")
        newer[site] = Replica(version, _as_told(post.record.model(site), peer.weights, weights))
    counts = {site: post.record.samples.get(site, 0) for site in newer}
    return merged(replace(peer, samples=samples), newer, counts), {s: one.version for s, one in newer.items()}


def told(
    post: Post,
    before: Peer,
    now: Peer,
    contribution: Contribution,
    number: int,
    there: tuple[str, ...],
    taken: Mapping[str, int],
) -> tuple[Letter, Kept]:
    """Return what leaves a site after its training, and what it keeps.

    Parameters
    ----------
    before, now : Peer
        As the site was when the round began, and as it trained: with what it merged.
    there : tuple of str
        Who is asked to take part, of whom the neighbours follow.
    """
    if post.pulls:
        after = advanced(now, contribution)
        said = Replica(after.version, after.weights)
        known = {site: one.version for site, one in after.known.items()}
        return Letter(fingerprint(said.weights), said.version, known), Kept(before, said, taken)
    spoken = dfedavgm.speak(now, contribution, number, bits_of(post.parameters))
    parts = dfedavgm.shares(post.site, {*there, post.site}, post.parameters, post.plan.seed)
    to = tuple(one for one in parts if one != post.site)
    digest = fingerprint(spoken.now.weights)
    return Letter(digest, number, {}, to, spoken.message), Kept(before, spoken.now, {})


def sent(post: Post, kept: Kept | None, to: str) -> Letter:
    """Return a site's model for another that asks for it; raises as :func:`settled` does."""
    peer = settled(post, kept, Mail())
    digest = fingerprint(peer.weights)
    if not post.pulls or not peer.version or to == post.site or digest != post.record.model(post.site):
        raise OtherHistoryError("a model to send: expected this site's own, as the record names it")
    return Letter(digest, peer.version, {}, (to,), peer.weights)


def _new(post: Post, mail: Mail) -> Peer:
    if fingerprint(mail.start) != post.record.start:
        raise UpdateError("names", "the model that all started from: expected the one that the record names")
    return Peer(dict(mail.start), 0, dict(mail.start))


def _mixed(post: Post, kept: Kept, mail: Mail, version: int) -> Peer:
    """Take over what neighbours told in the round that counted, and mix."""
    parts = dfedavgm.shares(post.site, post.record.there(version), post.parameters, post.plan.seed)
    if set(mail.messages) != set(parts) - {post.site}:
        raise UpdateError(
            "names", "expected a message of each neighbour of the last round, and of nobody else"
        )
    heard = {post.site: kept.said}
    for site, message in mail.messages.items():
        digest = post.record.said[site, version]
        heard[site] = Replica(version, _taken_over(post, kept.before, site, message, digest))
    mixed = dfedavgm.mix(kept.before, heard, parts, version)
    useful = {
        site: one
        for site, one in mixed.known.items()
        if site == post.site or one.version == post.record.version(site)
    }
    return replace(mixed, start={}, known=useful)


def _taken_over(
    post: Post, before: Peer, site: str, message: Mapping[str, Array], digest: str
) -> Mapping[str, Array]:
    """Return a neighbour's model from its message: a difference to what is held of it, or the whole."""
    if CODES not in message:
        return _as_told(digest, before.weights, message)
    held, bits = before.replica(site), bits_of(post.parameters)
    if bits == WHOLE or set(held.weights) != set(before.weights):
        raise UpdateError("names", "a neighbour's message: expected its whole model")
    return _as_told(digest, before.weights, dfedavgm.moved(held, message, bits))


def _as_told(
    digest: str, reference: Mapping[str, Array], weights: Mapping[str, Array]
) -> Mapping[str, Array]:
    """Return a model if it is the one of which its site told."""
    check_update(reference, weights)
    if fingerprint(weights) != digest:
        raise UpdateError("names", "a peer's model differs from the hash that its site told")
    return weights
