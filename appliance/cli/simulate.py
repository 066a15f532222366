"""``cloister simulate``: a federation on one machine, on the engine's simulator or in one process."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import Progress

from appliance.cli import WORK_FAILED, WRONG_USE, simulate_sites

if TYPE_CHECKING:
    from appliance.cli.simulate_sites import Sites
    from trainer.compression import Compression
    from trainer.measuring import AnyMetrics
    from trainer.privacy.promise import Promise
    from trainer.simulation import Simulation
    from trainer.weights_io import Weights

_CACHE: Final = ".cloister-cache"
_STDOUT: Final = Path("-")


@dataclass(frozen=True)
class Order:
    """What to simulate, by the names of the simulators' arguments."""

    rounds: int
    strategy: str
    parameters: dict[str, float]
    seed: int
    initial: Weights | None
    privacy: Promise | None
    compression: Compression | None
    away: dict[int, list[str]]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="simulate")(simulate)


def _list(wanted: bool) -> None:
    """Name the strategies and stop, before other options are looked at."""
    if wanted:
        from trainer.peers import NAMES  # noqa: PLC0415 - only when the command runs

        typer.echo("\n".join(NAMES))
        raise typer.Exit


def simulate(  # noqa: PLR0913, PLR0917 - a command's options
    task: Annotated[Path, typer.Argument(help="Task file (JSON).")],
    site: Annotated[
        list[str],
        typer.Option(
            help="NAME=DIR[,LABELS]: DICOM files below DIR, labels in LABELS or DIR/labels.csv;"
            " of a segmentation or anomaly task, DICOM SEG masks below DIR."
        ),
    ],
    unseen: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=DIR[,LABELS]: a site that trains nothing; the final model is measured there."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=10_000)] = 10,
    strategy: Annotated[str, typer.Option(help="One of --list-strategies.")] = "fedavg",
    parameter: Annotated[list[str] | None, typer.Option(help="NAME=NUMBER of the strategy.")] = None,
    privacy: Annotated[
        str, typer.Option(help="Differential privacy as in a plan: a JSON object with mechanism, ...")
    ] = "",
    compression: Annotated[
        str,
        typer.Option(
            help="How updates are made small: float16, int8, top-k:share=0.05, sketch:bits=4, turns:count=4."
        ),
    ] = "",
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1)] = 0,
    away: Annotated[
        list[str] | None,
        typer.Option(help="NAME=ROUND or NAME=FIRST-LAST: a site that does not answer then."),
    ] = None,
    cache: Annotated[Path, typer.Option(help="Folder of prepared pictures, by hash.")] = Path(_CACHE),
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Loop in this process instead of the engine's simulator.")
    ] = False,
    encrypted: Annotated[
        bool,
        typer.Option("--encrypted", help="Sum updates encrypted (CKKS); always a loop in this process."),
    ] = False,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Train each site alone, and all pooled.")
    ] = False,
    initial: Annotated[
        Path | None, typer.Option(help="Start from this model (safetensors), as --out wrote it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the final model here (safetensors).")] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here as JSON; - is standard output.")
    ] = None,
    list_strategies: Annotated[
        bool, typer.Option("--list-strategies", is_eager=True, callback=_list, help="Name them and stop.")
    ] = False,
) -> None:
    """Run a federation on one machine, with the local rounds and strategies of a real one.

    It runs on the federation engine's simulator, a process per site; with --in-process it is a loop in one
    process that comes to the same model. What runs between peers is always that loop. Folders are read as
    they are: nothing is de-identified.
    """
    from trainer.errors import TrainerError  # noqa: PLC0415  only when the command runs
    from trainer.privacy.promise import check_promised  # noqa: PLC0415
    from trainer.weights_io import load, save  # noqa: PLC0415

    del list_strategies
    training = simulate_sites.places("--site", site)
    others = simulate_sites.places("--unseen", unseen or [], frozenset(training))
    numbers = _numbers(parameter or [])
    promise, packing = _promise(privacy), _compression(compression)
    missing = simulate_sites.absences(away or [], training, rounds)
    console = Console(stderr=True)
    try:
        sites = simulate_sites.read(task, training, others, cache, console)
        start = None if initial is None else load(initial)
        order = Order(rounds, strategy, numbers, seed, start, promise, packing, missing)
        _check(sites, order)
        check_promised(strategy, promise)
        spent = None if promise is None else _cost(sites, promise, strategy, rounds)
        result = _run(sites, order, in_process=in_process, encrypted=encrypted, console=console)
        figures = {**_figures(sites, strategy, result), "privacy": spent}
        figures["compression"] = None if packing is None else packing.to_json()
        figures["encrypted"] = encrypted
        if baselines:
            figures["baselines"] = _baselines(sites, rounds, seed, console)
        if out is not None:
            figures["model_sha256"] = save(out, result.weights)
    except TrainerError as error:
        log = getattr(error, "log", "")
        typer.echo(f"{log}\n{type(error).__name__}: {error}".lstrip(), err=True)
        raise typer.Exit(WORK_FAILED) from error
    _deliver(result, figures, as_json)


