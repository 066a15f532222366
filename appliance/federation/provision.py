"""Set up a coordinator with the engine's own provisioning: root certificate, server, administrator."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from appliance import durable, keys
from appliance.db import migrate
from appliance.federation import policy
from appliance.federation.errors import CoordinatorError, ProvisioningError
from appliance.federation.joincode import HOST_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT_VALID_DAYS: Final = 3650
_DESCRIPTION: Final = "federation.json"


@dataclass(frozen=True)
class Federation:
    """A provisioned federation. ``host`` is also the name in the coordinator's certificate."""

    root: Path
    host: str
    port: int

    @property
    def database_url(self) -> str:
        """URL of the coordinator's database."""
        return f"sqlite:///{self.root / 'coordinator.db'}"

    @property
    def server_workspace(self) -> Path:
        """Workspace of the engine's server."""
        return self.root / "server"

    @property
    def admin_workspace(self) -> Path:
        """Certificate with which the run controller speaks to the engine's server."""
        return self.root / "admin"

    @property
    def runs(self) -> Path:
        """Checkpoints and job folders of the runs."""
        return self.root / "runs"


def create(root: Path, host: str = "localhost", port: int = 0) -> Federation:
    """Provision a federation in an empty or missing folder: its root certificate, and no site yet.

    Parameters
    ----------
    host : str
        Name by which sites reach the coordinator. ``localhost`` listens on the loopback interface alone.
    port : int
        0 takes one that is free now.

    Raises
    ------
    ProvisioningError
        If the folder is in use, the host is none, or the engine's provisioning fails.
    """
    host = host.lower()
    if not HOST_NAME.fullmatch(host):
        raise ProvisioningError("host: expected a host name or an IPv4 address")
    if root.exists() and any(root.iterdir()):
        raise ProvisioningError(f"{root}: not empty; expected a new folder")
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.chmod(0o700)
    federation = Federation(root.resolve(), host, port or _free_port())
    with tempfile.TemporaryDirectory(dir=root, prefix=".provision-") as folder:
        made = _engine_provision(Path(folder), federation)
        _install_server(federation, made / host)
        _install_admin(federation, made / policy.ADMIN)
        _keep_authority(federation, made.parent / "state")
    keys.create_research_keys(federation.root)  # the ledger's
    migrate.upgrade(federation.database_url, "coordinator")
    description = {**asdict(federation), "root": "."}
    write_private(root / _DESCRIPTION, json.dumps(description, indent=2).encode())
    return federation


def load(root: Path) -> Federation:
    """Read a provisioned folder.

    Raises
    ------
    CoordinatorError
        If it is none.
    """
    try:
        content = json.loads((root / _DESCRIPTION).read_text(encoding="utf-8"))
        return Federation(root.resolve(), str(content["host"]), int(content["port"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CoordinatorError(
            f"{root}: no federation; expected a folder made by 'coordinator init'"
        ) from error


def write_private(path: Path, content: bytes) -> None:
    """Write a file that its owner alone may read, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    durable.write_whole(path, content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON as :func:`write_private` writes bytes."""
    write_private(path, (json.dumps(content, indent=2) + "\n").encode())


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class _Quiet:
    """The engine's provisioning wants somebody to talk to; problems are kept, the rest is dropped."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def debug(self, message: str) -> None:
        """Drop."""

    def info(self, message: str) -> None:
        """Drop."""

    def warning(self, message: str) -> None:
        """Keep."""
        self.problems.append(message)

    def error(self, message: str) -> None:
        """Keep."""
        self.problems.append(message)


def _engine_provision(folder: Path, federation: Federation) -> Path:
    """Run the engine's builders; return the folder with one kit per participant."""
    from nvflare.lighter.entity import Participant, Project  # noqa: PLC0415
    from nvflare.lighter.impl.cert import CertBuilder  # noqa: PLC0415
    from nvflare.lighter.impl.static_file import StaticFileBuilder  # noqa: PLC0415
    from nvflare.lighter.impl.workspace import WorkspaceBuilder  # noqa: PLC0415
    from nvflare.lighter.provisioner import Provisioner  # noqa: PLC0415

    project = Project(policy.PROJECT, "Cloister federation", props={"api_version": 3})
    organization = policy.ORGANIZATION
    try:
        people = [
            Participant("server", federation.host, organization, {"fed_learn_port": federation.port}),
            Participant("admin", policy.ADMIN, organization, {"role": policy.ADMIN_ROLE}),
        ]
        for participant in people:
            project.add_participant(participant)
        builders = [
            WorkspaceBuilder(),
            StaticFileBuilder(config_folder="config", scheme=policy.SCHEME, require_signed_jobs=True),
            CertBuilder(root_valid_days=ROOT_VALID_DAYS),
        ]
        log = _Quiet()
        context = Provisioner(str(folder), builders).provision(project, logger=log)
    except (ValueError, RuntimeError) as error:
        raise ProvisioningError(f"the engine refused the federation: {error}") from error
    made = context.get("current_prod_dir")
    if made is None or context.get("build_error") or not Path(made).is_dir():
        raise ProvisioningError(f"the engine's provisioning failed: {'; '.join(log.problems)[:500]}")
    return Path(made)


def _install_server(federation: Federation, made: Path) -> None:
    workspace = federation.server_workspace
    shutil.copytree(made / "startup", workspace / "startup", ignore=shutil.ignore_patterns("*.sh"))
    (workspace / "transfer").mkdir(mode=0o700)
    local = workspace / "local"
    write_json(local / "resources.json", policy.coordinator_resources(federation.root / "engine"))
    _write_policies(local)
    for name in ("jobs", "snapshots"):
        (federation.root / "engine" / name).mkdir(mode=0o700, parents=True)


def _install_admin(federation: Federation, made: Path) -> None:
    workspace = federation.admin_workspace
    unwanted = shutil.ignore_patterns("*.sh", "*.ipynb", "*.txt")
    shutil.copytree(made / "startup", workspace / "startup", ignore=unwanted)
    shutil.copytree(made / "local", workspace / "local")
    (workspace / "transfer").mkdir(mode=0o700)
    (workspace / "startup" / "client.key").chmod(0o600)


def _write_policies(local: Path) -> None:
    write_json(local / "authorization.json", dict(policy.AUTHORIZATION))
    write_json(local / "privacy.json", dict(policy.PRIVACY))
    write_json(local / "log_config.json", policy.log_config())


def write_site_policies(local: Path) -> None:
    """Write what this appliance allows a coordinator, whatever that says."""
    write_json(local / "resources.json", policy.site_resources())
    _write_policies(local)


def _keep_authority(federation: Federation, state: Path) -> None:
    """Keep the root certificate and its key for sites that join later; no site's key stays here."""
    content = json.loads((state / "cert.json").read_text(encoding="utf-8"))
    authority = federation.root / "authority"
    write_private(authority / "root.pem", str(content["root_cert"]).encode("ascii"))
    write_private(authority / "root.key", str(content["root_pri_key"]).encode("ascii"))
