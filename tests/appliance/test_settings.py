from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from appliance.errors import SettingsError
from appliance.settings import Settings, load_settings


def write(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "cloister.toml"
    path.write_text(content)
    return path


def test_an_empty_file_is_a_node_with_defaults_beside_it(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, ""))
    assert settings.data_root == (tmp_path / "data").resolve()
    assert (settings.name, settings.dicom.ae_title, settings.dicom.host) == ("node", "CLOISTER", "127.0.0.1")


def test_a_relative_data_root_is_meant_from_the_file(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, 'data_root = "../x"')).data_root == (tmp_path.parent / "x").resolve()


def test_the_environment_wins_over_the_file_field_by_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOISTER_DICOM__PORT", "104")
    settings = load_settings(write(tmp_path, '[dicom]\nport = 11112\nae_title = "WARD"'))
    assert (settings.dicom.port, settings.dicom.ae_title) == (104, "WARD")


def test_every_wrong_field_is_named_and_no_value_shown(tmp_path: Path) -> None:
    content = (
        'name = "a b"\nnonsense = 1\n[dicom]\nport = "SECRET"\nae_title = "A\\\\B"\n[training]\nthreads = 0\n'
    )
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path, content))
    text = str(caught.value)
    assert "5 wrong field(s)" in text
    for field in ("name", "nonsense", "dicom.port", "dicom.ae_title", "training.threads"):
        assert field in text
    assert "SECRET" not in text


@pytest.mark.parametrize("ae_title", ["", " ", "A" * 17, "A\\B", "Ä", "A\tB"])
def test_what_is_no_ae_title_is_refused(tmp_path: Path, ae_title: str) -> None:
    with pytest.raises(ValidationError):
        Settings(data_root=tmp_path, dicom={"ae_title": ae_title})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ('[clinical]\ndatabase_url = "nonsense-SECRET"', "clinical.database_url"),
        ('[research]\ndatabase_url = "mysql://u:SECRET@h/d"', "research.database_url"),
        ('[clinical]\ndatabase_url = "postgresql+psycopg2://u:SECRET@h/d"', "clinical.database_url"),
        ('[clinical]\nredis_url = "SECRET"', "clinical.redis_url"),
        ('[clinical]\nredis_url = "http://:SECRET@h:6379/0"', "clinical.redis_url"),
        ('[research]\nredis_url = "redis://h:port/SECRET"', "research.redis_url"),
        ('[web]\npublic_url = "cloister.SECRET.example"', "web.public_url"),
        ('[web]\npublic_url = "ftp://SECRET.example"', "web.public_url"),
        ('[web]\npublic_url = "https://SECRET.example:99999"', "web.public_url"),
        ('[web]\npublic_url = "https://SECRET.example/panel"', "web.public_url"),
        ('[web]\npublic_url = "https://[SECRET"', "web.public_url"),
        ('[web]\ntls_certificate = "SECRET.pem"', "web.tls_key"),
        ('[web]\ntls_key = "SECRET.pem"', "web.tls_key"),
        ("[assembly]\nmax_wait_s = 30", "assembly.max_wait_s"),
        ("[assembly]\nquiet_period_s = 7200", "assembly.max_wait_s"),
        ('[dicom]\nhost = "SECRET host"', "dicom.host"),
        ('[dicom]\nhost = ""', "dicom.host"),
        ('[dicom]\nprivate_sop_classes = "SECRET"', "dicom.private_sop_classes"),
        ('[dicom]\nprivate_sop_classes = ["1.2.SECRET"]', "dicom.private_sop_classes"),
        ('[dicom]\nprivate_sop_classes = ["1.2.840.10008.5.1.4.1.1.2"]', "dicom.private_sop_classes"),
        ('[web]\nhost = " "', "web.host"),
    ],
)
def test_what_would_fail_later_is_refused_at_once(tmp_path: Path, content: str, field: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path, content))
    assert f"  {field}: " in str(caught.value)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        '[clinical]\ndatabase_url = "postgresql+psycopg://u:p@h:5432/d"\nredis_url = "rediss://:p@h/1"',
        '[clinical]\ndatabase_url = "sqlite:////var/lib/x.db"\nredis_url = "unix:///run/redis.sock"',
        '[web]\npublic_url = "https://cloister.hospital.example:8443/"\nhost = "::"',
        '[web]\ntls_certificate = "a.pem"\ntls_key = "b.pem"',
        "[assembly]\nmax_wait_s = 60\nquiet_period_s = 60",
    ],
)
def test_what_a_hospital_sets_is_taken(tmp_path: Path, content: str) -> None:
    assert load_settings(write(tmp_path, content)).name == "node"


def test_a_section_in_the_environment_that_is_no_section_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOISTER_DICOM", "SECRET")
    with pytest.raises(SettingsError, match="CLOISTER_DICOM") as caught:
        load_settings(write(tmp_path, ""))
    assert "SECRET" not in str(caught.value)


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    settings = Settings(data_root=tmp_path)
    with pytest.raises(ValidationError):
        settings.name = "other"


def test_relative_paths_of_every_section_are_meant_from_the_file(tmp_path: Path) -> None:
    text = (
        '[dicom]\ntls_certificate = "tls/a.pem"\ntls_key = "/etc/a.key"\n[federation]\nworkspace = "site"\n'
    )
    settings = load_settings(write(tmp_path, text))
    assert settings.dicom.tls_certificate == (tmp_path / "tls" / "a.pem").resolve()
    assert settings.dicom.tls_key == Path("/etc/a.key")
    assert settings.federation.workspace == (tmp_path / "site").resolve()
