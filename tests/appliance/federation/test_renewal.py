"""A site's certificate renews by itself, and says so where people look when it could not."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from appliance import health, node
from appliance.db.engine import reading, writing
from appliance.doctor import examine
from appliance.federation import authority, joining, members, queries, workspaces
from appliance.federation.renewal import Renewal
from appliance.web.panel import federation as panel
from tests.appliance.federation.doorway import Doorway, request, running_doorway

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from appliance.settings import Settings


@pytest.fixture(scope="module")
def doorway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doorway]:
    with running_doorway(tmp_path_factory.mktemp("renewal") / "c") as running:
        yield running


def joined(doorway: Doorway, settings: Settings, site: str, valid: timedelta) -> Renewal:
    """Join, then hold a certificate of another length, which the coordinator knows."""
    workspace = joining.join(doorway.invite(site), settings).workspace
    here = workspaces.read(workspace)
    root = authority.load(doorway.federation.root)
    made = root.sign_site(request(here.private_key()), site, valid)
    assert doorway.book.ledger is not None
    used = authority.described(here.certificate).serial
    with writing(doorway.book.engine) as session:
        members.renew(session, doorway.book.ledger, site, used, authority.described(made))
    (workspace / "startup" / "client.crt").write_bytes(made)
    return Renewal(workspace, settings.zone_root("research"))


@pytest.mark.parametrize(
    ("valid", "renewed"),
    [(timedelta(days=90), False), (timedelta(minutes=20), True), (timedelta(0), True)],
    ids=["young", "in its last third", "ended"],
)
def test_a_certificate_is_renewed_when_a_third_of_its_life_is_left(
    doorway: Doorway, node_settings: Settings, valid: timedelta, renewed: bool, tmp_path: Path
) -> None:
    renewal = joined(doorway, node_settings, f"site-{int(valid.total_seconds())}", valid)
    assert renewal.workspace is not None
    before = workspaces.read(renewal.workspace)

    renewal.look()

    after = workspaces.read(renewal.workspace)
    assert (after.certificate != before.certificate) is renewed
    assert doorway.passes(after.certificate, after.key, tmp_path)
    ends = authority.described(after.certificate).ends_at
    assert renewal.detail() == {health.CERTIFICATE_ENDS: ends.timestamp()}


def test_a_coordinator_that_is_away_leaves_the_certificate_as_it_is(
    doorway: Doorway, node_settings: Settings
) -> None:
    renewal = joined(doorway, node_settings, "alone", timedelta(0))
    assert renewal.workspace is not None
    path = renewal.workspace / "startup" / "fed_client.json"
    path.write_text(path.read_text().replace(f":{doorway.port}", ":1"))
    before = workspaces.read(renewal.workspace).certificate

    renewal.look()

    assert workspaces.read(renewal.workspace).certificate == before
    assert renewal.detail()[health.CERTIFICATE_ENDS] < time.time()


def test_a_site_that_has_not_joined_renews_nothing(tmp_path: Path) -> None:
    renewal = Renewal(None, tmp_path)

    renewal.look()

    assert renewal.detail() == {}


@pytest.mark.parametrize(
    ("left_s", "ok", "warning", "said"),
    [
        (-60.0, False, False, "expired"),
        (86400.0, True, True, "not renewed"),
        (1e8, True, False, "good until"),
    ],
    ids=["ended", "soon", "long"],
)
def test_health_says_how_long_the_certificate_is_good(
    make_node: Callable[..., Settings], left_s: float, ok: bool, warning: bool, said: str
) -> None:
    settings = make_node(federation={"enabled": True})
    health.beat(settings, "research_agent", {health.CERTIFICATE_ENDS: time.time() + left_s})

    [found] = [check for check in health.overall(settings).checks if check.name == health.MEMBERSHIP]

    assert (found.ok, found.warning, found.stops) == (ok, warning, ok)
    assert said in found.detail


def test_the_doctor_of_a_joined_site_looks_at_the_way_to_its_coordinator(
    doorway: Doorway, make_node: Callable[..., Settings]
) -> None:
    settings = make_node(federation={"enabled": True})
    workspace = joining.join(doorway.invite("doctored"), settings).workspace
    settings = settings.model_copy(
        update={"federation": settings.federation.model_copy(update={"workspace": workspace})}
    )

    found = {check.name: check for check in examine(settings).checks}
    zone = node.open_research(settings)
    with reading(zone.engine) as session:
        summary = queries.summary(session, zone)
    zone.engine.dispose()

    looked_at = (health.MEMBERSHIP, "name", "TCP", "clock", "coordinator")
    assert all(found[name].ok for name in looked_at)
    ends = authority.described(workspaces.read(workspace).certificate).ends_at
    assert summary.certificate_ends_at == ends
    assert f"good until {ends:%Y-%m-%d}" in panel.certificate(summary)
    over = replace(summary, certificate_ends_at=ends - timedelta(days=400))
    assert "expired" in panel.certificate(over)
