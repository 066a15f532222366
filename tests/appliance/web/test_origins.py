from __future__ import annotations

import pytest

from appliance.settings import WebSettings
from appliance.web.origins import Origins, may_change
from appliance.web.signing_in import inside

ORIGINS = Origins.of(WebSettings(public_url="https://cloister.hospital.example/"))


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8443", "localhost", "[::1]:8443", "cloister.hospital.example", "10.0.0.7"]
)
def test_own_names_and_addresses_are_known(host: str) -> None:
    assert ORIGINS.knows_host(host)


@pytest.mark.parametrize("host", ["", "evil.example", "evil.example:8443", "localhost.evil.example", "[::1"])
def test_a_name_that_merely_resolves_here_is_not_ours(host: str) -> None:
    assert not ORIGINS.knows_host(host)


def test_the_origin_is_the_page_that_was_asked_for_or_the_public_one() -> None:
    assert ORIGINS.is_ours("http://127.0.0.1:8443", scheme="http", host="127.0.0.1:8443")
    assert ORIGINS.is_ours("http://127.0.0.1:8443", scheme="ws", host="127.0.0.1:8443")
    assert ORIGINS.is_ours("https://cloister.hospital.example", scheme="http", host="127.0.0.1:8443")


@pytest.mark.parametrize(
    "origin", [None, "", "null", "http://evil.example", "http://127.0.0.1", "https://127.0.0.1:8443"]
)
def test_any_other_origin_is_foreign(origin: str | None) -> None:
    assert not ORIGINS.is_ours(origin, scheme="http", host="127.0.0.1:8443")


def test_without_a_public_url_no_empty_origin_passes() -> None:
    assert not Origins.of(WebSettings()).is_ours("-", scheme="http", host="h")


@pytest.mark.parametrize(
    ("method", "headers", "is_api", "allowed"),
    [
        ("GET", {}, False, True),
        ("POST", {"origin": "http://127.0.0.1:1"}, False, True),
        ("POST", {}, False, False),
        ("POST", {}, True, True),
        ("POST", {"sec-fetch-site": "cross-site"}, True, False),
        ("POST", {"origin": "http://evil.example"}, True, False),
        ("DELETE", {"origin": "null"}, True, False),
    ],
)
def test_what_changes_something_must_come_from_our_page(
    method: str, headers: dict[str, str], is_api: bool, allowed: bool
) -> None:
    given = {"host": "127.0.0.1:1", **headers}
    assert may_change(ORIGINS, method, given, scheme="http", is_api=is_api) is allowed


@pytest.mark.parametrize("target", ["/studies", "/jobs?state=dead", "/studies/0a1b"])
def test_after_sign_in_a_page_of_the_panel_is_opened(target: str) -> None:
    assert inside(target) == target


@pytest.mark.parametrize(
    "target", ["", "//evil.example", "/\\evil.example", "https://evil.example", "/a\nb", "studies"]
)
def test_after_sign_in_nobody_is_sent_elsewhere(target: str) -> None:
    assert inside(target) == ""
