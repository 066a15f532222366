"""The node's configuration: one frozen tree from ``cloister.toml`` and ``CLOISTER_*``.

What staff change at run time (peers, rules, users, models, approvals) lives in the database.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Set as AbstractSet
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as SourceError

from appliance.errors import SettingsError

Zone = Literal["clinical", "research"]
ModelT = TypeVar("ModelT", bound=BaseModel)

_UID: Final = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
_DATABASE_DRIVERS: Final = frozenset({"postgresql", "postgresql+psycopg", "sqlite", "sqlite+pysqlite"})


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


def _host(value: str) -> str:
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("expected an address to listen on, such as 127.0.0.1 or 0.0.0.0")
    return value


def _database_url(value: str) -> str:
    if value:
        from sqlalchemy import make_url  # noqa: PLC0415 - only where a URL is configured
        from sqlalchemy.exc import ArgumentError  # noqa: PLC0415 - as above

        expected = "expected postgresql+psycopg://user:password@host/database"
        try:
            driver = make_url(value).drivername
        except (ArgumentError, ValueError):
            raise ValueError(expected) from None
        if driver not in _DATABASE_DRIVERS:
            raise ValueError(expected)
    return value


def _redis_url(value: str) -> str:
    expected = "expected redis://:password@host:6379/0, or rediss:// or unix:///socket"
    if value and not _is_url(value, {"redis", "rediss"}) and not value.startswith("unix:///"):
        raise ValueError(expected)
    return value


def _public_url(value: str) -> str:
    if value and not (_is_url(value, {"http", "https"}) and value.count("/") - value.endswith("/") == 2):
        raise ValueError("expected https://name or https://name:port, without a path")
    return value


def _is_url(value: str, schemes: AbstractSet[str]) -> bool:
    try:
        parts = urlsplit(value)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _private_classes(value: Any) -> Any:
    """PS3.5 9.1 (UIDs); what lies under the root of the standard is not private."""
    if value == "all":
        return value
    if not isinstance(value, list | tuple):
        message = 'expected "all", or a list of UIDs, which may be empty'
        raise ValueError(message)  # noqa: TRY004 -- what pydantic shows beside the field
    for uid in value:
        whole = isinstance(uid, str) and len(uid) <= 64 and _UID.fullmatch(uid)
        if not whole or uid.startswith("1.2.840.10008."):
            raise ValueError("expected UIDs of private SOP classes: digits and dots, not under 1.2.840.10008")
    return value


def _day(value: str) -> str:
    try:
        date.fromisoformat(value if len(value) == 10 else f"2024-{value}")  # a leap year
    except ValueError:
        raise ValueError("expected a day such as 2026-12-25, or 12-25 for every year") from None
    return value


AETitle = Annotated[str, AfterValidator(_ae_title)]
Name = Annotated[str, AfterValidator(_name)]
Host = Annotated[str, AfterValidator(_host)]
DatabaseURL = Annotated[str, AfterValidator(_database_url)]
RedisURL = Annotated[str, AfterValidator(_redis_url)]
PublicURL = Annotated[str, AfterValidator(_public_url)]
Day = Annotated[str, AfterValidator(_day)]
PrivateClasses = Annotated[Literal["all"] | tuple[str, ...], BeforeValidator(_private_classes)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DICOMSettings(_Section):
    """The DICOM service class provider (clinical zone)."""

    ae_title: AETitle = "CLOISTER"
    host: Host = "127.0.0.1"
    port: Port = 11112
    max_associations: int = Field(default=20, ge=1, le=500)
    processes: int = Field(default=1, ge=1, le=32)
    network_timeout_s: Seconds = 60
    drain_s: float = Field(default=10, ge=0, le=120)
    min_free_mib: int = Field(default=512, ge=1)
    refuse_below_mib: int = Field(default=0, ge=0)
    pause_training_below_mib: int = Field(default=0, ge=0)
    max_instance_mib: int = Field(default=4096, ge=1)
    retired_sop_classes: bool = True
    private_sop_classes: PrivateClasses = "all"
    tls_port: Port = 0
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    tls_client_certificates: Literal["required", "optional", "none"] = "required"
    plain: bool = True

    @model_validator(mode="after")
    def _gives_way_in_order(self) -> Self:
        """Let training give way before associations, and these before instances."""
        refuse = self.refuse_below_mib or 2 * self.min_free_mib
        pause = self.pause_training_below_mib or max(4 * self.min_free_mib, refuse)
        if not self.min_free_mib <= refuse <= pause:
            raise ValueError(
                "expected dicom.min_free_mib, refuse_below_mib, pause_training_below_mib in ascending order"
            )
        return self

    @model_validator(mode="after")
    def _tls_has_what_it_needs(self) -> Self:
        """Name the field that is missing: half of a TLS configuration must not listen without TLS."""
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("expected dicom.tls_certificate and dicom.tls_key, or neither")
        if self.tls_port and self.tls_certificate is None:
            raise ValueError("expected dicom.tls_certificate and dicom.tls_key for dicom.tls_port")
        if self.tls_port and self.tls_client_certificates != "none" and self.tls_ca is None:
            raise ValueError('expected dicom.tls_ca, or dicom.tls_client_certificates = "none"')
        if not self.plain and not self.tls_port:
            raise ValueError("expected dicom.tls_port where dicom.plain is false")
        return self


class AssemblySettings(_Section):
    """When a study counts as complete."""

    quiet_period_s: Seconds = 60
    max_wait_s: Seconds = Field(default=3600, validate_default=True)

    @field_validator("max_wait_s")
    @classmethod
    def _not_before_the_quiet_period(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("quiet_period_s", value):
            raise ValueError("expected no less than quiet_period_s")
        return value


class ZoneSettings(_Section):
    """One zone's stores; an empty URL means the embedded SQLite file or Redis server."""

    database_url: DatabaseURL = ""
    redis_url: RedisURL = ""


