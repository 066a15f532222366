"""``cloister protocol``: plans that ask to run at this site, and the decision about them."""

import getpass
import json
from typing import TYPE_CHECKING, Annotated, Final

import typer

from appliance.cli import WRONG_USE, ConfigOption, read_settings
from appliance.cli.protocol_preflight import preflight

if TYPE_CHECKING:
    from appliance.federation.views import ProtocolView

MIN_SHOWN: Final = 12
_Protocol = Annotated[str, typer.Argument(help="Row id, or the first 8 or more digits of the plan's hash.")]
_Reason = Annotated[str | None, typer.Option(help="Why; kept with the decision.")]
_AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Federation plans that ask to run at this site.", no_args_is_help=True)
    group.command("list")(list_all)
    group.command("show")(show)
    group.command("approve")(approve)
    group.command("refuse")(refuse)
    group.command("suspend")(suspend)
    group.command("preflight")(preflight)
    group.command("pause")(pause)
    group.command("resume")(resume)
    group.command("leave")(leave)
    app.add_typer(group, name="protocol")


def list_all(config: ConfigOption, as_json: _AsJSON = False) -> None:
    """List all protocols, those that wait for a decision first."""
    from appliance import research_client  # noqa: PLC0415 - other commands start without it
    from appliance.federation import views  # noqa: PLC0415 - as above

    found = research_client.connect(read_settings(config)).protocols()
    if as_json:
        typer.echo(json.dumps(views.encode(found), indent=2))
        return
    for view in found:
        typer.echo(_line(view))


def show(protocol: _Protocol, config: ConfigOption) -> None:
    """Print one protocol with its whole plan, as JSON."""
    from appliance import research_client  # noqa: PLC0415 - other commands start without it
    from appliance.federation import views  # noqa: PLC0415 - as above

    view = research_client.connect(read_settings(config)).protocol(protocol)
    typer.echo(json.dumps(views.encode(view), indent=2))


def approve(
    protocol: _Protocol,
    config: ConfigOption,
    reason: _Reason = None,
    shown: Annotated[
        str, typer.Option(help="The shown_sha256 that was printed, 12 or more digits; needed for a change.")
    ] = "",
) -> None:
    """Let a plan run at this site; one that changes what was approved before needs --shown."""
    from appliance import research_client  # noqa: PLC0415 - other commands start without it

    client = research_client.connect(read_settings(config))
    view = client.protocol(protocol)
    named = len(shown) >= MIN_SHOWN and view.shown_sha256.startswith(shown)
    if not named and (shown or (view.comparison is not None and view.comparison.differences)):
        _print_comparison(view)
        way = f"cloister protocol approve {protocol} --shown {view.shown_sha256[:MIN_SHOWN]}"
        typer.echo(f"to approve this: {way}", err=True)
        raise typer.Exit(WRONG_USE)
    typer.echo(_line(client.decide(view.id, "approve", _actor(), reason, view.shown_sha256)))


def refuse(protocol: _Protocol, config: ConfigOption, reason: _Reason = None) -> None:
    """Refuse a plan."""
    _decide(protocol, config, "refuse", reason)


def suspend(protocol: _Protocol, config: ConfigOption, reason: _Reason = None) -> None:
    """Stop an approved plan; it may be approved again."""
    _decide(protocol, config, "suspend", reason)


def pause(protocol: _Protocol, config: ConfigOption, reason: _Reason = None) -> None:
    """Stop at once, a round under way too, until it is resumed; the others go on without this site."""
    _decide(protocol, config, "pause", reason)


def resume(protocol: _Protocol, config: ConfigOption, reason: _Reason = None) -> None:
    """Take part again in a paused protocol's run."""
    _decide(protocol, config, "resume", reason)


def leave(protocol: _Protocol, config: ConfigOption, reason: _Reason = None) -> None:
    """Leave the protocol's run for good; what is under way stops, and no update leaves any more."""
    _decide(protocol, config, "leave", reason)


def _decide(protocol: str, config: ConfigOption, decision: str, reason: str | None) -> None:
    from appliance import research_client  # noqa: PLC0415 - other commands start without it

    client = research_client.connect(read_settings(config))
    typer.echo(_line(client.decide(protocol, decision, _actor(), reason)))


def _actor() -> str:
    return f"cli:{getpass.getuser()}"


def _print_comparison(view: "ProtocolView") -> None:
    """Print what is new against the last plan that was approved here, worst first."""
    if view.comparison is None:
        typer.echo(_line(view))
        return
    against = view.comparison
    typer.echo(f"{view.name}, against {against.name} ({against.plan_sha256[:12]}, {against.rule}):")
    for one in against.differences:
        typer.echo(f"  {one.grade:<9}  {one.words}: {json.dumps(one.old)} -> {json.dumps(one.new)}")


def _line(view: "ProtocolView") -> str:
    expiry = "" if view.expires_at is None else f", until {view.expires_at:%Y-%m-%d}"
    if view.max_hours is not None:
        expiry += f", {view.hours:.2f} of {view.max_hours:g} hours computed"
    if view.ethics_number:
        expiry += f", ethics number {view.ethics_number}"
    if view.reason:
        expiry += f"  ({view.reason})"
    return (
        f"{view.plan_sha256[:12]}  {view.state:<9}  {view.name}: {view.label}, {view.strategy}, "
        f"{view.total_rounds} rounds, cohort {view.cohort} (at least {view.minimum_cohort}), "
        f"update norm at most {view.max_update_norm:g}, weight at most {view.max_samples_per_site}{expiry}"
    )
