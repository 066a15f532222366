"""``cloister deidentify``: de-identify a file, a folder or a medium, without a node."""

import json
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from appliance.cli import WORK_FAILED, WRONG_USE

if TYPE_CHECKING:
    from collections.abc import Callable

    from anonymizer.batch.report import Report
    from anonymizer.engine import Context

_KEY_BYTES = 32
_SHOWN = ("quarantined", "failed", "skipped")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("deidentify")(deidentify)


def deidentify(  # noqa: PLR0913 - each is an option of the command
    source: Annotated[
        Path, typer.Argument(metavar="IN", exists=True, help="A DICOM file, a folder or a DICOMDIR.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A folder, or a file when IN is one.")],
    *,
    profile: Annotated[
        str, typer.Option(help="A profile's name, or a TOML file.", show_default="research-default")
    ] = "",
    report: Annotated[Path | None, typer.Option(help="Write what became of each file (JSON).")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Number of processes.")] = 1,
    key_file: Annotated[
        Path | None,
        typer.Option(help="Secret of 32 bytes, made if missing. Without: a new one that is thrown away."),
    ] = None,
    project: Annotated[str, typer.Option(help="Research project: each has its own pseudonyms.")] = "default",
    max_date_shift_days: Annotated[
        int, typer.Option(min=1, max=3650, help="Dates of a patient move back by 1 to so many days.")
    ] = 365,
    hash_paths: Annotated[
        bool, typer.Option("--hash-paths", help="Name sources by keyed hashes, not by their paths.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """De-identify by a profile of PS3.15 Annex E; what cannot be judged is named.

    In a folder OUT files are named by what is new of them: OUT/PSEUDONYM/STUDY/SERIES/INSTANCE.dcm. With
    --key-file a run that was stopped goes on when it is repeated. Exit code 0 when all came out, 1 when
    anything was quarantined or failed, 2 for wrong use.
    """
    from anonymizer.batch.hashes import keyed_hash  # noqa: PLC0415 - see above
    from anonymizer.batch.run import path_secret  # noqa: PLC0415 - the start of other commands stays light

    _check_places(source, target, key_file, report)
    context = _context(profile, key_file, project, max_date_shift_days)
    secret = path_secret(context)
    name = (lambda path: keyed_hash(secret, os.fsencode(path))) if hash_paths else str
    outcome = _run(source, target, context, jobs, key_file is not None, lambda end: _write(end, report, name))
    _tell(outcome, name, as_json=as_json)
    if not outcome.succeeded:
        raise typer.Exit(WORK_FAILED)


def _check_places(source: Path, target: Path, key_file: Path | None, report: Path | None) -> None:
    from anonymizer.batch.below import contains  # noqa: PLC0415 - see deidentify

    if contains(source, target) or contains(target, source):
        _wrong_use("OUT: expected a folder or file outside IN, and IN outside OUT")
    if source.is_dir() and target.exists() and not target.is_dir():
        _wrong_use("OUT: expected a folder, since IN is one")
    if key_file is not None and contains(target, key_file):
        _wrong_use("--key-file: expected outside OUT, since who has it knows the patients again")
    if report is None:
        return
    if contains(source, report):
        _wrong_use("--report: expected a file outside IN")
    if report.is_dir() or not (report.parent.is_dir() or report.parent.resolve() == target.resolve()):
        _wrong_use(f"--report: {report}: expected a file in a folder that exists")


def _context(profile: str, key_file: Path | None, project: str, max_date_shift_days: int) -> "Context":
    from anonymizer.engine import Context  # noqa: PLC0415 - see deidentify
    from anonymizer.errors import AnonymizerError  # noqa: PLC0415 - see deidentify
    from anonymizer.keys import ProjectKeys  # noqa: PLC0415 - see deidentify
    from anonymizer.profiles import DEFAULT, load_profile  # noqa: PLC0415 - see deidentify

    try:
        chosen = load_profile(profile or DEFAULT)
        keys = ProjectKeys.derive(_master(key_file), project)
    except AnonymizerError as error:
        _wrong_use(str(error))
    return Context(keys, project, max_date_shift_days, profile=chosen)


def _run(
    source: Path,
    target: Path,
    context: "Context",
    jobs: int,
    resumable: bool,
    on_end: "Callable[[Report], None]",
) -> "Report":
    from anonymizer.batch.journal import RefusedRunError  # noqa: PLC0415 - see deidentify
    from anonymizer.batch.run import deidentify_tree  # noqa: PLC0415 - see deidentify
    from anonymizer.errors import AnonymizerError  # noqa: PLC0415 - see deidentify

    try:
        with typer.progressbar(length=1, label="de-identifying", file=sys.stderr) as bar:

            def advance(done: int, of: int) -> None:
                bar.length = of
                bar.update(done - bar.pos)

            return deidentify_tree(
                source,
                target,
                context,
                jobs=jobs,
                resumable=resumable,
                on_progress=advance,
                on_end=on_end,
            )
    except RefusedRunError as error:
        _wrong_use(str(error))
    except AnonymizerError as error:
        _failed(f"IN: {error}")
    except OSError as error:
        _failed(f"{error.filename or 'IN or OUT'}: {error.strerror}")
    except KeyboardInterrupt:
        advice = "repeat the command to go on" if resumable else "without --key-file it cannot go on"
        _failed(f"stopped; each file in OUT is whole; {advice}")


def _write(end: "Report", path: Path | None, name: "Callable[[str], str]") -> None:
    from anonymizer.batch.report import write_report  # noqa: PLC0415 - see deidentify

    if path is None:
        return
    try:
        write_report(end.document(name), path)
    except OSError as error:
        _failed(f"--report: {path}: {error.strerror}")


def _master(key_file: Path | None) -> bytes:
    if key_file is None:
        return secrets.token_bytes(_KEY_BYTES)
    try:
        descriptor = os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _existing(key_file)
    except OSError as error:
        _wrong_use(f"{key_file}: cannot be made ({error.strerror})")
    content = secrets.token_bytes(_KEY_BYTES)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return content


def _existing(key_file: Path) -> bytes:
    try:
        content = key_file.read_bytes()
    except OSError as error:
        _wrong_use(f"{key_file}: cannot be read ({error.strerror})")
    if len(content) != _KEY_BYTES:
        _wrong_use(f"{key_file}: expected a secret of {_KEY_BYTES} bytes")
    return content


def _wrong_use(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(WRONG_USE)


def _failed(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(WORK_FAILED)


def _tell(outcome: "Report", name: "Callable[[str], str]", *, as_json: bool) -> None:
    if outcome.stopped:
        typer.echo(f"stopped: {outcome.stopped}; each file in OUT is whole", err=True)
    if as_json:
        typer.echo(json.dumps(outcome.document(name), indent=2))
        return
    for entry in outcome.files:
        if entry.outcome in _SHOWN:
            typer.echo(f"{_printable(name(entry.source))}: {entry.outcome}: {entry.code}: {entry.reason}")
    typer.echo(", ".join(f"{count} {kind}" for kind, count in outcome.counts.items()))
    for code, count in outcome.reasons.items():
        typer.echo(f"  {code}: {count}")


def _printable(path: str) -> str:
    """Return a path that cannot write to the terminal's controls."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in path
    )
