"""The ``sweeper`` command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from sweeper.core.errors import (
    InputError,
    Problem,
    RunFailedError,
    StopRequested,
    SweeperError,
    is_of_storage,
    storage_reason,
)

if TYPE_CHECKING:
    from sweeper.core.objective import Goal
    from sweeper.store.paths import ResultPaths

app = typer.Typer(
    name="sweeper",
    help="Fair fine-tuning benchmarks: every model at its tuned best, at equal effort.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="study file")]
StudyOrResults = Annotated[
    str, typer.Argument(metavar="STUDY.yaml|RESULTS", help="study file, result folder, or its s3:// or gs:// URL")
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as search.num_trials=8")]
Launched = Annotated[str, typer.Argument(metavar="NAME", help="what `sweeper launch` printed")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for machines")]
AcceptChange = Annotated[bool, typer.Option("--accept-change", help="go on although the study has changed; recorded")]


@app.command()
def init(
    data: Annotated[
        Path, typer.Argument(help="data file, folder with one sub-folder a class, Pascal VOC folder, or COCO file")
    ],
    checkpoints: Annotated[list[str], typer.Argument(help="checkpoints to compare: folders or hub ids")],
    name: Annotated[str | None, typer.Option(help="the study's name")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write here instead of stdout")] = None,
) -> None:
    """Write a commented study file for a data set and checkpoints."""
    from sweeper.workflows.init import propose

    base = (output or Path("study.yaml")).resolve().parent
    if not base.is_dir():
        raise InputError(Problem(str(output), "its folder must exist", "no such folder", "make it, or name another"))
    text = propose(data, checkpoints, name=name, base=base)
    if output is None:
        sys.stdout.write(text)
        return
    if output.exists():
        raise InputError(Problem(str(output), "must not exist yet", "a file", "name another, or remove it"))
    output.write_text(text)
    typer.echo(str(output))


@app.command()
def check(
    study: StudyFile,
    overrides: Overrides = None,
    fix: Annotated[bool, typer.Option("--fix", help="write a cleaned copy beside the data, never over it")] = False,
    as_json: AsJson = False,
) -> None:
    """Read the data and report classes, duplicates, leakage and other dangers."""
    from sweeper.spec.load import load_study
    from sweeper.workflows.inspect import check_data, fix_data

    spec = load_study(study, overrides or ())
    report, written = fix_data(spec) if fix else (check_data(spec), [])
    typer.echo(json.dumps(report.as_dict(), indent=2) if as_json else report.as_text())
    for path in written:
        typer.echo(f"written: {path}", err=True)


@app.command()
def plan(
    study: Annotated[str | None, typer.Argument(metavar="[STUDY.yaml]", help="study file; a replay needs none")] = None,
    overrides: Overrides = None,
    probe: Annotated[bool, typer.Option(help="measure an epoch of each model")] = True,
    replay: Annotated[
        str | None, typer.Option(metavar="RESULTS", help="search the recorded curves of an earlier study instead")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="searches of a replay, with different seeds")] = 10,
    as_json: AsJson = False,
) -> None:
    """Print trials, epochs and estimated time of each model; spends nothing but a short probe.

    With --replay: what a budget would have found on the curves of an earlier study, without training.
    """
    changes = list(overrides or ())
    if replay is not None:
        from sweeper.workflows.replay import replay_study

        own = None if study is None or "=" in study else Path(study)  # else the recorded study, perhaps changed
        changes = [study, *changes] if own is None and study is not None else changes
        found = replay_study(_results(replay), own, changes, repeats)
        typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else found.as_text())
        return
    from sweeper.spec.load import load_study
    from sweeper.workflows.inspect import plan_study

    if study is None:
        raise InputError(Problem("STUDY.yaml", "must be given", "nothing", "name the study file, or --replay RESULTS"))
    report = plan_study(load_study(Path(study), changes), probe=probe)
    typer.echo(json.dumps(report.as_dict(), indent=2) if as_json else report.as_text())


@app.command()
def run(
    study: StudyFile,
    overrides: Overrides = None,
    accept_change: AcceptChange = False,
    more_seeds: Annotated[int, typer.Option(min=0, help="confirmation seeds to add to a finished study")] = 0,
    profile: Annotated[bool, typer.Option("--profile", help="write where the time of the lanes went")] = False,
    as_json: AsJson = False,
) -> None:
    """Search, confirm and report. Safe to call again: goes on where it was."""
    from sweeper.spec.load import load_study
    from sweeper.workflows.sweep import run as run_study

    spec = load_study(study, overrides or ())
    _finish(
        lambda: run_study(spec, accept_change=accept_change, more_seeds=more_seeds, profiled=profile),
        study,
        overrides or (),
        as_json,
    )


@app.command()
def resume(study: StudyOrResults, accept_change: AcceptChange = False, as_json: AsJson = False) -> None:
    """Go on with an interrupted study."""
    from sweeper.workflows.sweep import resume as resume_study

    _finish(lambda: resume_study(study, accept_change=accept_change), study, (), as_json)


@app.command()
def status(
    study: Annotated[str, typer.Argument(metavar="STUDY.yaml|RESULTS|NAME", help="study, results (or URL), or launch")],
    as_json: AsJson = False,
) -> None:
    """Say where a run or a launch stands; works from another terminal."""
    from sweeper.clusters.launches import is_launch

    report: Any
    if not Path(study).exists() and is_launch(study):
        from sweeper.workflows.launching import launch_status

        report = launch_status(study)
    else:
        from sweeper.workflows.inspect import study_status

        report = study_status(_results(study))
    typer.echo(json.dumps(report.as_dict(), indent=2) if as_json else report.as_text())


@app.command()
def report(study: StudyOrResults, as_json: AsJson = False) -> None:
    """Rebuild the report from the results alone."""
    from sweeper.report.build import build_report

    paths = _readable(study)
    root = paths.root
    page = build_report(root)
    paths.storage.publish(paths.report)
    if as_json:
        typer.echo((root / "report" / "leaderboard.json").read_text())
    else:
        _print_leaderboard(json.loads((root / "report" / "leaderboard.json").read_text()))
        typer.echo(f"report: {page}")


@app.command()
def suite(
    file: Annotated[Path, typer.Argument(metavar="SUITE.yaml", help="suite file")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="folder; left out: suites/NAME")] = None,
    gather: Annotated[bool, typer.Option("--gather", help="run nothing, use the results that are there")] = False,
    as_json: AsJson = False,
) -> None:
    """Run or gather several studies into one leaderboard over tasks."""
    from sweeper.workflows.suite import run_suite

    done = run_suite(file, output, only_gather=gather)
    if as_json:
        typer.echo(json.dumps(done.found, indent=2))
        return
    for sentence in done.sentences:
        typer.echo(sentence)
    typer.echo(f"suite: {done.folder / 'index.html'}")


@app.command()
def reproduce(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="a result folder")],
    model: Annotated[str | None, typer.Option(help="which model; left out: the first that was confirmed")] = None,
    as_json: AsJson = False,
) -> None:
    """Train one confirmation again from what was saved: identical, within seed noise, or different (exit code 1)."""
    from sweeper.workflows.reproduce import reproduce as run_again

    found = run_again(results, model)
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else found.as_text())
    if found.verdict == "different":
        raise typer.Exit(1)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="RESULTS_A", help="a result folder or its URL")],
    second: Annotated[str, typer.Argument(metavar="RESULTS_B", help="another")],
    accept_difference: Annotated[
        bool,
        typer.Option("--accept-difference", help="compare although data or metric differ; the difference is named"),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Set two studies of the same data side by side."""
    from sweeper.workflows.compare import compare as compare_results
    from sweeper.workflows.results import readable

    found = compare_results(readable(first).root, readable(second).root, accept_difference=accept_difference)
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else found.as_text())


