"""A suite's page, Markdown and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweeper.report.drawing import PALETTE, SOFT, Figure, Trace, axis, label
from sweeper.report.markdown import escape
from sweeper.report.page import assets, embedded, environment
from sweeper.report.suite import sentences


def suite_page(name: str, found: dict[str, Any], places: dict[str, Path], folder: Path) -> str:
    """Return the page; ``found`` is what `summarise` returns, ``places`` the result folder of each task."""
    colours = {entry["model"]: PALETTE[at % len(PALETTE)] for at, entry in enumerate(found["leaderboard"])}
    figures = {"iqm": _aggregates(found, colours), "profiles": _profiles(found, colours)}
    links = {task: _link(place, folder) for task, place in places.items()}
    return (
        environment()
        .get_template("suite.html.j2")
        .render(
            name=name,
            found=found,
            sentences=sentences(found),
            figures=figures,
            figure_data=embedded(list(figures.values())),
            colours=colours,
            links=links,
            **assets(),
        )
    )


def suite_markdown(name: str, found: dict[str, Any]) -> str:
    """Return the suite as Markdown."""
    lines = [f"# {escape(name)}", "", *(f"{escape(text)}\n" for text in sentences(found))]
    lines += ["| rank | model | mean rank | interquartile mean | default: mean rank | wins |"]
    lines += ["| --: | --- | --: | --: | --: | --: |"]
    for entry in found["leaderboard"]:
        cells = [_interval(entry["tuned"]["mean_rank"], 2), _interval(entry["tuned"]["iqm"], 4)]
        cells.append(_interval(entry["default"]["mean_rank"], 2) if "default" in entry else "")
        lines.append(f"| {entry['rank']} | {escape(entry['model'])} | {' | '.join(cells)} | {entry['wins']} |")
    lines += ["", f"Scale: {escape(found['scale'])}.", "", "## Probability of improvement", ""]
    lines += [f"- {escape(pair['words'])}: {_interval(pair, 2)}" for pair in found["improvements"]]
    models = [entry["model"] for entry in found["leaderboard"]]
    lines += ["", "## By task", "", f"| task | seeds | {' | '.join(map(escape, models))} |"]
    lines += [f"| --- | --: |{' --: |' * len(models)}"]
    for task in found["tasks"]:
        means = [f"{task['means'][model]:.4f}" for model in models]
        lines.append(f"| {escape(task['task'])} | {task['num_seeds']} | {' | '.join(means)} |")
    lines += ["", *(f"Left out: {escape(text)}\n" for text in found["left_out"])]
    return "\n".join(lines)


def _interval(value: dict[str, Any], digits: int) -> str:
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def _link(place: Path, folder: Path) -> str:
    page = place / "report" / "index.html"
    try:
        return page.resolve().relative_to(folder.resolve(), walk_up=True).as_posix()  # type: ignore[call-arg]
    except (TypeError, ValueError):  # before Python 3.12, or another drive
        return page.resolve().as_uri()


def _aggregates(found: dict[str, Any], colours: dict[str, str]) -> Figure:
    entries = found["leaderboard"]
    traces: list[Trace] = []
    for config, symbol, shift in (("tuned", "circle", -0.12), ("default", "circle-open", 0.12)):
        have = [(at, entry) for at, entry in enumerate(entries) if config in entry]
        if not have:
            continue
        values = [entry[config]["iqm"] for _, entry in have]
        inks = [colours[entry["model"]] for _, entry in have]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": config,
                "x": [value["value"] for value in values],
                "y": [at + shift for at, _ in have],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [value["high"] - value["value"] for value in values],
                    "arrayminus": [value["value"] - value["low"] for value in values],
                    "color": SOFT,
                },
                "marker": {"symbol": symbol, "size": 12, "color": inks, "line": {"width": 2, "color": inks}},
            }
        )
    names = {"tickvals": list(range(len(entries))), "ticktext": [label(entry["model"], 24) for entry in entries]}
    layout = {
        "xaxis": axis("interquartile mean"),
        "yaxis": {**names, "range": [len(entries) - 0.5, -0.5], "zeroline": False},
    }
    caption = (
        "Interquartile mean over runs and tasks with 95% stratified bootstrap intervals: filled tuned, open default."
    )
    return Figure("iqm", "Interquartile mean", caption, traces, layout, height=150 + 56 * len(entries))


def _profiles(found: dict[str, Any], colours: dict[str, str]) -> Figure:
    profiles = found["profiles"]
    traces: list[Trace] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": label(model, 24),
            "x": profiles["thresholds"],
            "y": profiles["shares"][model],
            "line": {"color": colour, "width": 2.2, "shape": "hv"},
        }
        for model, colour in colours.items()
    ]
    layout = {"xaxis": axis("score"), "yaxis": axis("share of runs above", range=[0, 1.02], tickformat=".0%")}
    caption = "Performance profiles: the share of runs, tasks weighing the same, that score above each value."
    return Figure("profiles", "Performance profiles", caption, traces, layout)
