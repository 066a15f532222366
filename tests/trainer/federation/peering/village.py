"""Sites and a relay without an engine: what each keeps, what goes between them, as in a real run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.trainer.federation.plans import make_plan
from tests.trainer.peers.groups import model
from trainer.federation.aggregation import Update, fingerprint
from trainer.federation.peering import record as records
from trainer.federation.peering.kept import Kept, read_kept
from trainer.federation.peering.letters import Mail, read_letter, read_mail
from trainer.federation.peering.relay import Relay
from trainer.federation.peering.site import Post, gathered, sent, settled, told
from trainer.federation.plan import Plan, Strategy
from trainer.strategies import Contribution
from trainer.weights_io import from_bytes, to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trainer.federation.aggregation import Array
    from trainer.federation.peering.record import Record

Arrays = dict[str, Any]


def plan_of(name: str, **parameters: float) -> Plan:
    """Return a plan between peers."""
    return make_plan(strategy=Strategy(name, parameters), min_sites=1, total_rounds=50, seed=3)


@dataclass
class Village:
    """Everybody; ``kept`` lies at the sites, ``wholes`` and ``messages`` at the coordinator."""

    plan: Plan
    names: tuple[str, ...]
    samples: Mapping[str, int]
    record: Record
    kept: dict[str, Kept] = field(default_factory=dict)
    wholes: dict[tuple[str, int], Mapping[str, Array]] = field(default_factory=dict)
    messages: dict[tuple[str, int], Mapping[str, Array]] = field(default_factory=dict)
    sent: list[tuple[str, str, bool]] = field(default_factory=list)  # sender, receiver, whole

    @classmethod
    def new(cls, plan: Plan, **samples: int) -> Village:
        """Return a village in which nobody has trained."""
        return cls(plan, tuple(samples), samples, records.Record(fingerprint(model())))

    @property
    def relay(self) -> Relay:
        """The coordinator's rules."""
        return Relay(self.plan, model())

    def post(self, site: str) -> Post:
        """Return what a site knows; the record travels as a file."""
        return Post(self.plan, site, records.read(from_bytes(to_bytes(self.record.arrays()))))

    def mail(self, site: str, there: tuple[str, ...] = ()) -> Mail:
        """Return what comes to a site with the next order."""
        version = self.record.version(site)
        messages = {}
        for other in self.relay.links(self.record, site):
            store = self.messages if (site, other) in self.record.packed else self.wholes
            messages[other] = store[other, version]
        mail = Mail(there, messages, {} if version else model())
        return read_mail(from_bytes(to_bytes(mail.arrays())))

    def holds(self, site: str) -> Mapping[str, Array]:
        """Return the model that a site would make its package of."""
        return settled(self.post(site), self.kept.get(site), self.mail(site)).weights

    def trained(
        self, site: str, number: int, step: Arrays, there: tuple[str, ...], pulled: Mapping[str, Any]
    ) -> Arrays:
        """Let a site train by a step; return what leaves it."""
        post, mail = self.post(site), self.mail(site, there)
        before = settled(post, self.kept.get(site), mail)
        now, taken = before, dict[str, int]()
        if post.pulls:
            now, taken = gathered(post, before, Mail(there, pulled), self.samples[site])
        contribution = Contribution(site, step, self.samples[site])
        letter, kept = told(post, before, now, contribution, number, there, taken)
        self.kept[site] = read_kept(from_bytes(to_bytes(kept.arrays())))
        return from_bytes(to_bytes(letter.arrays()))

    def round(
        self, number: int, steps: Mapping[str, Arrays], there: Iterable[str], late: Iterable[str] = ()
    ) -> None:
        """Play a round; the word of those who are ``late`` is not counted."""
        answering = tuple(sorted(there))
        drawn = self.relay.drawn(number, answering)
        heard = []
        for site in {*drawn, *late}:
            pulled = self.pulled(site, answering) if self.relay.pulls and number > 1 else {}
            arrays = self.trained(site, number, steps[site], answering, pulled)
            held = self.wholes.get((site, self.record.version(site)), model())
            update = Update(site, arrays, self.samples[site])
            judgement, one = self.relay.judge(self.record, number, update, fingerprint(arrays), held)
            assert one is not None, judgement.reason
            if site in drawn and site not in late:
                heard.append(one)
        before, self.record = self.record, self.relay.next_record(self.record, number, heard)
        for one in heard:
            self.wholes[one.site, one.letter.version] = one.model
            self.messages[one.site, one.letter.version] = dict(one.letter.message)
            for other in self.relay.links(self.record, one.site):
                self.sent.append((other, one.site, (one.site, other) not in self.record.packed))
        assert self.record != before

    def pulled(self, site: str, there: tuple[str, ...]) -> dict[str, Mapping[str, Array]]:
        """Return the models that a drawn site gets from those who are there."""
        found = {}
        for other in self.relay.wanted(self.record, site, there):
            letter = sent(self.post(other), self.kept.get(other), site)
            arrays = from_bytes(to_bytes(letter.arrays()))
            assert read_letter(arrays).to == (site,)
            found[other] = self.relay.check_model(self.record, other, site, arrays)
            self.sent.append((other, site, True))
        return found
