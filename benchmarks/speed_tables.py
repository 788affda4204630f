"""What was measured of speed, memory and robustness, as Markdown for the documentation: a function for each file of results."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from result_tables import command_of, markdown

PCA_MEASURES = ("seconds", "cpu_seconds", "peak_gib", "explained_variance")


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
    return f"{markdown({'head': head, 'rows': rows})}\n\n`{command_of(found)}`: n = {n:,}, d = {d:,}, m = {m:,}; {machine_text(machine)}."


def pca_sizes_text(found: Mapping[str, Any]) -> str:
    """Principal components at other sizes, one row per run; one that was stopped says how far it came."""
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
    return f"{markdown({'head': head, 'rows': rows})}\n\n`{command_of(found)}`; {machine_text(found['machine'])}."


def reading_text(found: Mapping[str, Any]) -> str:
    """How fast a dataset is read, over a plain read of the same bytes."""
    results = found["results"]
    head = ["what", "warm", "warm, processor's time", "cold"]
    rows = []
    for what in dict.fromkeys(name.rsplit(", ", 1)[0] for name in results):
        warm, cold = results[f"{what}, warm"], results[f"{what}, cold"]
        rows.append([what, *(f"{value:.2f}" for value in (warm["ratio"], warm["ratio_of_processor_time"], cold["ratio"]))])
    about = f"`{command_of(found)}`: medians of {found['rounds']} rounds, bf16, {found['n']:,} rows of {found['d']:,} numbers"
    return f"{markdown({'head': head, 'rows': rows})}\n\n{about}; {machine_text(found.get('machine', found))}."


def adapters_text(found: Mapping[str, Any]) -> str:
    """How many adapters an hour are trained, and in how much memory, beside a script of peft and diffusers."""
    head = ["way", "adapters an hour", "ours is faster by", "peak MiB"]
    rows = []
    for way, row in found["median"].items():
        speeds = sorted(found["ours_over"][way]["speed"]) if way in found["ours_over"] else []
        faster = f"{median(speeds):.1f} ({speeds[0]:.1f} to {speeds[-1]:.1f})" if speeds else ""
        rows.append([way, f"{row['adapters_per_hour']:,.0f}", faster, f"{row['peak_mib']:,.0f}"])
    about = f"`{command_of(found)}`: {found['people']} people, {found['pictures_a_step']} pictures a step; {machine_text(found['machine'])}"
    return f"{markdown({'head': head, 'rows': rows})}\n\n{about}."


def population_text(found: Mapping[str, Any]) -> str:
    """What PCA over smaller and larger populations loses of other people's adapters, one row per dataset."""
    ms = sorted({row["m"] for row in found["rows"]})
    lines: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in found["rows"]:
        lines.setdefault(row["dataset"], {})[row["m"]] = row
    head = ["dataset", "people", "adapters", *(f"lost, m = {m:,}" for m in ms)]
    rows = []
    for name, at in lines.items():
        one = at[ms[0]]
        rows.append([name, f"{one['people']:,}", f"{one['n']:,}", *(f"{at[m]['lost']:.3f} ± {at[m]['lost_se']:.3f}" for m in ms)])
    return f"{markdown({'head': head, 'rows': rows})}\n\n`{command_of(found)}`, {found['held_out']} adapters of val people."


def faults_text(found: Mapping[str, Any]) -> str:
    """What came of kills, malformed adapters, full disks, damaged and odd files: a line each, and one row per kind of file."""
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
    if "odd_pictures" in results:  # early results have none
        pictures, names, labels, killed = (results[key] for key in ("odd_pictures", "hostile_names", "odd_labels", "killed_results"))
        lines += [
            f"- {pictures['pictures']:,} damaged pictures, and files of other formats named .jpg, a PostScript program and a picture of "
            f"2,500 million pixels among them: {pictures['refused']:,} refused in one line, {pictures['read']:,} read, no program started.",
            f"- {names['names']:,} hostile ids and {names['members']:,} members of zips: none leaves its folder, no two are one file.",
            f"- {labels['tables']:,} tables of labels with a line too long, cut or twice: {labels['refused']:,} refused, naming the line.",
            f"- {killed['kills']:,} runs killed while they wrote a folder of results: the same command then wrote all of it.",
        ]
    rows = [
        [kind, *(f"{counts[outcome]:,}" if outcome in counts else "" for outcome in ("refused", "the same", "read"))]
        for kind, counts in results["damaged_files"].items()
    ]
    head = ["cut short, or a bit flipped", "refused", "read as it was", "read, and cannot be told"]
    return "\n".join([*lines, "", markdown({"head": head, "rows": rows}), "", f"`{command_of(found)}`, {found['seconds']:.0f} seconds."])