def _deliver(result: Simulation, figures: dict[str, Any], target: Path | None) -> None:
    text = json.dumps(figures, indent=2, allow_nan=False)
    if target == _STDOUT:
        typer.echo(text)
        return
    if target is not None:
        try:
            target.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            typer.echo(f"--json: {target.name} cannot be written ({error.strerror})", err=True)
            raise typer.Exit(WORK_FAILED) from error
    _print(result, figures)


def _check(sites: Sites, order: Order) -> None:
    """Refuse before anything is trained a start that does not fit, or sites that can have no model."""
    from trainer.first_model import first_model  # noqa: PLC0415
    from trainer.simulation import unseen_metrics  # noqa: PLC0415

    weights = first_model(sites.task, order.strategy, order.seed, order.initial)
    unseen_metrics(sites.task, order.strategy, weights, sites.unseen)


def _figures(sites: Sites, strategy: str, result: Simulation) -> dict[str, Any]:
    from trainer.simulation import bytes_by_site, unseen_metrics  # noqa: PLC0415

    unseen = unseen_metrics(sites.task, strategy, result.weights, sites.unseen)
    return {
        "sites": sites.reports,
        "strategy": strategy,
        "figure": "AUC" if sites.task.finding is not None else "Dice",
        **result.to_json(),
        "unseen": {site: metrics.to_json() for site, metrics in unseen.items()},
        "bytes": bytes_by_site(result.rounds),
    }


def _promise(text: str) -> Promise | None:
    """Read the option; a wrong one ends the command."""
    from trainer.privacy.promise import PrivacyError, Promise  # noqa: PLC0415

    if not text:
        return None
    try:
        return Promise.from_json(json.loads(text))
    except (ValueError, PrivacyError) as error:
        reason = str(error) if isinstance(error, PrivacyError) else "expected a JSON object"
        typer.echo(f"--privacy: {reason}", err=True)
        raise typer.Exit(WRONG_USE) from error


def _compression(text: str) -> Compression | None:
    """Read the option; a wrong one ends the command."""
    from trainer.compression import Compression, CompressionError  # noqa: PLC0415

    if not text:
        return None
    try:
        return Compression.parse(text)
    except CompressionError as error:
        typer.echo(f"--compression: {error}", err=True)
        raise typer.Exit(WRONG_USE) from error


def _cost(sites: Sites, promise: Promise, strategy: str, rounds: int) -> dict[str, Any]:
    """Say what the run costs at each site; raises PrivacyError where that is more than promised."""
    from trainer.privacy.promise import PrivacyError  # noqa: PLC0415

    promise.check_fits(sites.task, strategy)
    cost = promise.run_epsilon(sites.task, rounds)
    if cost > promise.epsilon:
        raise PrivacyError(f"epsilon: {rounds} rounds cost {cost:.4g}; expected at least that")
    return {**promise.to_json(), "epsilon_spent": cost, "noise_source": "seeded"}


