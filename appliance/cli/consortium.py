"""``cloister ledger ... --consortium``: the history that all sites of a federation share."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import WORK_FAILED, WRONG_USE, ConfigOption, read_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.consortium.block import Block
    from appliance.consortium.chain import Chain, Finding
    from appliance.consortium.exports import Exported
    from appliance.node import ResearchZone

CoordinatorOption = Annotated[
    Path | None, typer.Option("--coordinator", help="Folder of a coordinator instead of this site's replica.")
]
ConsortiumFlag = Annotated[
    bool, typer.Option("--consortium", help="The consortium's ledger, the only one that this command knows.")
]


def register(group: typer.Typer) -> None:
    """Add the commands to the group ``ledger``."""
    group.command("export")(export)
    group.command("show")(show)
    group.command("prove")(prove)
    group.command("check-proof")(check_proof)
    group.command("resolve")(resolve)


def export(
    config: ConfigOption,
    output: Annotated[Path, typer.Argument(help="File to write.")],
    coordinator: CoordinatorOption = None,
    consortium: ConsortiumFlag = True,
) -> None:
    """Write the replica as a file that other sites compare theirs with; no patient's value is in it."""
    from appliance.consortium import exports  # noqa: PLC0415 - other commands start without

    del consortium
    exported, _ = _open(config, coordinator)
    exports.write(output, exported)
    typer.echo(f"{output}: {len(exported.blocks)} blocks, {len(exported.heads)} countersigned heads")


def show(
    config: ConfigOption,
    coordinator: CoordinatorOption = None,
    consortium: ConsortiumFlag = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show who contributed to which round with which data version, and which model came of it."""
    from appliance.consortium import block  # noqa: PLC0415 - other commands start without

    del consortium
    exported, _ = _open(config, coordinator)
    read = [block.read_block(one.body) for one in exported.blocks]
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in read], indent=2))
        return
    for one in read:
        typer.echo(f"block {one.sequence}  {one.at[:19]}  {one.kind}  {_what(one)}")
        for given in one.contributions:
            data = given.statement.dataset[:12] if given.statement is not None else "-"
            standing = "counted" if given.accepted else "refused"
            typer.echo(f"    {given.site}: {standing}, {given.samples} samples, data {data or '-'}")
        for head in one.countersigned:
            typer.echo(f"    {head.site} countersigned {head.size} blocks")


def prove(
    config: ConfigOption,
    sequence: Annotated[int, typer.Argument(help="Number of the block.")],
    output: Annotated[Path, typer.Option("--output", help="File to write.")],
    since: Annotated[
        int | None, typer.Option(help="Prove too that the history goes on from this many blocks.")
    ] = None,
    coordinator: CoordinatorOption = None,
    consortium: ConsortiumFlag = True,
) -> None:
    """Write a proof that a block is in the history; whoever has the file needs no database to check it."""
    from appliance.consortium import exports  # noqa: PLC0415 - other commands start without

    del consortium
    exported, _ = _open(config, coordinator)
    chain, found = exports.check(exported)
    _end_on(found)
    content = exports.prove(chain, exported.blocks, sequence, since)
    content["countersigned"] = [asdict(one) for one in exported.heads if one.size == chain.size]
    output.write_text(json.dumps(content, indent=1), encoding="ascii")
    typer.echo(f"{output}: block {sequence} of {chain.size}, root {chain.head.root}")


def check_proof(path: Annotated[Path, typer.Argument(help="File of a proof.")]) -> None:
    """Check a proof; compare root and keys that it prints with those that you know from elsewhere."""
    from appliance.consortium import exports  # noqa: PLC0415 - other commands start without

    block, head, found, sites = exports.check_proof(path)
    _end_on(found)
    typer.echo(f"block {block.sequence} ({block.kind}) is among the {head.size} blocks of root {head.root}")
    typer.echo(f"coordinator's key {block.coordinator}; countersigned by {', '.join(sites) or 'nobody'}")


def resolve(
    config: ConfigOption,
    finding: Annotated[str, typer.Argument(help="Id of the finding, as verify prints it.")],
    actor: Annotated[str, typer.Option("--as", help="Who decides: a user's row id, or a code.")],
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Take up the coordinator's history anew; the old one is kept.")
    ] = False,
    consortium: ConsortiumFlag = True,
) -> None:
    """Note that a person has looked into a finding, so that rounds run here again."""
    from appliance import node  # noqa: PLC0415 - other commands start without
    from appliance.consortium.replica import Replica  # noqa: PLC0415

    del consortium
    Replica(node.open_research(read_settings(config))).resolve(finding, actor, adopt=adopt)
    typer.echo("resolved" + (", the next offer begins a new replica" if adopt else ""))


def verify(config: Path, coordinator: Path | None, against: list[Path], *, as_json: bool) -> None:
    """Check a replica, and compare it with others."""
    exported, zone = _open(config, coordinator)
    chain, found = _found(exported, zone, against)
    if as_json:
        report = {"ok": not found, **asdict(chain.head), "findings": [asdict(one) for one in found]}
        typer.echo(json.dumps(report, indent=2))
    else:
        state = "intact" if not found else "NOT INTACT"
        typer.echo(f"consortium: {len(exported.blocks)} blocks, {state}, root {chain.head.root}")
        for one in found:
            typer.echo(f"  block {one.sequence}: {one.code}: {one.message}")
    if found:
        raise typer.Exit(WORK_FAILED)


def _found(
    exported: "Exported", zone: "ResearchZone | None", against: list[Path]
) -> "tuple[Chain, list[Finding]]":
    from appliance.consortium import exports, sources  # noqa: PLC0415 - other commands start without

    chain, found = exports.check(exported)
    if zone is not None:
        found.extend(sources.own_findings(zone, chain))
    for path in against:
        found.extend(_named(path, exports.compare(chain, exported.blocks, exports.read(path))))
    return chain, found


def _named(path: Path, found: "Iterator[Finding]") -> "Iterator[Finding]":
    for one in found:
        yield replace(one, message=f"{one.message} ({path.name})")


def _open(config: Path, coordinator: Path | None) -> "tuple[Exported, ResearchZone | None]":
    from appliance import node  # noqa: PLC0415 - other commands start without
    from appliance.consortium import sources  # noqa: PLC0415
    from appliance.db.engine import make_engine  # noqa: PLC0415
    from appliance.federation import provision  # noqa: PLC0415

    if coordinator is not None:
        return sources.of_coordinator(make_engine(provision.load(coordinator).database_url)), None
    zone = node.open_research(read_settings(config))
    exported = sources.of_site(zone)
    if not exported.blocks:
        typer.echo("no block of a consortium's ledger has come to this site yet", err=True)
        raise typer.Exit(WRONG_USE)
    return exported, zone


def _what(one: "Block") -> str:
    from appliance.consortium.shown import share_words  # noqa: PLC0415 - other commands start without

    if one.kind == "members":
        return ", ".join(f"{change.site} {change.state}" for change in one.members)
    if one.share is not None:
        return share_words(one)
    return f"plan {one.plan[:12]} round {one.round} model {one.model_out[:12]}"


def _end_on(found: "list[Finding]") -> None:
    if found:
        for one in found:
            typer.echo(f"block {one.sequence}: {one.code}: {one.message}", err=True)
        raise typer.Exit(WORK_FAILED)
