"""What was measured of many machines, as Markdown for docs/scale.md: a function for each file of results."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from result_tables import command_of, markdown
from speed_tables import machine_text


def kills_text(found: Mapping[str, Any]) -> str:
    """What was killed, and what came of it, one row per training."""
    head = ["training", "killed", "tried again", "lost", "twice", "failed", "bytes of one process"]
    rows, all_killed = [], Counter[str]()
    for i, run in enumerate(found["runs"], 1):
        all_killed.update(run["killed"])
        again = ", ".join(f"{what}: {n}" for what, n in run["tried_again"].items()) or "nothing"
        counts = [str(run[key]) for key in ("lost", "twice", "failed")]
        rows.append([str(i), _counted(run["killed"]), again, *counts, "yes" if run["equal"] else "no"])
    table = {"head": head, "rows": rows}
    about = f"{found['people']} people in groups of {found['group']}, {all_killed.total()} kills with SIGKILL at random moments"
    note = "After a kill of the command only what its last run tried again is listed."
    return f"{markdown(table)}\n\n`{command_of(found)}`: {about}. {note} {machine_text(found['machine'])}."


def overhead_text(found: Mapping[str, Any]) -> str:
    """One worker on a core, against one process on a core."""
    seconds, before = found["seconds"], found["seconds_before"]
    rows = [[way, f"{seconds[way]:.1f}", f"{before[way]:.1f}"] for way in seconds]
    table = {"head": ["way", "seconds of training", "seconds before it"], "rows": rows}
    spread = f"{100 * found['overhead']:.1f}% ({100 * min(found['overheads']):.1f} to {100 * max(found['overheads']):.1f})"
    about = f"{found['people']} people on tiny-faces in groups of {found['group']}, {found['steps']} steps"
    about = f"{about}, {len(found['rounds'])} rounds in turn; both give the same bytes. {machine_text(found['machine'])}"
    text = f"Overhead: {spread}; below zero, Ray was faster. Ray and its worker start once."
    return f"{text}\n\n{markdown(table)}\n\n`{command_of(found)}`: {about}."


def simulation_text(found: Mapping[str, Any]) -> str:
    """People an hour on simulated workers beside the ideal, and what the command itself takes."""
    head = [
        "people in a group",
        "seconds for a group",
        "faults",
        "people an hour",
        "of the ideal",
        "command: ms for a group",
        "busy",
        "MiB",
    ]
    rows = []
    for run in found["runs"]:
        faults = [
            f"{100 * run[key]:g}% of groups {what}"
            for key, what in (("dies", "lose their worker"), ("slow", "5 times slower"))
            if key in run
        ]
        measured = [f"{run['people_per_hour']:,.0f}", f"{100 * run['of_the_ideal']:.1f}%", f"{run['driver_ms_per_group']:.1f}"]
        seconds = f"{run['group'] * run['seconds_per_person']:,.0f}"
        rows.append(
            [str(run["group"]), seconds, ", ".join(faults), *measured, f"{100 * run['driver_busy']:.1f}%", f"{run['driver_mib']:,.0f}"]
        )
    writer = found["writer"]
    alone = f"{writer['ms_per_group']:.0f} ms for {writer['group']} rows of {writer['d']:,} numbers"
    about = f"{found['people']:,} people on {found['workers']:,} simulated workers; {machine_text(found['machine'])}"
    more = f"The writer alone: {alone}, {writer['people_per_hour']:,.0f} people an hour"
    return f"{markdown({'head': head, 'rows': rows})}\n\n{more}. `{command_of(found)}`: {about}."


def million_text(found: Mapping[str, Any]) -> str:
    """What so many adapters would take, one line each."""
    lines = []
    for row in found["training"]:
        lines.append(
            [f"training, {row['base']}", f"{row['gpu_hours']:,.0f} hours of a GPU, {row['dollars']:,.0f} dollars", row["known_from"]]
        )
    for row in found["bytes"]:
        sizes = f"{row['float16_gb']:,.1f} GB in 16 bits, {row['int8_gb']:,.1f} GB in int8"
        lines.append([f"rows, {row['base']}", sizes, f"d = {row['d']:,}"])
    pca, writer = found["pca"], found["writer"]
    spent = f"{pca['hours']:.1f} hours of {pca['cores']} cores, {pca['dollars']:.2f} dollars; {pca['gb_per_pass']:,.0f} GB in each pass"
    lines.append([f"PCA, m = {pca['m']:,}, d = {pca['d']:,}", spent, f"measured on {pca['n']:,} rows, times the rows"])
    lines.append([f"writing, d = {writer['d']:,}", f"{writer['hours']:.1f} hours", "the writer alone, above"])
    fastest = max(found["training"], key=lambda row: row["adapters_per_hour"])["base"]
    lines.append([f"GPUs that one writer keeps up with, {fastest}", f"{found['gpus_that_fill_the_writer']:,.0f}", "both rates above"])
    lines.append(["memory of the command", f"{found['driver_gib']:.1f} GiB", "that of the simulation, times the people"])
    about = f"{found['adapters']:,} adapters, at {found['price']:g} dollars for an hour of a GPU"
    return f"{markdown({'head': ['what', 'takes', 'known from'], 'rows': lines})}\n\n`{command_of(found)}`: {about}."


def _counted(killed: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {what}{'s' if n > 1 else ''}" for what, n in killed.items())
