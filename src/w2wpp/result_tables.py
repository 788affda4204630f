"""What was measured, as Markdown for the documentation: a function a file of results."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from w2wpp.report import mean_se, table1_rows

PCA_MEASURES = ("seconds", "cpu_seconds", "peak_gib", "explained_variance")


def markdown(table: Mapping[str, Any]) -> str:
    """A {head, rows} table as Markdown."""
    lines = [table["head"], ["---"] * len(table["head"]), *table["rows"]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table1_text(table1: Mapping[str, Any]) -> str:
    """Table 1 as Markdown, and under it how it was made."""
    caption = f"`{table1['command']}`, {table1['split']} split, seed {table1['seed']}; mean ± standard error over people."
    return f"{markdown(table1_rows(table1))}\n\n{caption}"


def headline_text(table1: Mapping[str, Any]) -> str:
    """Table 1's ID Scores against photos that no method saw: a line a method, a column a number of latents."""
    ms = sorted({row["m"] for row in table1["rows"] if row["m"]})
    lines: dict[tuple[str, str], dict[int | None, Mapping[str, Any]]] = {}
    for row in table1["rows"]:
        lines.setdefault((row["method"], row["space"] or ""), {})[row["m"]] = row
    rows = []
    for (method, space), at in lines.items():
        scores = [mean_se(at[m]["id_other"], at[m]["id_other_se"]) if m in at else "" for m in (None, *ms)]
        evals = next(iter(at.values()))["unet_evals"]
        rows.append([method, space, *scores, "" if evals is None else f"{evals:,.0f}"])
    head = ["method", "space", "no space", *(f"m = {m}" for m in ms), "UNet evaluations"]
    people = "to ".join(f"{n} " for n in sorted({row["n"] for row in table1["rows"]}))
    return f"{markdown({'head': head, 'rows': rows})}\n\n{people}people of the {table1['split']} split; mean ± standard error over people."


def judge_text(found: Mapping[str, Any]) -> str:
    """FaceNet's cosines on real photos beside the figures that its wiring is checked against, as Markdown."""
    head = ["photos", "faces found", "same person", "different people", "nearest is the same person"]
    rows = []
    for row in (*found["rows"], found["reference"]):
        who = f"two each of {row['people']} people" + (", the reference" if row is found["reference"] else "")
        same = f"{row['same']:.3f}" + (f" ± {row['same_se']:.3f}" if "same_se" in row else "")
        rows.append([who, f"{row['faces']}", same, f"{row['different']:.3f} (sd {row['different_sd']:.3f})", f"{row['rank1']:.1%}"])
    about = f"`{_command(found)}`, aligned at {found['size']}x{found['size']} but for the reference; mean ± standard error"
    return f"{markdown({'head': head, 'rows': rows})}\n\n{about}."


def base_text(found: Mapping[str, Any]) -> str:
    """How good the embedded base is, a line a bar, as Markdown."""
    of = found["measured"]
    gap = of["name_id"] - of["name_floor"]
    names = f"names of {of['name_people']} train people with ten or more photos, above the floor"
    rows = [
        [f"MTCNN finds a face, of {of['samples']} pictures", "95%", f"{of['faces_found']:.1%}"],
        [f"a val photo and its reconstruction, cosine over {of['autoencoder_n']}", "0.85", f"{of['autoencoder_cosine']:.3f}"],
        [names, "0.25", f"{gap:.3f} ({of['name_id']:.3f} - {of['name_floor']:.3f})"],
    ]
    return f"{markdown({'head': ['what', 'bar', 'found'], 'rows': rows})}\n\n`{found['command']}`."


def tuning_text(tuning: Mapping[str, Any]) -> str:
    """What was tried for the adapters, a line a set of options, as Markdown."""
    options = ["targets", "rank", "d", "alpha", "lr", "steps x (photos + prior)", "prior weight"]
    head = [*options, "ID, unseen photos", "ID, other people", "no face"]
    pictures = tuning["people"] * tuning["pictures"]
    rows = []
    for row in tuning["rows"]:
        o = row["options"]
        work = f"{o['steps']} x ({o['batch']} + {o['prior_batch']})"
        found = [f"{row['id']:.3f} ± {row['se']:.3f}", f"{row['others']:.3f}", f"{row['missed']:.0f} of {pictures}"]
        size = [", ".join(o["targets"]), f"{o['rank']}", f"{row['d']:,.0f}"]
        rows.append([*size, f"{o['alpha']:g}", f"{o['lr']:g}", work, f"{o['prior_weight']:g}", *found])
    return f"{markdown({'head': head, 'rows': rows})}\n\n`{tuning['command']}`, {tuning['people']} people."


