"""The viewer, OHIF: a release that this node knows, brought from its npm package into the data folder.

Only the release named here is installed and served: its archive must have this very digest, so neither a
registry nor a file from elsewhere can put other scripts before a signed-in person.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ADDRESS: Final = "/viewer/"
FOLDER: Final = "viewer"  # in the clinical zone
MANIFEST: Final = "installed.json"
ZIPPED: Final = ".gz"
MAX_ARCHIVE_BYTES: Final = 128 << 20
MAX_FILE_BYTES: Final = 64 << 20
MAX_BYTES: Final = 512 << 20
MAX_FILES: Final = 2000
DOWNLOAD_S: Final = 900

_INSIDE: Final = "package/dist/"
_NAME: Final = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*\Z")
_ENTRY: Final = re.compile(r"app\.bundle\.[0-9a-f]+\.js\Z")
_FOLDERS: Final = frozenset({"assets", "dicom-microscopy-viewer"})
_KINDS: Final = frozenset({".css", ".js", ".svg", ".wasm", ".woff2"})
# Its own start page and settings (ours are made), service workers, and sign-in with others' services.
_UNUSED: Final = frozenset(
    {
        "app-config.js",
        "es6-shim.min.js",
        "google.js",
        "init-service-worker.js",
        "oidc-client.min.js",
        "polyfill.min.js",
        "sw.js",
    }
)
_COMPRESSED: Final = frozenset({".css", ".js", ".svg", ".wasm"})
_AT: Final = b'__webpack_require__.p = "%s";'
# The package is built for the root of a host. And one study without any modality (an attribute without a
# value, as PS3.18 F.2.5 writes it) would keep its list of studies from being shown at all.
_CHANGED: Final[Mapping[str, tuple[tuple[bytes, bytes], ...]]] = MappingProxyType(
    {
        ".js": (
            (_AT % b"/", _AT % ADDRESS.encode()),
            (b"i < ModalitiesInStudy.Value.length;", b"i < (ModalitiesInStudy.Value || []).length;"),
        ),
        ".css": ((b"url(/", b"url(%s" % ADDRESS.encode()),),
    }
)


class ViewerError(ApplianceError):
    """The viewer cannot be installed; the text says why."""


@dataclass(frozen=True)
class Release:
    """A release of the viewer's package."""

    package: str
    version: str
    sha512: str  # of the archive, base64 as npm writes it


OHIF: Final = Release(
    "@ohif/app",
    "3.13.2",
    "WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA==",
)


@dataclass(frozen=True)
class Installed:
    """What lies in the data folder."""

    folder: Path
    version: str
    entry: str  # the script that starts it
    sha256: str  # of the manifest, which has the digests of all files
    files: Mapping[str, str] = field(repr=False)  # name -> SHA-256 of its bytes as they are served


