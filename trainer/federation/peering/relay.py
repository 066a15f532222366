"""The coordinator's part in a round between peers: check what sites tell, record it, say what goes to whom.

No model is made of others here. A packed message is unpacked for its check alone, and to hand the whole to a
neighbour that missed the message before it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trainer.errors import UpdateError
from trainer.federation.aggregation import Judgement, claims, fingerprint
from trainer.federation.peering.letters import Letter, read_letter
from trainer.federation.peering.record import Record
from trainer.federation.peering.site import PULLS
from trainer.peers import PEERS, Call, Replica, dfedavgm
from trainer.peers.dfedavgm import WHOLE, bits_of
from trainer.peers.quantised import CODES
from trainer.strategies.base import check_update

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from trainer.federation.aggregation import Update
    from trainer.federation.plan import Plan
    from trainer.strategies.base import Array


@dataclass(frozen=True, eq=False)
class Heard:
    """One site's checked word: what it wrote, what others may hold of it then, the cases that count."""

    site: str
    letter: Letter
    model: Mapping[str, Array]
    samples: int


@dataclass(frozen=True, eq=False)
class Relay:
    """The rules of one run.

    Parameters
    ----------
    start : Mapping
        The model that all started from.
    """

    plan: Plan
    start: Mapping[str, Array]

    @property
    def pulls(self) -> bool:
        """Whether models go to who asks for them; else each message goes to all neighbours."""
        return self.plan.strategy.name == PULLS

    @property
    def quantised(self) -> bool:
        """Whether messages are differences in few bits."""
        return not self.pulls and bits_of(self.plan.strategy.parameters) != WHOLE

    def drawn(self, number: int, sites: Collection[str]) -> tuple[str, ...]:
        """Return who trains in a round, of the sites that are there; at least one has to be."""
        plan = self.plan
        call = Call(number, tuple(sites), plan.seed, plan.strategy.parameters)
        return PEERS[plan.strategy.name].participants(call)

    def wanted(self, record: Record, site: str, sites: Iterable[str]) -> tuple[str, ...]:
        """Return whose models a drawn site asks for: those newer than what it merged."""
        return tuple(
            one
            for one in sorted(sites)
            if one != site and record.version(one) > record.known.get((site, one), 0)
        )

    def links(self, record: Record, site: str) -> tuple[str, ...]:
        """Return whose messages a site has to take over: its neighbours in its last round that counted."""
        version = record.version(site)
        if self.pulls or not version:
            return ()
        there = record.there(version)
        parts = dfedavgm.shares(site, there, self.plan.strategy.parameters, self.plan.seed)
        return tuple(one for one in parts if one != site)

    def judge(
        self, record: Record, number: int, update: Update, digest: str, held: Mapping[str, Array]
    ) -> tuple[Judgement, Heard | None]:
        """Check what one site tells of a round.

        Parameters
        ----------
        update : Update
            What came, and the cases that the site says it has.
        digest : str
            Hash of the file that came.
        held : Mapping
            What others hold of the site until now; the start model before its first word.
        """
        claimed, samples, reason = claims(update, self.plan.bounds)
        heard = None
        if reason is None:
            try:
                letter = read_letter(update.delta)
                heard = Heard(
                    update.site, letter, self._checked(record, number, update.site, letter, held), samples
                )
            except UpdateError as error:
                reason = str(error)
        return Judgement(update.site, samples, claimed, digest, reason), heard

    def check_model(
        self, record: Record, site: str, to: str, arrays: Mapping[str, Array]
    ) -> Mapping[str, Array]:
        """Return the model that a site sends to another; raises UpdateError unless it is what it told of."""
        letter = read_letter(arrays)
        if letter.to != (to,) or letter.version != record.version(site) or letter.said != record.model(site):
            raise UpdateError("names", "a model for a peer: expected the one that the record names")
        check_update(self.start, letter.message)
        model = {name: letter.message[name] for name in letter.message}
        if fingerprint(model) != record.model(site):
            raise UpdateError("names", "a model for a peer differs from the hash that its site told")
        return model

    def next_record(self, record: Record, number: int, heard: Iterable[Heard]) -> Record:
        """Return the record after a round in which these counted."""
        counted = {one.site: one for one in heard}
        versions = {**record.versions, **{site: one.letter.version for site, one in counted.items()}}
        samples = {**record.samples, **{site: one.samples for site, one in counted.items()}}
        told = {(site, one.letter.version): one.letter.said for site, one in counted.items()}
        said = {**record.said, **told}
        after = Record(record.start, versions, samples, said, record.known, record.packed)
        if self.pulls:
            known = {
                (site, other): n for site, one in counted.items() for other, n in one.letter.known.items()
            }
            needed = set(versions.items())
            after = replace(after, known={**record.known, **known})
        else:
            links = [(site, other) for site in counted for other in self.links(after, site)]
            packed = {pair for pair in links if self.quantised and _has_the_base(record, *pair)}
            stay = {pair for pair in record.packed if pair[0] not in counted}
            after = replace(
                after,
                known={**record.known, **dict.fromkeys(links, number)},
                packed=frozenset(packed | stay),
            )
            needed = {(site, version) for version in set(versions.values()) for site in after.there(version)}
        return replace(after, said={place: text for place, text in said.items() if place in needed})

    def _checked(
        self, record: Record, number: int, site: str, letter: Letter, held: Mapping[str, Array]
    ) -> Mapping[str, Array]:
        """Return what others may hold of a site once its word counts; nothing where its model stays there."""
        expected = record.version(site) + 1 if self.pulls else number
        if letter.version != expected:
            raise UpdateError("names", "a site's word on its own model: expected the next version")
        if self.pulls:
            others = set(record.versions) - {site}
            if letter.message or any(
                one not in others or n > record.version(one) for one, n in letter.known.items()
            ):
                raise UpdateError("names", "a site's word on its own model: expected versions of other sites")
            return {}
        if letter.known:
            raise UpdateError("names", "a site's word on its own model: expected a message, and no versions")
        model = letter.message
        if self.quantised:
            if CODES not in model:
                raise UpdateError("names", "message: expected the arrays of a packed difference")
            bits = bits_of(self.plan.strategy.parameters)
            model = dfedavgm.moved(Replica(record.version(site), held), model, bits)
        check_update(self.start, model)
        if fingerprint(model) != letter.said:
            raise UpdateError("names", "a site's model differs from the hash that it told")
        return model


def _has_the_base(record: Record, site: str, other: str) -> bool:
    """Whether a site holds what another's next message is a difference to."""
    held, version = record.known.get((site, other), 0), record.version(other)
    return held == version and (version > 0 or record.version(site) == 0)