class DeidentificationSettings(_Section):
    """The door out of the clinical zone."""

    project: Name = "default"
    profile: str = "research-default"
    max_date_shift_days: int = Field(default=365, ge=1, le=3650)
    four_eyes: bool = False


class InferenceSettings(_Section):
    """The inference worker."""

    enabled: bool = True
    threads: int = Field(default=1, ge=1, le=64)


class FetchSettings(_Section):
    """Studies pulled from archives."""

    enabled: bool = True
    max_studies: int = Field(default=2000, ge=1, le=50_000)
    silence_s: Seconds = 300


class ResearchSettings(_Section):
    """Local training."""

    threads: int = Field(default=1, ge=1, le=64)
    child_idle_s: Seconds = 60
    round_lease_s: Seconds = 60


class WebSettings(_Section):
    """The panel and the API."""

    enabled: bool = True
    host: Host = "127.0.0.1"
    port: Port = 8443
    public_url: PublicURL = ""
    tls_certificate: Path | None = None
    tls_key: Path | None = Field(default=None, validate_default=True)
    session_hours: float = Field(default=8, gt=0, le=24)

    @field_validator("tls_key")
    @classmethod
    def _beside_its_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if "tls_certificate" in info.data and (value is None) != (info.data["tls_certificate"] is None):
            raise ValueError("expected web.tls_certificate and web.tls_key, or neither")
        return value


class DICOMwebSettings(_Section):
    """DICOMweb on the panel's address, under ``/dicom-web``."""

    enabled: bool = True
    max_results: int = Field(default=1000, ge=1, le=10_000)
    max_stores: int = Field(default=8, ge=1, le=100)


class FederationSettings(_Section):
    """The site's side of the federation; ``workspace`` is the engine's folder, made by ``cloister join``."""

    enabled: bool = False
    site: Name = "site"
    workspace: Path | None = None
    minimum_cohort: int = Field(default=20, ge=1)
    max_model_mib: int = Field(default=512, ge=1, le=2048)
    require_privacy: bool = False
    share_studies: bool = False


class MonitoringSettings(_Section):
    """What is kept of traffic, and when a source counts as silent."""

    keep_traffic_days: int = Field(default=400, ge=60, le=3650)
    silence: bool = True
    holidays: tuple[Day, ...] = ()


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
    fetch: FetchSettings = FetchSettings()
    training: ResearchSettings = ResearchSettings()
    web: WebSettings = WebSettings()
    dicomweb: DICOMwebSettings = DICOMwebSettings()
    federation: FederationSettings = FederationSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
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
    except SourceError as error:
        wrong = [name for name in Settings.model_fields if f'"{name}"' in str(error)]
        names = ", ".join(f"CLOISTER_{name.upper()}" for name in wrong) or "CLOISTER_*"
        raise SettingsError(
            f"{path}: the environment's {names} is no JSON; expected CLOISTER_SECTION__FIELD for one field"
        ) from error
    except ValidationError as error:
        lines = [f"  {'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()]
        raise SettingsError(f"{path}: {len(lines)} wrong field(s)\n" + "\n".join(lines)) from error
    return _absolute(settings, path.parent)


def _absolute(settings: ModelT, folder: Path) -> ModelT:
    """Resolve relative paths against the file's folder, in every section."""
    changed: dict[str, Any] = {}
    for name, value in settings:
        if isinstance(value, _Section):
            changed[name] = _absolute(value, folder)
        elif isinstance(value, Path) and not value.is_absolute():
            changed[name] = (folder / value).resolve()
    return settings.model_copy(update=changed)
