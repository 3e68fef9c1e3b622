"""Show, prove and measure the line on a stack of its own."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenline.cli.common import JsonFile, out, write_json

app = typer.Typer()


@app.command()
def demo(
    seconds: Annotated[int, typer.Option(min=5, help="how long gateways send")] = 30,
    rate: Annotated[int, typer.Option(min=1, help="calls a second over all gateways")] = 250,
    accounts: Annotated[int, typer.Option(min=20, help="accounts that call")] = 500,
    keep: Annotated[
        bool, typer.Option("--keep", help="leave the data directory and say where it is")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Show the whole line at work in a temporary directory, then prove that nothing was lost.

    Exit code 0 only if the books balance. Example: tokenline demo --seconds 30 --json demo.json
    """
    from tokenline.demo.run import DemoOptions, run_demo  # noqa: PLC0415

    result = run_demo(DemoOptions(seconds=seconds, rate=rate, accounts=accounts, keep=keep), out)
    write_json(json_file, result)
    raise typer.Exit(0 if result["conservation"] else 1)


@app.command()
def prove(
    rounds: Annotated[int, typer.Option(min=1, help="how often something is killed")] = 20,
    pause: Annotated[float, typer.Option(min=0.5, help="seconds between kills, about")] = 4,
    rate: Annotated[int, typer.Option(min=1, help="calls a second over all gateways")] = 200,
    accounts: Annotated[int, typer.Option(min=20, help="accounts that call")] = 300,
    seed: Annotated[int, typer.Option(help="for the same order of events")] = 1,
    json_file: JsonFile = None,
) -> None:
    """Kill -9 workers, servers and gateways under load, then prove that nothing was lost or doubled.

    Meanwhile accounts with plans are topped up; each order is asked twice and must be answered alike,
    and the strict account must keep to what it has. Example: tokenline prove --rounds 20
    """
    from tokenline.demo.prove import ProveOptions, run_prove  # noqa: PLC0415

    options = ProveOptions(rounds=rounds, pause_s=pause, rate=rate, accounts=accounts, seed=seed)
    result = run_prove(options, out)
    write_json(json_file, result)
    raise typer.Exit(0 if result["proven"] else 1)


@app.command()
def bench(
    json_file: JsonFile = None,
    events: Annotated[
        int, typer.Option(min=10_000, help="events of the throughput runs")
    ] = 2_000_000,
    accounts: Annotated[int, typer.Option(min=100, help="accounts they are spread over")] = 100_000,
    only: Annotated[
        str,
        typer.Option(
            help="comma-separated parts: latency, gateway, charging, plans, limits, landing, skew, memory"
        ),
    ] = "",
) -> None:
    """Measure the line beside stock Faust and bare aiokafka, in one run.

    Example: tokenline bench --json bench.json
    """
    from tokenline.bench.run import BenchOptions, run_bench  # noqa: PLC0415

    parts = tuple(part.strip() for part in only.split(",") if part.strip())
    result = run_bench(BenchOptions(events=events, accounts=accounts, only=parts), out)
    write_json(json_file, result)
    raise typer.Exit(0 if not result["missed"] else 1)