@app.command()
def track(
    study: StudyOrResults,
    mode: Annotated[str | None, typer.Option(help="online, offline or shared; in the place of the study's")] = None,
) -> None:
    """Bring a finished or crashed study into its trackers; what is there already is not written again."""
    from sweeper.workflows.tracking import replay

    if mode not in (None, "online", "offline", "shared"):
        raise InputError(Problem("--mode", "must be online, offline or shared", str(mode), "choose one of them"))
    for line in replay(_results(study), mode=mode) or ["tracked"]:
        typer.echo(line)


@app.command()
def export(
    study: StudyOrResults,
    target: Annotated[Path, typer.Argument(help="an empty or new folder")],
    as_json: AsJson = False,
) -> None:
    """Write best configurations, checkpoints, tables and report into a folder."""
    from sweeper.workflows.export import export as export_results

    written = [str(path) for path in export_results(_results(study), target)]
    typer.echo(json.dumps(written, indent=2) if as_json else "\n".join(written))


@app.command(name="import")
def import_(
    source: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="table, Optuna storage or Ray Tune folder; several: a file a model"),
    ],
    kind: Annotated[str, typer.Option("--as", help="optuna | wandb | ray | csv | parquet | jsonl")],
    output: Annotated[Path, typer.Option("--output", "-o", help="a new or empty folder")],
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="FIELD=COLUMN",
            help="where the guess is wrong: model, value (validation), test, trial_id, epoch, seed, params, "
            "metric=NAME; may be repeated",
        ),
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", metavar="COLUMN=VALUE", help="only these rows; may be repeated")
    ] = None,
    goal: Annotated[str | None, typer.Option(help="maximize | minimize; left out: from the metric's name")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn trials that another tool ran into a result folder, and report what they allow to say (docs/import.md)."""
    from sweeper.workflows.importing import import_results

    if goal not in (None, "maximize", "minimize"):
        raise InputError(Problem("--goal", "must be maximize or minimize", str(goal), "choose one of them"))
    done = import_results(source, kind, output, mapping or (), cast("Goal | None", goal), where or ())
    for note in done.notes:
        logging.getLogger("sweeper").warning(note)
    board = json.loads((output / "report" / "leaderboard.json").read_text())
    curves = json.loads((output / "report" / "tuning_curves.json").read_text())
    if as_json:
        found: dict[str, Any] = {"results": str(output), "columns": done.columns.fields, "params": done.columns.params}
        found |= {"num_trials": done.num_trials, "num_confirmations": done.num_confirmations, "leaderboard": board}
        typer.echo(json.dumps(found | {"winner": curves["winner"], "leads": curves["leads"]}, indent=2))
        return
    _print_leaderboard(board)
    for sentence in (*curves["sentences"], *curves["caveats"]):
        typer.echo(sentence)
    typer.echo(f"report: {output / 'report' / 'index.html'}")


@app.command()
def launch(
    study: StudyFile,
    overrides: Overrides = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="PROFILE", help="a profile's name or file; left out: the study's own")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print exactly what would be submitted")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="print its output until it ends")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a study to a cluster and return its name at once."""
    from sweeper.workflows.launching import planned, submit

    with planned(study, overrides or (), cluster) as plan:
        if dry_run:
            typer.echo(plan.as_text())
            return
        record = submit(plan)
    typer.echo(json.dumps({"name": record.name, "results": record.results}) if as_json else record.name)
    if follow:
        _follow(record.name)


@app.command()
def logs(
    name: Launched,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until it ends")] = False,
) -> None:
    """Print a launch's output."""
    from sweeper.workflows.launching import launch_logs

    if follow:
        _follow(name)
        return
    for line in launch_logs(name, follow=False):
        typer.echo(line)


@app.command()
def cancel(name: Launched) -> None:
    """Stop a launch; finished work is kept, and launching the study again goes on."""
    from sweeper.workflows.launching import cancel as cancel_launch

    cancel_launch(name)


@app.command()
def fetch(
    name: Launched,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="a new folder; left out: results/STUDY")] = None,
) -> None:
    """Bring a launch's results home."""
    from sweeper.workflows.launching import fetch as fetch_launch

    typer.echo(str(fetch_launch(name, output)))