def start_text(tuning: Mapping[str, Any]) -> str:
    """What was tried for training that begins where an encoder puts the photos, a line a set of options, as Markdown."""
    head = ["photos", "rate", "steps", "prior weight", "blend", "ID, other photos", "ID, input photo", "ID, other people", "no face"]
    pictures = tuning["people"] * tuning["pictures"]
    rows = []
    for row in tuning["rows"]:
        o = row["options"]
        tried = [f"{o[key]:g}" for key in ("lr", "steps", "prior_weight", "blend")] if o else ["not trained", "", "", ""]
        scores = [f"{row['id_other']:.3f} ± {row['id_other_se']:.3f}", f"{row['id_input']:.3f}", f"{row['id_strangers']:.3f}"]
        rows.append(["many" if row["many"] else "one", *tried, *scores, f"{row['missed']} of {pictures}"])
    return f"{markdown({'head': head, 'rows': rows})}\n\n`{tuning['command']}`, {tuning['people']} people of val, {tuning['start']}."


def edits_text(edits: Mapping[str, Any]) -> str:
    """What edits changed and kept, a line a setting, as Markdown."""
    names = [fit["name"] for fit in edits["directions"]]
    head = [
        "edit",
        "strength",
        "way",
        *(f"{name}, change" for name in names),
        *(f"{name}, pictures" for name in names),
        "ID kept",
        "no face",
    ]
    original = edits["original"]

    def cells(row: Mapping[str, Any]) -> list[str]:
        changes = [f"{row[f'{name}_change']:+.2f} ± {row[f'{name}_change_se']:.2f}" if f"{name}_change" in row else "" for name in names]
        return [*changes, *(f"{row[f'{name}_share']:.0%}" for name in names)]

    rows = [["none", "", "", *cells(original), "", f"{original['missed']}"]]
    for row in edits["rows"]:
        kept = f"{row['id_kept']:.2f} ± {row['id_kept_se']:.2f}"
        rows.append([row["attribute"], f"{row['strength']:+g}", row["way"], *cells(row), kept, f"{row['missed']}"])
    judged = "; ".join(
        f"{name} {of['accuracy_scored_people']:.0%} ({of['accuracy']:.0%} on its own people, held out)"
        for name, of in edits["classifiers"].items()
    )
    fits = "; ".join(
        f"{fit['name']} {fit['correlation']:.2f}, {fit['correlation_unscaled']:.2f} without the scale" for fit in edits["directions"]
    )
    same, others = original["id_same_person_other_seed"], original["id_other_people_same_seed"]
    asked, space = edits["settings"], edits["space"]
    return (
        f"{markdown({'head': head, 'rows': rows})}\n\n"
        f"`{edits['command']}`: {space['kind']}, m = {space['m']}, {asked['people']} people, {original['pictures']} pictures a line; "
        f"mean ± standard error over people. Late injection at {asked['inject_at']}. ID Score of unedited pictures: one person, two seeds "
        f"{same:.2f}, two people, one seed {others:.2f}. Classifiers' balanced accuracy on the people scored: {judged}. Correlation of "
        f"label and score predicted for held-out people: {fits}."
    )


