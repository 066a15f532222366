"""Where a replica is read from: a site's research zone, a coordinator's folder, or a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.consortium import chronicle, replica
from appliance.consortium.block import Countersigned, Head, head_message, public_hex, verified
from appliance.consortium.chain import Chain, Finding
from appliance.consortium.exports import Exported
from appliance.db.engine import reading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from appliance.node import ResearchZone


def of_site(zone: ResearchZone) -> Exported:
    """Return a site's replica with the head that it countersigned last."""
    with reading(zone.engine) as session:
        row = replica.head(session)
        heads: tuple[Countersigned, ...] = ()
        if row is not None and row.countersignature:
            site = zone.settings.federation.site
            heads = (Countersigned(site, row.size, row.root, row.countersignature),)
        return Exported(tuple(replica.current(session)), heads)


def of_coordinator(engine: Engine) -> Exported:
    """Return the coordinator's chain with the newest head of each site."""
    with reading(engine) as session:
        return Exported(tuple(chronicle.stored(session)), chronicle.countersigned(session))


def own_findings(zone: ResearchZone, chain: Chain) -> Iterator[Finding]:
    """Compare a site's replica with its own key and countersignature, and name what stands open."""
    with reading(zone.engine) as session:
        row = replica.head(session)
        if row is not None and row.countersignature:
            key = public_hex(zone.keys.signing.public_key())
            head = Head(row.size, row.root)
            if not verified(key, row.countersignature, head_message(chain.federation, head, "site")):
                yield Finding("replica", row.size, "the stored countersignature is not this site's own")
        for one in replica.open_findings(session):
            yield Finding(one.code, one.sequence, f"{one.message} (finding {one.id}, open)")
