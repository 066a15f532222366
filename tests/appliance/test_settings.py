from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from appliance.errors import SettingsError
from appliance.settings import Settings, load_settings

if TYPE_CHECKING:
    from pathlib import Path


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


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    settings = Settings(data_root=tmp_path)
    with pytest.raises(ValidationError):
        settings.name = "other"