def collapse_text(found: Mapping[str, Any]) -> str:
    """What each remedy does to the published VAE, a line a space, as Markdown."""
    head = ["space", "steps", "can keep", "lost, train", "held out", "best", "KL", "linear optimum", "KL a latent, middle half", "active"]
    head += ["decoded spread", "drawn spread", "ID, two draws", "one draw twice", "ID, reconstructed", "no face", "seconds"]
    references, asked = found["references"], found["settings"]

    def scored(likeness: Mapping[str, Any]) -> list[str]:
        return ["" if likeness[key] is None else f"{likeness[key]:.2f}" for key in ("between", "within")]

    trained = references["training adapters"]
    rows = [["training adapters", *[""] * 11, *scored(trained), f"{references['id_own']:.2f}", f"{trained['missed']}", ""]]
    rows += [["mean adapter", *[""] * 11, "1", "", f"{references['id_mean_adapter']:.2f}", "", ""]]
    for row in found["rows"]:
        of, samples = row["latents"]["held_out"], row["samples"]
        quartiles = of.get("kl_quartiles")
        optimum = row["kept"]["linear_optimum"]["kl_per_unit"] if "kept" in row else None
        rows.append(
            [
                row["name"],
                f"{row.get('steps', '')}",
                f"{row['kept']['directions_above']:,}" if "kept" in row else "",
                f"{row['lost']['train']:.2f}",
                f"{row['lost']['held_out']:.2f}",
                f"{row['lost_best']:.2f}" if "lost_best" in row else "",
                f"{of['kl']:,.0f}" if of else "",
                f"{asked['m'] * optimum:,.0f}" if optimum is not None else "",
                f"{quartiles[1]:.2f} to {quartiles[3]:.2f}" if quartiles else "",
                f"{of['active_units']}" if of else "",
                f"{row['decoded_spread_ratio']:.2f}",
                f"{row['sampled_spread_ratio']:.2f}",
                *scored(samples),
                "" if row["id_reconstructed"] is None else f"{row['id_reconstructed']:.2f}",
                f"{samples['missed']}",
                f"{row['seconds']:.0f}",
            ]
        )
    adapters = found["adapters"]
    return (
        f"{markdown({'head': head, 'rows': rows})}\n\n"
        f"`{_command(found)}`: m = {asked['m']}, hidden widths {asked['widths']}, {adapters['train']:,} adapters to train on and "
        f"{adapters['held_out']} of held-out people, d = {adapters['d']:,}, seed {asked['seed']}; {trained['pictures']} pictures of draws, "
        f"{asked['people']} people reconstructed; seconds of one core."
    )


def samples_text(found: Mapping[str, Any]) -> str:
    """Whether drawn models are people, a line a space, as Markdown."""
    head = ["models", "no face", "one model, two seeds", "two models, one seed", "bars held"]
    rows = []
    for name, row in found["rows"].items():
        scores = ["" if row[key] is None else f"{row[key]:.2f}" for key in ("within", "between")]
        held = ", ".join(bar for bar, holds in row.get("bars", {}).items() if holds) or ("none" if "bars" in row else "")
        rows.append([name, f"{row['missed']} of {row['pictures']}", *scores, held])
    return f"{markdown({'head': head, 'rows': rows})}\n\n`{_command(found)}`; ID Score between generated pictures."


def directions_text(found: Mapping[str, Any]) -> str:
    """What other linear directions find, a line a set, as Markdown."""
    head = ["directions", "ID, other photos", "ID, input photo", "no face"]
    rows = [
        [
            row["name"],
            f"{row['id_other']:.3f} ± {row['id_other_se']:.3f}",
            f"{row['id_input']:.3f} ± {row['id_input_se']:.3f}",
            f"{row['missed']} of {row['pictures']}",
        ]
        for row in found["rows"]
    ]
    people = found["rows"][0]["n"]
    return f"{markdown({'head': head, 'rows': rows})}\n\n`{_command(found)}`, {found['split']} split, m = {found['m']}, {people} people."


def pca_text(found: Mapping[str, Any]) -> str:
    """Ways to principal components, a line each: medians over rounds, and times of ours."""
    machine, runs = found["machine"], found["runs"]
    head = ["way", "seconds", "times ours", "processor seconds", "peak GiB", "explained variance"]
    rows = []
    for way in dict.fromkeys(run["way"] for run in runs):
        of = [run for run in runs if run["way"] == way]
        ours = [run for run in runs if run["way"] == "ours"]
        seconds, cpu_seconds, peak, kept = (median(run[key] for run in of) for key in PCA_MEASURES)
        times = median(run["seconds"] / own["seconds"] for run, own in zip(of, ours, strict=True))
        rows.append([way, f"{seconds:.1f}", f"{times:.1f}", f"{cpu_seconds:.1f}", f"{peak:.2f}", f"{kept:.5f}"])
    n, d, m = (runs[0][key] for key in ("n", "d", "m"))
    return f"{markdown({'head': head, 'rows': rows})}\n\n`{_command(found)}`: n = {n:,}, d = {d:,}, m = {m:,}; {_machine(machine)}."


def pca_sizes_text(found: Mapping[str, Any]) -> str:
    """Principal components at other sizes, a line a run; one that was stopped says how far it came."""
    head = ["n", "d", "m", "way", "seconds", "processor seconds", "peak GiB", "explained variance"]
    rows = []
    for run in found["runs"]:
        size = [f"{run['n']:,}", f"{run['d']:,}", f"{run['m']:,}", run["way"]]
        if "ended" in run:
            rows.append([*size, run["ended"], "", "", ""])
            continue
        seconds, kept = f"{run['seconds']:,.1f}", f"{run['explained_variance']:.4f}"
        if "rows_done" in run:
            seconds, kept = f"{run['extrapolated_seconds']:,.0f}, from its first {run['rows_done']:,} rows", ""
        rows.append([*size, seconds, f"{run['cpu_seconds']:,.1f}", f"{run['peak_gib']:.2f}", kept])
    return f"{markdown({'head': head, 'rows': rows})}\n\n`{_command(found)}`; {_machine(found['machine'])}."