@app.command()
def doctor(
    study: Annotated[Path | None, typer.Argument(metavar="[STUDY.yaml]", help="asks for what it needs, too")] = None,
    cluster: Annotated[str, typer.Option(metavar="PROFILE", help="a profile's name or file")] = "local",
    as_json: AsJson = False,
) -> None:
    """Examine this machine or a cluster before anything is spent; exit code 2 when something must be mended."""
    from sweeper.workflows.launching import examine

    diagnosis = examine(cluster, study)
    typer.echo(json.dumps(diagnosis.as_dict(), indent=2) if as_json else diagnosis.as_text())
    if diagnosis.exit_code:
        raise typer.Exit(diagnosis.exit_code)


@app.command()
def schema() -> None:
    """Print the JSON schema of study files, for editors."""
    from sweeper.spec.load import study_schema

    typer.echo(json.dumps(study_schema(), indent=2))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app(arguments, standalone_mode=True)
    except SweeperError as error:
        print(error, file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(StopRequested.exit_code)
    except Exception as error:
        if not (is_of_storage(error) or isinstance(error, PermissionError)):
            raise
        reason = storage_reason(error, "the storage")
        print(f"{reason}; files that were there before are whole: mend that, then call it again", file=sys.stderr)  # noqa: T201
        sys.exit(RunFailedError.exit_code)


def _finish(work: Any, study: str | Path, overrides: Sequence[str], as_json: bool) -> None:
    """Run ``work``, print the leaderboard; an interruption prints how to go on."""
    try:
        result = work()
    except (StopRequested, KeyboardInterrupt):
        command = "run" if Path(study).is_file() else "resume"
        words = " ".join([str(study), *overrides])
        print(f"stopped; all finished work is kept. Go on with: sweeper {command} {words}", file=sys.stderr)  # noqa: T201
        raise
    if as_json:
        typer.echo(json.dumps(result.leaderboard, indent=2))
    else:
        _print_leaderboard(result.leaderboard)
        typer.echo(f"report: {result.path / 'report' / 'index.html'}")


def _follow(name: str) -> None:
    """Print a launch's output until it ends; exit 1 when it did not succeed."""
    from sweeper.workflows.launching import launch_logs, wait_state

    for line in launch_logs(name, follow=True):
        typer.echo(line)
    state = wait_state(name)
    if state.value != "SUCCEEDED":
        raise RunFailedError(f"{name}: {state.value}; see `sweeper status {name}`")


def _results(study: str) -> str | Path:
    """Return the result folder, or its URL, that a study file, folder or URL names."""
    if "://" in study:
        return study
    if Path(study).is_dir():
        return Path(study)
    from sweeper.spec.load import load_study
    from sweeper.workflows.study import result_paths

    paths = result_paths(load_study(study))
    return paths.url or paths.root


def _readable(study: str) -> ResultPaths:
    """Return the result folder that ``study`` names, with its files at hand."""
    from sweeper.workflows.results import readable

    return readable(_results(study))


def _print_leaderboard(entries: list[dict[str, Any]]) -> None:
    if not any(entry["tuned"]["seeds"] for entry in entries) and any(
        entry["validation"] is not None for entry in entries
    ):
        _print_chosen(entries)
        return
    headers = ("rank", "model", "tuned", "default", "trials", "device-seconds", "verdicts")
    rows = []
    for entry in entries:
        verdicts = "; ".join(f"{v['verdict']} {v['other']}" for v in entry["verdicts"])
        cells = [_interval(entry[config]) for config in ("tuned", "default")]
        spent = "-" if entry["device_seconds"] is None else f"{entry['device_seconds']:.0f}"
        numbers = [str(entry["num_trials"]), spent]
        rows.append([str(entry["rank"]), entry["model"], *cells, *numbers, verdicts])
    _print_table("test split, mean of the confirmation seeds [95% interval]", headers, rows)


def _print_chosen(entries: list[dict[str, Any]]) -> None:
    """Print models without confirmation runs, imported ones mostly: each one's trial that validation chose."""
    tested = any(entry["tuned"]["mean"] is not None for entry in entries)
    headers = ("rank", "model", "best validation", *(["its test"] if tested else []), "trials")
    rows = []
    for entry in entries:
        value = entry["validation"]
        cells = [f"{value:.4f}" if value is not None else "-", *([_interval(entry["tuned"])] if tested else [])]
        rows.append([str(entry["rank"]), entry["model"], *cells, str(entry["num_trials"])])
    ranked = "test score of the trial that validation chose" if tested else "best validation score, for want of a test"
    _print_table(f"no confirmation runs: ranked by the {ranked}; no claim follows", headers, rows)


def _print_table(title: str, headers: Sequence[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for header in headers:
        table.add_column(header, justify="right" if header in ("rank", "trials", "device-seconds") else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140, markup=False).print(table)


def _interval(scores: dict[str, Any] | None) -> str:
    if not scores or scores.get("mean") is None:
        return "-"
    low, high = scores.get("ci_low"), scores.get("ci_high")
    return f"{scores['mean']:.4f}" + (f" [{low:.4f}, {high:.4f}]" if low is not None and high is not None else "")


if __name__ == "__main__":
    main()
