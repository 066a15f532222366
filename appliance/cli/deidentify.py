"""``cloister deidentify``: de-identify a file or a folder, without a node."""

import json
import os
import secrets
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from appliance import logs
from appliance.cli import WORK_FAILED, WRONG_USE

if TYPE_CHECKING:
    from anonymizer.engine import Context, Quarantined, Released

UNFORESEEN = "deidentify.unforeseen_error"
_KEY_BYTES = 32
_logger = logs.logger(__name__)


@dataclass(frozen=True)
class Stopped:
    """A file that did not come out, and why."""

    file: str
    reason_code: str
    reason: str


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("deidentify")(deidentify)


def deidentify(
    source: Annotated[Path, typer.Argument(metavar="IN", exists=True, help="A DICOM file or a folder.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A folder, or a file when IN is one.")],
    key_file: Annotated[
        Path | None,
        typer.Option(help="Secret of 32 bytes, made if missing. Without: a new one that is thrown away."),
    ] = None,
    project: Annotated[str, typer.Option(help="Research project: each has its own pseudonyms.")] = "default",
    max_date_shift_days: Annotated[
        int, typer.Option(min=1, max=3650, help="Dates of a patient move back by 1 to so many days.")
    ] = 365,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """De-identify by PS3.15's Basic Profile with modified dates; what cannot be judged is named.

    In a folder OUT files are named by what is new of them: OUT/PSEUDONYM/STUDY/SERIES/INSTANCE.dcm.
    Exit code 1 when nothing could be released.
    """
    from anonymizer.engine import Context  # noqa: PLC0415 - the start of other commands stays light
    from anonymizer.keys import ProjectKeys  # noqa: PLC0415 - see above

    if source.is_dir() and (target.is_file() or target.resolve().is_relative_to(source.resolve())):
        _wrong_use("OUT: expected a folder outside IN")
    context = Context(ProjectKeys.derive(_master(key_file), project), project, max_date_shift_days)
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    as_file = source.is_file() and not target.is_dir()
    folder = target.parent if as_file else target
    folder.mkdir(parents=True, exist_ok=True)
    stopped: list[Stopped] = []
    with typer.progressbar(files, label="de-identifying", file=sys.stderr) as queue:
        for path in queue:
            outcome = _one(path, folder, target if as_file else None, context)
            if outcome is not None:
                stopped.append(Stopped(str(path), outcome.reason_code, outcome.reason))
    _report(len(files) - len(stopped), stopped, as_json=as_json)
    if len(stopped) == len(files):
        raise typer.Exit(WORK_FAILED)


def _one(path: Path, folder: Path, target: Path | None, context: "Context") -> "Quarantined | None":
    """De-identify one file; return why it was stopped, or None."""
    from anonymizer.engine import Quarantined, deidentify_file  # noqa: PLC0415 - see deidentify

    temporary = folder / f".{secrets.token_hex(8)}.dcm"
    try:
        outcome = deidentify_file(path, temporary, context)
    except OSError as error:
        return Quarantined("unreadable", f"cannot be read or written ({error.strerror})")
    except Exception:
        _logger.exception(UNFORESEEN)
        temporary.unlink(missing_ok=True)
        return Quarantined("internal_error", "the anonymizer failed on this file")
    if isinstance(outcome, Quarantined):
        return outcome
    final = target if target is not None else _place(folder, outcome)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary.replace(final)
    return None


def _place(folder: Path, outcome: "Released") -> Path:
    parts = (outcome.pseudonym, outcome.study_instance_uid, outcome.series_instance_uid)
    return folder.joinpath(*parts, f"{outcome.sop_instance_uid}.dcm")


def _master(key_file: Path | None) -> bytes:
    if key_file is None:
        return secrets.token_bytes(_KEY_BYTES)
    try:
        descriptor = os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        content = key_file.read_bytes()
        if len(content) != _KEY_BYTES:
            _wrong_use(f"{key_file}: expected a secret of {_KEY_BYTES} bytes")
        return content
    except OSError as error:
        _wrong_use(f"{key_file}: cannot be made ({error.strerror})")
    content = secrets.token_bytes(_KEY_BYTES)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return content


def _wrong_use(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(WRONG_USE)


def _report(released: int, stopped: list[Stopped], *, as_json: bool) -> None:
    if as_json:
        typer.echo(
            json.dumps({"released": released, "quarantined": [asdict(each) for each in stopped]}, indent=2)
        )
        return
    for each in stopped:
        typer.echo(f"{each.file}: {each.reason_code}: {each.reason}")
    typer.echo(f"{released} released, {len(stopped)} quarantined")
    for code, count in Counter(each.reason_code for each in stopped).most_common():
        typer.echo(f"  {code}: {count}")
