"""The node's configuration: one frozen tree from ``cloister.toml`` and ``CLOISTER_*``.

What staff change at run time (peers, rules, users, models, approvals) lives in the database.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from appliance.errors import SettingsError

Zone = Literal["clinical", "research"]


def _ae_title(value: str) -> str:
    """PS3.5 table 6.2-1, AE: at most 16 printable characters, no backslash."""
    if (
        not value.strip()
        or len(value) > 16
        or not value.isascii()
        or not value.isprintable()
        or "\\" in value
    ):
        raise ValueError("expected an AE title: 1 to 16 printable ASCII characters without a backslash")
    return value.strip()


def _name(value: str) -> str:
    if not value or not value.replace("-", "").isalnum() or not value.isascii() or len(value) > 40:
        raise ValueError("expected a name: 1 to 40 letters, digits or hyphens")
    return value


AETitle = Annotated[str, AfterValidator(_ae_title)]
Name = Annotated[str, AfterValidator(_name)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DICOMSettings(_Section):
    """The DICOM service class provider (clinical zone)."""

    ae_title: AETitle = "CLOISTER"
    host: str = "127.0.0.1"
    port: Port = 11112
    max_associations: int = Field(default=20, ge=1, le=500)
    network_timeout_s: Seconds = 60
    min_free_mib: int = Field(default=512, ge=1)
    max_instance_mib: int = Field(default=4096, ge=1)


class AssemblySettings(_Section):
    """When a study counts as complete."""

    quiet_period_s: Seconds = 60
    max_wait_s: Seconds = 3600


class ZoneSettings(_Section):
    """One zone's stores; an empty URL means the embedded SQLite file or Redis server."""

    database_url: str = ""
    redis_url: str = ""


class DeidentificationSettings(_Section):
    """The door out of the clinical zone."""

    project: Name = "default"
    max_date_shift_days: int = Field(default=365, ge=1, le=3650)


class InferenceSettings(_Section):
    """The inference worker."""

    enabled: bool = True
    threads: int = Field(default=1, ge=1, le=64)


class ResearchSettings(_Section):
    """Local training."""

    threads: int = Field(default=1, ge=1, le=64)
    child_idle_s: Seconds = 60
    round_lease_s: Seconds = 60


class WebSettings(_Section):
    """The panel and the API."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port = 8443
    public_url: str = ""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    session_hours: float = Field(default=8, gt=0, le=24)


class FederationSettings(_Section):
    """The site's side of the federation; ``kit`` is the engine's startup kit folder."""

    enabled: bool = False
    site: Name = "site"
    kit: Path | None = None
    minimum_cohort: int = Field(default=20, ge=1)
    max_model_mib: int = Field(default=512, ge=1, le=2048)


class LoggingSettings(_Section):
    """Logs go to standard error as JSON lines (or plain, for a person at a terminal)."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["json", "plain"] = "json"


class Settings(BaseSettings):
    """The whole tree. Build it with :func:`load_settings`."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="CLOISTER_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    name: Name = "node"
    data_root: Path
    dicom: DICOMSettings = DICOMSettings()
    assembly: AssemblySettings = AssemblySettings()
    clinical: ZoneSettings = ZoneSettings()
    research: ZoneSettings = ZoneSettings()
    deidentification: DeidentificationSettings = DeidentificationSettings()
    inference: InferenceSettings = InferenceSettings()
    training: ResearchSettings = ResearchSettings()
    web: WebSettings = WebSettings()
    federation: FederationSettings = FederationSettings()
    logging: LoggingSettings = LoggingSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file, whose content comes as init arguments."""
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings

    def zone_root(self, zone: Zone) -> Path:
        """Storage root of one zone."""
        return self.data_root / zone

    @property
    def crossing_out(self) -> Path:
        """Spool that the clinical zone writes and the research zone reads."""
        return self.data_root / "crossing" / "to_research"

    @property
    def crossing_in(self) -> Path:
        """Spool of candidate model packages: the research zone writes, the clinical zone reads."""
        return self.data_root / "crossing" / "to_clinical"


def load_settings(path: Path) -> Settings:
    """Read ``cloister.toml`` and the environment.

    Parameters
    ----------
    path : Path
        The TOML file. A relative ``data_root`` or path in it is resolved against the file's folder.

    Raises
    ------
    SettingsError
        Naming every field that is wrong, what is wrong with it, never its value.
    """
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); expected a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not a TOML file ({error})") from error
    content.setdefault("data_root", str(path.parent / "data"))
    try:
        settings = Settings(**content)
    except ValidationError as error:
        lines = [f"  {'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()]
        raise SettingsError(f"{path}: {len(lines)} wrong field(s)\n" + "\n".join(lines)) from error
    if settings.data_root.is_absolute():
        return settings
    return settings.model_copy(update={"data_root": (path.parent / settings.data_root).resolve()})