def reading_text(found: Mapping[str, Any]) -> str:
    """How fast a dataset is read, over a plain read of the same bytes."""
    results = found["results"]
    head = ["what", "warm", "warm, processor's time", "cold"]
    rows = []
    for what in dict.fromkeys(name.rsplit(", ", 1)[0] for name in results):
        warm, cold = results[f"{what}, warm"], results[f"{what}, cold"]
        rows.append([what, *(f"{value:.2f}" for value in (warm["ratio"], warm["ratio_of_processor_time"], cold["ratio"]))])
    about = f"`{_command(found)}`: medians of {found['rounds']} rounds, bf16, {found['n']:,} rows of {found['d']:,} numbers"
    return f"{markdown({'head': head, 'rows': rows})}\n\n{about}; {found['cores']} cores, {found['cpu']}."


def adapters_text(found: Mapping[str, Any]) -> str:
    """How many adapters an hour are trained, and in how much memory, beside a script of peft and diffusers."""
    head = ["way", "adapters an hour", "ours is faster by", "peak MiB"]
    rows = []
    for way, row in found["median"].items():
        speeds = sorted(found["ours_over"][way]["speed"]) if way in found["ours_over"] else []
        faster = f"{median(speeds):.1f} ({speeds[0]:.1f} to {speeds[-1]:.1f})" if speeds else ""
        rows.append([way, f"{row['adapters_per_hour']:,.0f}", faster, f"{row['peak_mib']:,.0f}"])
    about = f"`{_command(found)}`: {found['people']} people, {found['pictures_a_step']} pictures a step; {found['machine']}"
    return f"{markdown({'head': head, 'rows': rows})}\n\n{about}."


def population_text(found: Mapping[str, Any]) -> str:
    """What PCA over smaller and larger populations loses of other people's adapters, a line a dataset."""
    ms = sorted({row["m"] for row in found["rows"]})
    lines: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in found["rows"]:
        lines.setdefault(row["dataset"], {})[row["m"]] = row
    head = ["dataset", "people", "adapters", *(f"lost, m = {m:,}" for m in ms)]
    rows = []
    for name, at in lines.items():
        one = at[ms[0]]
        rows.append([name, f"{one['people']:,}", f"{one['n']:,}", *(f"{at[m]['lost']:.3f} ± {at[m]['lost_se']:.3f}" for m in ms)])
    return f"{markdown({'head': head, 'rows': rows})}\n\n`{_command(found)}`, {found['held_out']} adapters of val people."


def faults_text(found: Mapping[str, Any]) -> str:
    """What came of kills, malformed adapters, full disks and damaged files: three lines, and a line a kind of file."""
    results = found["results"]
    kills, adapters, disk = results["killed_writers"], results["malformed_adapters"], results["full_disk"]
    there = f"all {kills['acknowledged']:,} acknowledged rows were there, each whole"
    more = f"{kills['written_before_the_acknowledgement']} more had been written before their acknowledgement; nothing else"
    kinds = f"of {adapters['kinds']:,} kinds, pickles with code and headers that lie among them"
    lines = [
        f"- {kills['kills']:,} writers killed at random moments: {there}; {more}.",
        f"- {adapters['files']:,} malformed adapters {kinds}: each refused in one line, no code run.",
        f"- A disk that is full at various points: {disk['stopped']} of {disk['tried']} stopped in one line, every file as it was.",
    ]
    rows = [
        [kind, *(f"{counts[outcome]:,}" if outcome in counts else "" for outcome in ("refused", "the same", "read"))]
        for kind, counts in results["damaged_files"].items()
    ]
    head = ["cut short, or a bit flipped", "refused", "read as it was", "read, and cannot be told"]
    return "\n".join([*lines, "", markdown({"head": head, "rows": rows}), "", f"`{_command(found)}`, {found['seconds']:.0f} seconds."])


def _command(found: Mapping[str, Any]) -> str:
    """The command as it is typed in the repository: that of a script holds the script's name alone."""
    command = str(found["command"])
    return f"python benchmarks/{command}" if command.split()[0].endswith(".py") else command


def _machine(machine: Mapping[str, Any]) -> str:
    return f"{machine['cpu']}, {machine['threads']} threads, {machine['memory_gib']:.0f} GiB"
