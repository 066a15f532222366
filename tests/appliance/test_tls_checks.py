from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from appliance import doctor, tls_checks
from appliance.settings import DICOMSettings, Settings
from tests.dicom_node.authority import Authority

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.health import Check


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    folder = tmp_path / "ca"
    folder.mkdir()
    return Authority(folder)


def looked(tmp_path: Path, **dicom: Any) -> dict[str, Check]:
    settings = Settings(data_root=tmp_path, dicom=DICOMSettings(**dicom))
    return {check.name: check for check in tls_checks.checks(settings)}


def secured(authority: Authority, **issue: Any) -> dict[str, Any]:
    issued = authority.issue("cloister", **issue)
    return {
        "tls_port": 2762,
        "tls_certificate": issued.certificate,
        "tls_key": issued.key,
        "tls_ca": authority.file,
    }


def test_a_good_certificate_is_well(tmp_path: Path, authority: Authority) -> None:
    found = looked(tmp_path, **secured(authority))
    assert all(check.ok and not check.warning for check in found.values())
    assert set(found) == {"dicom tls", "dicom certificate", "dicom key", "dicom port"}


def test_a_certificate_that_ends_soon_is_to_be_seen_to_and_one_that_ended_is_wrong(
    tmp_path: Path, authority: Authority
) -> None:
    soon = looked(tmp_path, **secured(authority, days=(-10, 29)))["dicom certificate"]
    assert (soon.ok, soon.warning) == (True, True)
    assert not looked(tmp_path, **secured(authority, days=(-10, -1)))["dicom certificate"].ok
    assert not looked(tmp_path, **secured(authority, days=(-10, 31)))["dicom certificate"].warning


def test_a_key_that_others_may_read_is_wrong(tmp_path: Path, authority: Authority) -> None:
    values = secured(authority)
    values["tls_key"].chmod(0o644)
    assert not looked(tmp_path, **values)["dicom key"].ok
    values["tls_key"].chmod(0o640)
    assert looked(tmp_path, **values)["dicom key"].ok


def test_files_that_do_not_belong_together_are_wrong(tmp_path: Path, authority: Authority) -> None:
    values = {**secured(authority), "tls_key": authority.issue("other").key}
    assert not looked(tmp_path, **values)["dicom tls"].ok


@pytest.mark.parametrize(
    ("dicom", "warned"),
    [
        ({}, False),
        ({"host": "::1"}, False),
        ({"host": "0.0.0.0"}, True),  # noqa: S104 - nothing listens
        ({"host": "10.1.2.3"}, True),
    ],
)
def test_a_port_without_tls_beyond_this_machine_is_to_be_seen_to(
    tmp_path: Path, dicom: dict[str, Any], warned: bool
) -> None:
    assert looked(tmp_path, **dicom)["dicom port"].warning is warned


def test_a_node_that_listens_with_tls_alone_is_well(tmp_path: Path, authority: Authority) -> None:
    found = looked(tmp_path, host="0.0.0.0", plain=False, **secured(authority))  # noqa: S104 - as above
    assert not found["dicom port"].warning


@pytest.mark.parametrize(
    ("dicom", "said"),
    [
        ({"tls_port": 2762}, "tls_certificate"),
        ({"tls_certificate": "a.pem"}, "tls_key"),
        ({"tls_port": 2762, "tls_certificate": "a.pem", "tls_key": "a.key"}, "tls_ca"),
        ({"plain": False}, "tls_port"),
    ],
)
def test_half_a_tls_configuration_is_refused(dicom: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DICOMSettings(**dicom)


def test_the_doctor_looks_at_it(node_settings: Settings) -> None:
    assert "dicom port" in {check.name for check in doctor.examine(node_settings).checks}
