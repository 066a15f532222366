"""``cloister infer``: one model package on one study, without a node."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli import WORK_FAILED, WRONG_USE, ConfigOption, read_settings
from appliance.errors import ApplianceError
from appliance.keys import read_public_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from pydicom import Dataset

    from inference.package import Package
    from inference.session import ModelSession


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="infer")(infer)


def infer(
    package: Annotated[Path, typer.Argument(help="Model package: folder or zip.")],
    study: Annotated[Path, typer.Argument(help="DICOM file, or folder with the files of one study.")],
    out: Annotated[Path, typer.Argument(help="Folder for the results.")],
    config: ConfigOption,
    signer: Annotated[
        Path | None,
        typer.Option(help="Public key (PEM) of who must have signed. [default: the node's research zone]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Run a model package on a study and write Structured Report and Secondary Capture, or segmentations.

    The package is verified as on a node: signature, hashes, a limited process of its own.
    """
    from inference.deviations import NO_FINDING  # noqa: PLC0415  only when the command runs
    from inference.errors import InferenceError  # noqa: PLC0415

    signers = {"given": _given(signer)} if signer is not None else _of_node(config)
    if not package.exists() or not study.exists():
        typer.echo(f"{package if not package.exists() else study}: does not exist", err=True)
        raise typer.Exit(WRONG_USE)
    try:
        figures = _infer(package, study, out, signers)
    except InferenceError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise typer.Exit(WORK_FAILED) from error
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
        return
    for finding in figures["findings"]:
        side = "at or above" if finding["called"] else "below"
        typer.echo(
            f"{finding['meaning']}: {finding['probability']:.3f} ({side} threshold {finding['threshold']:g})"
        )
    for row in figures["segments"]:
        volume = "" if row["volume_ml"] is None else f", {row['volume_ml']:.3f} mL"
        volume += ", cut off at the edge of what the model sees" if row["cut_off"] else ""
        if row["score"] is not None:
            highest, mean = (100 * row["score"][name] for name in ("highest", "mean"))
            volume += f", highest {highest:.1f} %, mean {mean:.1f} % of black to white"
        typer.echo(f"series {row['series']}: {row['meaning']}: {row['voxels']} voxels{volume}")
    if "deviation_threshold" in figures:
        share = 100 * figures["deviation_threshold"]
        typer.echo(f"marked above {share:.1f} % of black to white: {NO_FINDING}")
    if figures["unreadable"]:
        typer.echo(f"left out, since the model could not read it: {figures['unreadable']} of the study")
    for name in figures["files"]:
        typer.echo(name)


def _given(signer: Path) -> Ed25519PublicKey:
    try:
        return read_public_key(signer)
    except ApplianceError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WRONG_USE) from error


def _of_node(config: Path) -> dict[str, Ed25519PublicKey]:
    from appliance.models import trusted_signers  # noqa: PLC0415

    if not config.is_file():
        typer.echo(f"no --signer given and no configuration at {config}; expected one of them", err=True)
        raise typer.Exit(WRONG_USE)
    return trusted_signers(read_settings(config).crossing_in)


def _infer(package: Path, study: Path, out: Path, signers: dict[str, Ed25519PublicKey]) -> dict[str, Any]:
    from inference.package import load_package  # noqa: PLC0415
    from inference.results.identity import check_same_patient  # noqa: PLC0415
    from inference.session import ModelSession  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="cloister-infer-") as folder:
        verified = load_package(package, Path(folder) / "package", signers)
        paths, headers = _fitting(verified, study)
        check_same_patient(headers)
        session = ModelSession(verified)
    ask = _segments if verified.card.segmenting else _findings
    results, found = ask(session, paths, _origin(verified, headers))
    out.mkdir(parents=True, exist_ok=True)
    seen: Counter[str] = Counter()
    names = []
    for kind, ds in results:
        seen[kind] += 1
        suffix = kind if seen[kind] == 1 else f"{kind}-{seen[kind]}"
        target = out / f"{verified.card.name}.{suffix}.dcm".replace("/", "_")
        ds.save_as(target, enforce_file_format=True)
        names.append(str(target))
    return {
        "model": verified.card.name,
        "version": verified.card.version,
        "package_sha256": verified.sha256,
        "signer": verified.signer,
        "findings": [],
        "segments": [],
        **found,
        "files": names,
    }


def _fitting(package: Package, study: Path) -> tuple[list[Path], list[Dataset]]:
    from inference.errors import PreprocessingError, ResultError  # noqa: PLC0415
    from inference.study import fits, read_instance  # noqa: PLC0415

    files = [study] if study.is_file() else sorted(path for path in study.rglob("*") if path.is_file())
    found: list[tuple[Path, Dataset]] = []
    for path in files:
        try:
            header = read_instance(path, with_pixels=False)
        except PreprocessingError as error:
            typer.echo(f"{path.name}: {error.message}; left out", err=True)
            continue
        found.append((path, header))
    if len({str(header.StudyInstanceUID) for _, header in found}) > 1:
        raise ResultError("result.study", "the folder holds several studies; expected one")
    taken = [(path, header) for path, header in found if fits(header, package.card)]
    if not taken:
        modalities = ", ".join(package.card.input.modalities)
        raise ResultError("result.empty", f"no instance that the model takes; expected modality {modalities}")
    return [path for path, _ in taken], [header for _, header in taken]


def _origin(package: Package, headers: list[Dataset]) -> dict[str, Any]:
    """Return what every result says of where it comes from; every run makes instances of its own."""
    made_at = datetime.now(UTC)
    run = "\n".join([made_at.isoformat(), *sorted(str(header.SOPInstanceUID) for header in headers)])
    return {
        "card": package.card,
        "package_sha256": package.sha256,
        "revision_id": hashlib.sha256(run.encode()).hexdigest(),
        "made_at": made_at,
        "software_version": version("cloister"),
    }


def _findings(
    session: ModelSession, paths: list[Path], origin: dict[str, Any]
) -> tuple[list[tuple[str, Dataset]], dict[str, Any]]:
    from appliance.serving import finding_rows  # noqa: PLC0415
    from inference.results.context import ResultContext  # noqa: PLC0415
    from inference.study import answer_study, build_results, nothing_read  # noqa: PLC0415

    outcome = answer_study(session, paths, lambda: None)
    if not outcome.answers:
        raise nothing_read(outcome.unreadable)
    context = ResultContext(answers=outcome.answers, unreadable=len(outcome.unreadable), **origin)
    found = {
        "pictures": len(outcome.answers),
        "unreadable": len(outcome.unreadable),
        "findings": finding_rows(context),
    }
    return list(build_results(context, outcome.paths).items()), found


def _segments(
    session: ModelSession, paths: list[Path], origin: dict[str, Any]
) -> tuple[list[tuple[str, Dataset]], dict[str, Any]]:
    from appliance.serving import segment_rows  # noqa: PLC0415
    from inference.results.context import SegmentContext  # noqa: PLC0415
    from inference.study import build_segment_results, nothing_read, segment_study  # noqa: PLC0415

    outcome = segment_study(session, paths, lambda: None)
    if not outcome.marked:
        raise nothing_read(outcome.unreadable)
    context = SegmentContext(marked=outcome.marked, unreadable=len(outcome.unreadable), **origin)
    return build_segment_results(context), {**segment_rows(context), "unreadable": len(outcome.unreadable)}