def _numbers(options: list[str]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for option in options:
        name, _, text = option.partition("=")
        try:
            numbers[name] = float(text)
        except ValueError:
            typer.echo("--parameter: expected NAME=NUMBER", err=True)
            raise typer.Exit(WRONG_USE) from None
    return numbers


def _run(sites: Sites, order: Order, *, in_process: bool, encrypted: bool, console: Console) -> Simulation:
    from trainer.peers import PEERS  # noqa: PLC0415 - only when the command runs

    options = vars(order)
    if order.strategy in PEERS and not in_process:
        console.print(f"{order.strategy}: runs in this process, not on the engine's simulator")
    elif not in_process and not encrypted:
        from trainer.engine.simulator import simulate_on_engine  # noqa: PLC0415

        with console.status("the engine's simulator runs"):
            return simulate_on_engine(sites.task, sites.datasets, **options)
    from trainer.local_round import use_threads  # noqa: PLC0415
    from trainer.simulation import simulate as simulate_here  # noqa: PLC0415

    use_threads(1)
    with Progress(console=console, transient=True) as bars:
        bar = bars.add_task("rounds", total=order.rounds)

        def step(stage: str, done: int, total: int) -> None:
            del stage, total
            bars.update(bar, completed=done)

        return simulate_here(sites.task, sites.datasets, progress=step, encrypted=encrypted, **options)


def _baselines(sites: Sites, rounds: int, seed: int, console: Console) -> dict[str, Any]:
    from trainer.baselines import cross_evaluate, train_local, train_pooled  # noqa: PLC0415

    with console.status("each site alone, and all pooled"):
        task, datasets = sites.task, sites.datasets
        models = {
            f"local {name}": train_local(task, dataset, rounds=rounds, seed=seed)
            for name, dataset in datasets.items()
        }
        models["pooled"] = train_pooled(task, datasets, rounds=rounds, seed=seed)
        table = cross_evaluate(task, models, {**datasets, **sites.unseen})
    return {model: {site: metrics.to_json() for site, metrics in row.items()} for model, row in table.items()}


def _print(result: Simulation, figures: dict[str, Any]) -> None:
    if figures["privacy"] is not None:
        told = figures["privacy"]
        typer.echo(
            f"{told['mechanism']}: epsilon {told['epsilon_spent']:.3g} at delta {told['delta']:g} at a site"
        )
    for record in result.rounds:
        areas = "  ".join(f"{site} {_headline(item.metrics)}" for site, item in record.sites.items())
        of = f"{figures['figure']} of the incoming model"
        led = f"  led by {record.led_by}" * bool(record.led_by)
        gone = f"  away: {', '.join(record.away)}" * bool(record.away)
        typer.echo(f"round {record.number}: {of}  {areas}{led}{gone}  ({record.seconds:.1f} s)")
    last = {site: one.weight for site, one in result.rounds[-1].sites.items() if one.weight is not None}
    if last:
        typer.echo("weights in the last round  " + "  ".join(f"{site} {w:.3f}" for site, w in last.items()))
    for site, rounds in _suspects(result).items():
        typer.echo(f"{site}: its update was unlike the others' in {rounds} of {len(result.rounds)} rounds")
    final = "  ".join(f"{site} {_headline(metrics)}" for site, metrics in result.final.items())
    typer.echo(f"final model: {figures['figure']}  {final}")
    if figures["unseen"]:
        told = _estimates(figures, figures["unseen"])
        typer.echo(f"final model at sites that trained nothing: {figures['figure']}  {told}")
    for model, row in figures.get("baselines", {}).items():
        typer.echo(f"{model}: {figures['figure']}  {_estimates(figures, row)}")


def _estimates(figures: dict[str, Any], row: dict[str, Any]) -> str:
    name = figures["figure"].lower()
    return "  ".join(
        f"{site} {'-' if item[name] is None else format(item[name]['estimate'], '.3f')}"
        for site, item in row.items()
    )


def _suspects(result: Simulation) -> Counter[str]:
    from trainer.strategies import THRESHOLD  # noqa: PLC0415 - only when the command runs

    return Counter(
        site
        for record in result.rounds
        for site, one in record.sites.items()
        if one.anomaly_score is not None and one.anomaly_score > THRESHOLD
    )


def _headline(metrics: AnyMetrics) -> str:
    found = metrics.headline
    return "-" if found is None else f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]"