def download(release: Release, folder: Path) -> Path:
    """Fetch the package's archive with npm, without running anything of it.

    Raises
    ------
    ViewerError
        Without npm, or when it fails.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise ViewerError(
            "npm is not installed here: fetch the package on another machine "
            f"(npm pack {release.package}@{release.version}) and name its file with --from"
        )
    name = f"{release.package}@{release.version}"
    argv = [npm, "pack", name, "--ignore-scripts", "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(argv, cwd=folder, capture_output=True, timeout=DOWNLOAD_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ViewerError(f"npm: no package after {DOWNLOAD_S} s") from error
    found = sorted(folder.glob("*.tgz"))
    if done.returncode or len(found) != 1:
        raise ViewerError(
            f"npm could not fetch {name}: exit code {done.returncode}; "
            "where the node has no way out, name a file with --from"
        )
    return found[0]


def install(root: Path, archive: Path, release: Release) -> Installed:
    """Put the viewer into the data folder, in the place of what was there.

    Parameters
    ----------
    root : Path
        Of the clinical zone.
    archive : Path
        The package as npm packs it.
    release : Release

    Raises
    ------
    ViewerError
        When the archive is not that release, or cannot be read or written.
    """
    folder = root / FOLDER
    try:
        _check(archive, release)
        fresh = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", dir=root))
        try:
            _write(archive, fresh, release)
            remove(root)
            fresh.rename(folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise ViewerError(f"the viewer cannot be installed: {type(error).__name__}") from error
    done = installed(root, release)
    if done is None:
        raise ViewerError("the viewer was not installed: expected its manifest")
    return done


def remove(root: Path) -> bool:
    """Remove the viewer; return whether there was one."""
    folder = root / FOLDER
    if not exists(root):
        return False
    gone = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", dir=root))
    folder.rename(gone / FOLDER)
    shutil.rmtree(gone)
    return True


def exists(root: Path) -> bool:
    """Whether a viewer lies in the data folder, of whatever release."""
    return (root / FOLDER).exists()


def installed(root: Path, release: Release) -> Installed | None:
    """Return the viewer that lies in the data folder, if it is the release that this node serves."""
    folder = root / FOLDER
    try:
        manifest = (folder / MANIFEST).read_bytes()
        content = json.loads(manifest)
        found = Installed(
            folder,
            str(content["version"]),
            str(content["entry"]),
            hashlib.sha256(manifest).hexdigest(),
            MappingProxyType(dict(content["files"])),
        )
        return found if content["sha512"] == release.sha512 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def damaged(viewer: Installed) -> list[str]:
    """Return the names of files that are not what was installed."""
    return [name for name, digest in viewer.files.items() if _sha256(viewer.folder / name) != digest]


def _check(archive: Path, release: Release) -> None:
    if archive.stat().st_size > MAX_ARCHIVE_BYTES:
        raise ViewerError(f"the archive: expected at most {MAX_ARCHIVE_BYTES >> 20} MiB")
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    if base64.b64encode(digest).decode("ascii") != release.sha512:
        raise ViewerError(f"the archive is not {release.package} {release.version}: its SHA-512 differs")


def _write(archive: Path, folder: Path, release: Release) -> None:
    files: dict[str, str] = {}
    for name, content in _contents(archive):
        changed = _changed(name, content)
        path = folder / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(changed)
        files[name] = hashlib.sha256(changed).hexdigest()
        if path.suffix in _COMPRESSED:
            zipped = gzip.compress(changed, 6, mtime=0)
            path.with_name(path.name + ZIPPED).write_bytes(zipped)
            files[name + ZIPPED] = hashlib.sha256(zipped).hexdigest()
    entries = [name for name in files if _ENTRY.match(name)]
    if len(entries) != 1 or _AT % ADDRESS.encode() not in (folder / entries[0]).read_bytes():
        raise ViewerError("the archive: expected one script that starts the viewer")
    manifest: dict[str, Any] = {
        "version": release.version,
        "sha512": release.sha512,
        "entry": entries[0],
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _contents(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Give the files that are served, each by its name below the viewer's address."""
    total = 0
    with tarfile.open(archive, "r:gz") as opened:
        for number, member in enumerate(opened):
            total += member.size
            if number >= MAX_FILES or total > MAX_BYTES or member.size > MAX_FILE_BYTES:
                raise ViewerError("the archive: it holds more than a viewer")
            name = member.name.removeprefix(_INSIDE)
            if name == member.name or not _is_served(name):
                continue
            source = opened.extractfile(member) if member.isreg() and _NAME.match(name) else None
            if source is None:
                raise ViewerError("the archive: expected plain files with plain names")
            yield name, source.read()


def _is_served(name: str) -> bool:
    path = PurePosixPath(name)
    if path.suffix == ".map":
        return False
    if len(path.parts) > 1:
        return path.parts[0] in _FOLDERS or ".." in path.parts
    return path.suffix in _KINDS and name not in _UNUSED


def _changed(name: str, content: bytes) -> bytes:
    for theirs, ours in _CHANGED.get(PurePosixPath(name).suffix, ()):
        content = content.replace(theirs, ours)
    return content


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
