from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import stat
import tarfile
from pathlib import Path

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from appliance import cli, viewer
from appliance.db.clinical import ClinicalLedgerEntry
from appliance.db.engine import reading
from appliance.node import open_clinical
from appliance.settings import load_settings

ENTRY = "app.bundle.0123456789abcdef.js"
CONTENT = {
    f"package/dist/{ENTRY}": b'start(); __webpack_require__.p = "/";',
    "package/dist/app.bundle.css": b"@font-face{src:url(/a34f9d1faa5f3315.woff2)}",
    "package/dist/a34f9d1faa5f3315.woff2": b"font",
    "package/dist/12.bundle.b4688cdbdd856b75.js": b"part()",
    "package/dist/12.bundle.b4688cdbdd856b75.js.map": b"{}",
    "package/dist/assets/images/CT-Bone.png": b"picture",
    "package/dist/ort/ort.min.js": b"another program",
    "package/dist/sw.js": b"keeps what it should not",
    "package/dist/index.html": b"<script>theirs()</script>",
    "package/dist/app-config.js": b"window.config = {elsewhere: true}",
    "package/package.json": b'{"scripts": {"postinstall": "evil"}}',
}


def pack(path: Path, content: dict[str, bytes], *extra: tarfile.TarInfo) -> viewer.Release:
    """Write an archive as npm does; return it as a release that is known."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra:
            archive.addfile(info)
    digest = hashlib.sha512(path.read_bytes()).digest()
    return viewer.Release("@test/viewer", "1.2.3", base64.b64encode(digest).decode())


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "clinical"
    folder.mkdir()
    return folder


def test_what_is_served_is_unpacked_and_moved_below_its_address(root: Path, tmp_path: Path) -> None:
    release = pack(tmp_path / "viewer.tgz", CONTENT)
    done = viewer.install(root, tmp_path / "viewer.tgz", release)
    plain = {name for name in done.files if not name.endswith(".gz")}
    assert plain == {
        ENTRY,
        "app.bundle.css",
        "a34f9d1faa5f3315.woff2",
        "12.bundle.b4688cdbdd856b75.js",
        "assets/images/CT-Bone.png",
    }
    assert done.entry == ENTRY
    assert b'__webpack_require__.p = "/viewer/";' in (done.folder / ENTRY).read_bytes()
    assert b"url(/viewer/a34f9d1faa5f3315.woff2)" in (done.folder / "app.bundle.css").read_bytes()
    assert stat.S_IMODE(done.folder.stat().st_mode) == 0o700
    assert viewer.installed(root, release) == done
    assert viewer.damaged(done) == []
    assert left(root) == ["viewer"]


def test_another_archive_is_refused_before_it_is_read(root: Path, tmp_path: Path) -> None:
    release = pack(tmp_path / "viewer.tgz", CONTENT)
    changed = bytearray((tmp_path / "viewer.tgz").read_bytes())
    changed[-1] ^= 1
    (tmp_path / "viewer.tgz").write_bytes(changed)
    with pytest.raises(viewer.ViewerError, match="SHA-512 differs"):
        viewer.install(root, tmp_path / "viewer.tgz", release)
    assert left(root) == []


def _special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "extra",
    [
        _special("package/dist/../../evil.js", tarfile.REGTYPE),
        _special("package/dist/assets/../../../evil.js", tarfile.REGTYPE),
        _special("package/dist//etc/evil.js", tarfile.REGTYPE),
        _special("package/dist/assets/passwd", tarfile.SYMTYPE),
        _special("package/dist/assets/passwd", tarfile.LNKTYPE),
        _special("package/dist/assets/pipe", tarfile.FIFOTYPE),
        _special("package/dist/assets/a\nb.png", tarfile.REGTYPE),
    ],
)
def test_an_archive_with_more_than_plain_files_writes_nothing_outside(
    root: Path, tmp_path: Path, extra: tarfile.TarInfo
) -> None:
    release = pack(tmp_path / "viewer.tgz", CONTENT, extra)
    try:
        done = viewer.install(root, tmp_path / "viewer.tgz", release)
    except viewer.ViewerError:
        assert left(root) == []
    else:
        assert not any("evil" in name or "passwd" in name for name in done.files)
    assert left(tmp_path) == ["clinical", "viewer.tgz"]


@pytest.mark.parametrize(
    ("name", "value"), [("MAX_FILES", 3), ("MAX_BYTES", 20), ("MAX_FILE_BYTES", 20), ("MAX_ARCHIVE_BYTES", 9)]
)
def test_an_archive_that_holds_too_much_is_refused(
    root: Path, tmp_path: Path, name: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = pack(tmp_path / "viewer.tgz", CONTENT)
    monkeypatch.setattr(viewer, name, value)
    with pytest.raises(viewer.ViewerError):
        viewer.install(root, tmp_path / "viewer.tgz", release)
    assert left(root) == []


def test_an_archive_without_the_starting_script_leaves_what_was_there(root: Path, tmp_path: Path) -> None:
    release = pack(tmp_path / "viewer.tgz", CONTENT)
    before = viewer.install(root, tmp_path / "viewer.tgz", release)
    other = pack(tmp_path / "other.tgz", {"package/dist/app.bundle.css": b""})
    with pytest.raises(viewer.ViewerError, match="starts the viewer"):
        viewer.install(root, tmp_path / "other.tgz", other)
    assert viewer.installed(root, release) == before
    assert left(root) == ["viewer"]


def test_a_file_that_is_no_archive_is_refused(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "viewer.tgz"
    path.write_bytes(b"no archive at all")
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    with pytest.raises(viewer.ViewerError, match="cannot be installed"):
        viewer.install(root, path, viewer.Release("@test/viewer", "1", digest))
    assert left(root) == []


def test_a_changed_or_lost_file_is_named_and_installing_again_repairs_it(root: Path, tmp_path: Path) -> None:
    release = pack(tmp_path / "viewer.tgz", CONTENT)
    done = viewer.install(root, tmp_path / "viewer.tgz", release)
    (done.folder / ENTRY).write_bytes(b"theirs()")
    (done.folder / "app.bundle.css").unlink()
    assert viewer.damaged(done) == [ENTRY, "app.bundle.css"]
    assert viewer.damaged(viewer.install(root, tmp_path / "viewer.tgz", release)) == []


def test_another_release_than_the_known_one_is_not_served(root: Path, tmp_path: Path) -> None:
    release = pack(tmp_path / "viewer.tgz", CONTENT)
    viewer.install(root, tmp_path / "viewer.tgz", release)
    assert viewer.installed(root, viewer.OHIF) is None
    assert viewer.remove(root)
    assert not viewer.remove(root)
    assert left(root) == []


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "n"
    words = ["init", str(path), "--port", "0", "--web-port", "0"]
    assert CliRunner().invoke(cli.build(), words).exit_code == 0
    return str(path / "cloister.toml")


def test_the_command_installs_checks_and_removes_and_the_ledger_says_so(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cloister(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli.build(), ["viewer", *words, "--config", config])
        return done.exit_code, done.output

    path = tmp_path / "viewer.tgz"
    release = pack(path, CONTENT)
    assert cloister("status") == (1, "@ohif/app 3.13.2: not installed\n")
    assert cloister("install", "--from", str(path))[0] == 1  # no release that this node knows
    monkeypatch.setattr(viewer, "OHIF", release)
    assert cloister("install", "--from", str(path)) == (0, "@test/viewer 1.2.3: installed at /viewer/\n")
    code, output = cloister("status", "--json")
    assert code == 0
    assert json.loads(output) == {
        "package": "@test/viewer",
        "version": "1.2.3",
        "installed": True,
        "damaged": [],
    }
    zone = open_clinical(load_settings(Path(config)))
    (zone.root / "viewer" / ENTRY).write_bytes(b"theirs()")
    assert cloister("status")[0] == 1
    monkeypatch.setattr(viewer, "OHIF", viewer.Release("@test/viewer", "2.0.0", "another"))
    assert cloister("status") == (1, "@test/viewer 2.0.0: another release is installed: install again\n")
    assert cloister("remove") == (0, "removed\n")
    assert cloister("remove") == (0, "not installed\n")
    with reading(zone.engine) as session:
        kinds = session.scalars(select(ClinicalLedgerEntry.kind)).all()
    assert kinds[-2:] == ["viewer.installed", "viewer.removed"]


def test_without_npm_the_command_says_what_to_do(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(viewer.ViewerError, match="--from"):
        viewer.download(viewer.OHIF, Path(config).parent)


def test_npm_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\nexit 7\n", encoding="ascii")
    npm.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(viewer.ViewerError, match="exit code 7"):
        viewer.download(viewer.OHIF, tmp_path)
