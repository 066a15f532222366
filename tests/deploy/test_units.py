"""The files that staff deploy with, checked by the tools that will read them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def _tool(name: str) -> str:
    path = shutil.which(
        name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:{Path(sys.executable).parent}"
    )
    if path is None:
        message = f"{name} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


def _run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=60)


def _units_with_a_real_program(folder: Path) -> list[Path]:
    """Copy the units; verify wants the program of ExecStart to exist, so it is pointed at a real one."""
    program = Path(sys.executable).parent / "cloister"
    for source in [*UNITS, DEPLOY / "systemd" / "cloister.target"]:
        text = source.read_text().replace("/opt/cloister/.venv/bin/cloister", str(program))
        (folder / source.name).write_text(text)
    return sorted(folder.iterdir())


def test_systemd_accepts_every_unit(tmp_path: Path) -> None:
    units = _units_with_a_real_program(tmp_path)
    assert len(units) == 3
    done = _run(_tool("systemd-analyze"), "verify", "--man=no", *map(str, units))
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_systemd_refuses_a_unit_with_a_wrong_line(tmp_path: Path) -> None:
    unit = tmp_path / "wrong.service"
    unit.write_text("[Service]\nExecStart=relative-program\n")
    assert _run(_tool("systemd-analyze"), "verify", "--man=no", str(unit)).returncode != 0


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_exposure_of_each_unit_stays_low(unit: Path) -> None:
    done = _run(
        _tool("systemd-analyze"), "security", "--offline=true", "--threshold=25", "--no-pager", str(unit)
    )
    assert done.returncode == 0, done.stdout[-400:]


def test_each_zone_has_its_own_user_and_cannot_see_the_other() -> None:
    users: dict[str, str] = {}
    for unit in UNITS:
        text = unit.read_text()
        zone = unit.stem.removeprefix("cloister-")
        other = {"clinical": "research", "research": "clinical"}[zone]
        users[zone] = re.findall(r"^User=(.+)$", text, re.MULTILINE)[0]
        assert f"InaccessiblePaths=-/var/lib/cloister/{other}" in text
        assert f"up --zone {zone}" in text
    assert users == {"clinical": "cloister-clinical", "research": "cloister-research"}


def test_the_linter_accepts_the_compose_file() -> None:
    rules = "{extends: default, rules: {line-length: {max: 130}, braces: {max-spaces-inside: 0}}}"
    done = _run(_tool("yamllint"), "--strict", "-d", rules, str(DEPLOY / "container" / "compose.yaml"))
    assert done.returncode == 0, done.stdout


def test_the_compose_file_runs_no_container_as_root_and_keeps_the_databases_inside() -> None:
    compose = yaml.safe_load((DEPLOY / "container" / "compose.yaml").read_text())
    for zone in ("clinical", "research"):
        service = compose["services"][zone]
        assert service["user"].split(":")[0] != "0"
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True
        assert compose["networks"][zone]["internal"] is True
        assert "ports" not in compose["services"][f"{zone}-db"]
    shared = set(compose["services"]["clinical"]["networks"]) & set(
        compose["services"]["research"]["networks"]
    )
    assert shared == set()


def test_the_container_copies_every_package() -> None:
    text = (DEPLOY / "container" / "Containerfile").read_text()
    for package in ("dicom_node", "anonymizer", "inference", "trainer", "appliance"):
        assert f"COPY {package} {package}" in text


def test_the_linter_accepts_the_containerfile() -> None:
    done = _run(_tool("hadolint"), "--no-color", str(DEPLOY / "container" / "Containerfile"))
    assert (done.returncode, done.stdout) == (0, "")


def test_the_container_makes_the_folders_that_the_units_have() -> None:
    lines = (DEPLOY / "systemd" / "cloister.tmpfiles").read_text().splitlines()
    wanted = set()
    for line in lines:
        if line.startswith("d /var/lib/"):
            _, path, mode, user, group, _ = line.split()
            wanted.add((path, mode, user, group))
    text = (DEPLOY / "container" / "Containerfile").read_text()
    made = re.findall(r"install -d -m (\d+)(?: -o (\S+))?(?: -g (\S+))? (\S+)", text)
    assert {(path, mode, user or "root", group or "root") for mode, user, group, path in made} == wanted


def test_every_variable_of_the_compose_file_is_in_its_example() -> None:
    text = (DEPLOY / "container" / "compose.yaml").read_text()
    named = set(re.findall(r"^(\w+)=", (DEPLOY / "container" / "env.example").read_text(), re.MULTILINE))
    assert set(re.findall(r"\$\{(\w+):\?", text)) == named


def test_nginx_accepts_the_proxy(tmp_path: Path) -> None:
    openssl = _tool("openssl")
    crt, key = tmp_path / "panel.crt", tmp_path / "panel.key"
    made = _run(
        *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=panel", "-days", "1"),
        *("-keyout", str(key), "-out", str(crt)),
    )
    assert made.returncode == 0, made.stderr
    site = (DEPLOY / "nginx" / "upstream.conf").read_text() + (DEPLOY / "nginx" / "cloister.conf").read_text()
    site = site.replace("/etc/cloister/tls/", f"{tmp_path}/")
    (tmp_path / "site.conf").write_text(site)
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/nginx.pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{ include {tmp_path}/site.conf; }}\n"
    )
    done = _run(_tool("nginx"), "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["deploy/install.sh", "tests/peers.sh", "tests/twice.sh", ".ci/run"])
def test_shellcheck_accepts_the_script(script: str) -> None:
    done = _run(_tool("shellcheck"), str(ROOT / script))
    assert done.returncode == 0, done.stdout
