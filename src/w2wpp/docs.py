"""`make docs`: bring results into the documentation, so that no figure or picture there is made by hand.

Tables go between their markers, `<!-- name:begin -->` and `<!-- name:end -->`: table 1 into README.md, the tuning of the
adapters into docs/results.md, the edits into docs/editing.md, the VAE's collapse into docs/collapse.md, drawn models and
other directions into docs/inversion.md. The newest demo's pictures go to docs/pictures (generated faces and a public-domain
photo only), and with them the loss curves of tiny-faces.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2wpp.base_model import ASSETS
from w2wpp.errors import W2WError
from w2wpp.figures import curves_svg
from w2wpp.files import read_json, write_text
from w2wpp.images import read_image, write_image
from w2wpp.report import table1_rows
from w2wpp.runs import newest

TABLE1 = Path("docs/results/table1.json")
SEARCHES = Path("docs/results/searches.json")  # on val, without PCA: eq. 7, CMA-ES and the cross-entropy method
TUNING = Path("benchmarks/results/tune_adapters.json")
EDITS = Path("benchmarks/results/edits.json")
COLLAPSE = Path("benchmarks/results/collapse.json")
SAMPLES, DIRECTIONS = Path("benchmarks/results/samples.json"), Path("benchmarks/results/directions.json")
README, RESULTS, EDITING, COLLAPSED, INVERSION = (
    Path(page) for page in ("README.md", "docs/results.md", "docs/editing.md", "docs/collapse.md", "docs/inversion.md")
)
PICTURES = Path("docs/pictures")
OF_DEMO = {
    "drawn-PCA-w2w/pictures.png": "drawn-pca.png",
    "drawn-VAE-w2w/pictures.png": "drawn-vae.png",
    "drawn-anchored-VAE/pictures.png": "drawn-anchored-vae.png",
    "strip.png": "strip.png",
    "reconstructions.png": "reconstructions.png",
    "inverted.png": "inverted.png",
}


def markdown(table: Mapping[str, Any]) -> str:
    """A {head, rows} table as Markdown."""
    lines = [table["head"], ["---"] * len(table["head"]), *table["rows"]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def filled(page: str, name: str, text: str) -> str:
    """`page` with what stands between the markers of `name` replaced by `text`. Raises W2WError without the markers."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if begin not in page or end not in page:
        raise W2WError(f"the page has no {begin} and {end}. Put both where {name} belongs.")
    before, rest = page.split(begin, 1)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}"


def table1_text(table1: Mapping[str, Any]) -> str:
    """Table 1 as Markdown, and under it how it was made."""
    caption = f"`{table1['command']}`, {table1['split']} split, seed {table1['seed']}; mean ± standard error over people."
    return f"{markdown(table1_rows(table1))}\n\n{caption}"


def tuning_text(tuning: Mapping[str, Any]) -> str:
    """What was tried for the adapters, a line a set of options, as Markdown."""
    head = ["targets", "d", "alpha", "lr", "steps x (photos + prior)", "prior weight", "ID, unseen photos", "ID, other people", "no face"]
    pictures = tuning["people"] * tuning["pictures"]
    rows = []
    for row in tuning["rows"]:
        o = row["options"]
        work = f"{o['steps']} x ({o['batch']} + {o['prior_batch']})"
        found = [f"{row['id']:.3f} ± {row['se']:.3f}", f"{row['others']:.3f}", f"{row['missed']:.0f} of {pictures}"]
        rows.append(
            [", ".join(o["targets"]), f"{row['d']:,.0f}", f"{o['alpha']:g}", f"{o['lr']:g}", work, f"{o['prior_weight']:g}", *found]
        )
    return f"{markdown({'head': head, 'rows': rows})}\n\n`{tuning['command']}`, {tuning['people']} people."


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
        f"`{found['command']}`: m = {asked['m']}, hidden widths {asked['widths']}, {adapters['train']:,} adapters to train on and "
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
    return f"{markdown({'head': head, 'rows': rows})}\n\n`{found['command']}`; ID Score between generated pictures."


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
    return f"{markdown({'head': head, 'rows': rows})}\n\n`{found['command']}`, {found['split']} split, m = {found['m']}, {people} people."


def demo_pictures(runs: Path, out: Path) -> list[Path]:
    """Copy the pictures of the newest demo under `runs` to `out`. Raises W2WError if there is none."""
    folder = newest(runs, "demo")
    for source, name in OF_DEMO.items():
        write_image(out / name, read_image(folder / source))
    return [out / name for name in OF_DEMO.values()]


def base_curves(training: Path, out: Path) -> Path:
    """Draw the denoiser's loss of a base, on train and on held-out people, from its training.json."""
    lines = read_json(training)["curves"]["denoiser"]
    series = {"train (running mean)": [line["loss"] for line in lines], "people held out": [line["val_loss"] for line in lines]}
    write_text(out, curves_svg(series, f"times {lines[0]['step']} steps", "weighted loss", log=True))
    return out


if __name__ == "__main__":
    made = [*demo_pictures(Path("runs"), PICTURES), base_curves(ASSETS / "tiny_faces" / "training.json", PICTURES / "base-loss.svg")]
    for page, name, source, text in (
        (README, "table1", TABLE1, table1_text),
        (RESULTS, "tuning", TUNING, tuning_text),
        (EDITING, "edits", EDITS, edits_text),
        (COLLAPSED, "collapse", COLLAPSE, collapse_text),
        (INVERSION, "searches", SEARCHES, table1_text),
        (INVERSION, "samples", SAMPLES, samples_text),
        (INVERSION, "directions", DIRECTIONS, directions_text),
    ):
        if source.exists():
            write_text(page, filled(page.read_text(encoding="utf-8"), name, text(read_json(source))))
            made.append(page)
    print(*made, sep="\n")