def import_text(found: Mapping[str, Any]) -> str:
    """How fast LoRA files become rows, a line each round."""
    head = ["round", "files a second", "processor seconds a file", "load of the machine"]
    rows = [
        [f"{i}", f"{row['files_a_second']:.1f}", f"{row['processor_seconds_a_file']:.3f}", f"{row['load']:.1f}"]
        for i, row in enumerate(found["rounds"], 1)
    ]
    about = f"`{command_of(found)}`: {found['files']} files of {found['layers']} layers, rank {found['rank']}, {found['threads']} threads"
    return f"{markdown({'head': head, 'rows': rows})}\n\n{about}; {machine_text(found['machine'])}."


def inversion_speed_text(found: Mapping[str, Any]) -> str:
    """Seconds of one inversion by each recipe, as Markdown."""
    head = ["recipe", "seconds for one photo", "UNet evaluations", "times as fast as the published"]
    rows = [
        [name, f"{row['seconds']:.1f}", f"{row['unet_evals']:.0f}", f"{min(row['published_over']):.0f} to {max(row['published_over']):.0f}"]
        for name, row in found["rows"].items()
    ]
    about = f"{found['pixels']} pixels, d = {found['d']:,}, m = {found['m']}, {machine_text(found['machine'])}"
    return f"{markdown({'head': head, 'rows': rows})}\n\n`{command_of(found)}`: {about}."


def machine_text(machine: Mapping[str, Any] | str) -> str:
    """What a result says it ran on; the older ones say less."""
    if isinstance(machine, str):
        return machine
    if "threads" not in machine:
        return f"{machine['cores']} cores, {machine['cpu']}"
    features = [machine["features"]] if "features" in machine else []
    return ", ".join([machine["cpu"], *features, f"{machine['threads']} threads", f"{machine['memory_gib']:.0f} GiB"])


def sd15_text(found: Mapping[str, Any]) -> str:
    """Verbs at the size of Stable Diffusion 1.5, one row each, of 256 and of 512 pixels."""
    head = ["verb", "pixels", "what was asked for", "seconds", "processor seconds", "peak GiB"]
    rows = []
    for row in found["rows"]:
        name = row["name"] if row["name"].startswith("load") else f"`w2w {row['name']}`"
        seconds = row.get("ended") or f"{row['seconds']:,.0f}"
        rows.append([name, str(row["pixels"]), row["about"], seconds, f"{row['cpu_seconds']:,.0f}", f"{row['peak_gib']:.1f}"])
    about = "Peak memory is that of the process, what it maps from files included."
    return f"{markdown({'head': head, 'rows': rows})}\n\n`{command_of(found)}`: {machine_text(found['machine'])}. {about}"


def similar_text(found: Mapping[str, Any]) -> str:
    """What a search for the nearest products takes, and how much of brute force's answer it finds."""
    seconds, each = sorted(found["seconds"]), found["brute_force_seconds"] / found["searches"]
    lines = [
        f"- {found['rows']:,} drawn adapters of d = {found['d']:,} (ten rows a person), {found['searches']} searches for 30 rows.",
        f"- Index: {found['index_seconds']:,.0f} seconds in one pass, {found['index_bytes'] / 2**20:,.0f} MiB.",
        f"- A search: {seconds[len(seconds) // 2]:.2f} seconds (median; {seconds[-1]:.2f} at most). Brute force over all searches "
        f"together: {found['brute_force_seconds']:,.0f} seconds, {each:,.1f} each.",
        f"- Found of brute force's first 10: {found['recall_at_10']:.1%}; of its first 30: {found['recall_at_30']:.1%} "
        f"({found['least_recall_at_30']:.0%} in the worst search).",
    ]
    return "\n".join([*lines, "", f"`{command_of(found)}`: {machine_text(found['machine'])}."])
