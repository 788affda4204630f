"""What was measured, as Markdown for the documentation: one function per file of results."""

import re
from collections.abc import Mapping
from typing import Any

from w2wpp.report.html import mean_se, table1_rows


def markdown(table: Mapping[str, Any]) -> str:
    """A {head, rows} table as Markdown."""
    lines = [table["head"], ["---"] * len(table["head"]), *table["rows"]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table1_text(table1: Mapping[str, Any]) -> str:
    """Table 1 as Markdown, and under it how it was made."""
    caption = f"`{table1['command']}`, {table1['split']} split, seed {table1['seed']}; mean ± standard error over people."
    return f"{markdown(table1_rows(table1))}\n\n{caption}"


# The six rows of README: what they are called there, and the method, space and m of table 1's row.
HEADLINE = (
    ("base, no adapter", "base", None, None),
    ("DreamBooth, one photo", "DreamBooth, one photo", None, None),
    ("PCA, inverted as published", "inversion, published", "pca", 128),
    ("VAE, inverted as published", "inversion, published", "vae", 128),
    ("**anchored VAE, encoder and inversion (ours)**", "encoder, then inversion", "anchored-vae", 128),
    ("real photos", "real photos", None, None),
)


def headline_text(table1: Mapping[str, Any]) -> str:
    """Six rows of table 1 as Markdown: ID Score against photos that no method saw, pictures without a face, evaluations."""
    at = {(row["method"], row["space"], row["m"]): row for row in table1["rows"]}
    rows = []
    for name, *key in HEADLINE:
        row = at[tuple(key)]
        missed = f"{row['missed']} of {row['pictures']}" if row["pictures"] else ""
        evals = "" if row["unet_evals"] is None else f"{row['unet_evals']:,.0f}"
        rows.append([name, mean_se(row["id_other"], row["id_other_se"]), missed, evals])
    head = ["method", "ID Score, other photos", "pictures without a face", "UNet evaluations per person"]
    people = " to ".join(f"{n}" for n in sorted({at[tuple(key)]["n"] for _, *key in HEADLINE}))
    about = f"n = {people} people of the {table1['split']} split; mean ± standard error over people; m = 128 in each space."
    return f"{markdown({'head': head, 'rows': rows})}\n\n{about}"


def by_m_text(table1: Mapping[str, Any]) -> str:
    """Table 1's ID Scores against photos that no method saw: one row per method, one column per number of latents."""
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


def recogniser_text(found: Mapping[str, Any]) -> str:
    """FaceNet's cosines on real photos beside the figures that its wiring is checked against, as Markdown."""
    head = ["photos", "faces found", "same person", "different people", "nearest is the same person"]
    rows = []
    for row in (*found["rows"], found["reference"]):
        who = f"two each of {row['people']} people" + (", the reference" if row is found["reference"] else "")
        same = f"{row['same']:.3f}" + (f" ± {row['same_se']:.3f}" if "same_se" in row else "")
        rows.append([who, f"{row['faces']}", same, f"{row['different']:.3f} (sd {row['different_sd']:.3f})", f"{row['rank1']:.1%}"])
    about = f"`{command_of(found)}`, aligned at {found['size']}x{found['size']} but for the reference; mean ± standard error"
    return f"{markdown({'head': head, 'rows': rows})}\n\n{about}."


def base_text(found: Mapping[str, Any]) -> str:
    """How good the embedded base is, one row per condition, as Markdown."""
    of = found["measured"]
    gap = of["name_id"] - of["name_floor"]
    names = f"names of {of['name_people']} train people with ten or more photos, above the floor"
    rows = [
        [f"MTCNN finds a face, of {of['samples']} pictures", "95%", f"{of['faces_found']:.1%}"],
        [f"a val photo and its reconstruction, cosine over {of['autoencoder_n']}", "0.85", f"{of['autoencoder_cosine']:.3f}"],
        [names, "0.25", f"{gap:.3f} ({of['name_id']:.3f} - {of['name_floor']:.3f})"],
    ]
    return f"{markdown({'head': ['what', 'required', 'found'], 'rows': rows})}\n\n`{found['command']}`."


def tuning_text(tuning: Mapping[str, Any]) -> str:
    """What was tried for the adapters, one row per set of options, as Markdown."""
    options = ["targets", "rank", "d", "alpha", "lr", "steps x (photos + prior)", "prior weight"]
    head = [*options, "ID, unseen photos", "ID, other people", "pictures without a face"]
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
    """What was tried for training that begins where an encoder puts the photos, one row per set of options, as Markdown."""
    head = [
        "photos",
        "rate",
        "steps",
        "prior weight",
        "blend",
        "ID, other photos",
        "ID, input photo",
        "ID, other people",
        "pictures without a face",
    ]
    pictures = tuning["people"] * tuning["pictures"]
    rows = []
    for row in tuning["rows"]:
        o = row["options"]
        tried = [f"{o[key]:g}" for key in ("lr", "steps", "prior_weight", "blend")] if o else ["not trained", "", "", ""]
        scores = [f"{row['id_other']:.3f} ± {row['id_other_se']:.3f}", f"{row['id_input']:.3f}", f"{row['id_strangers']:.3f}"]
        rows.append(["many" if row["many"] else "one", *tried, *scores, f"{row['missed']} of {pictures}"])
    return f"{markdown({'head': head, 'rows': rows})}\n\n`{tuning['command']}`, {tuning['people']} people of val, {tuning['start']}."


def edits_text(edits: Mapping[str, Any]) -> str:
    """What edits changed and kept, one row per setting, as Markdown."""
    names = [fit["name"] for fit in edits["directions"]]
    head = [
        "edit",
        "strength",
        "way",
        *(f"{name}, change" for name in names),
        *(f"{name}, pictures" for name in names),
        "ID kept",
        "pictures without a face",
    ]
    original = edits["original"]

    def cells(row: Mapping[str, Any]) -> list[str]:
        changes = [f"{row[f'{name}_change']:+.2f} ± {row[f'{name}_change_se']:.2f}" if f"{name}_change" in row else "" for name in names]
        return [*changes, *(f"{row[f'{name}_share']:.0%}" for name in names)]

    rows = [["none", "", "", *cells(original), "", f"{original['missed']}"]]
    for row in edits["rows"]:
        kept = f"{row['id_kept']:.2f} ± {row['id_kept_se']:.2f}"
        rows.append([row["attribute"], f"{row['strength']:+g}", row["way"], *cells(row), kept, f"{row['missed']}"])
    accuracies = "; ".join(
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
        f"`{edits['command']}`: {space['kind']}, m = {space['m']}, {asked['people']} people, {original['pictures']} pictures per row; "
        f"mean ± standard error over people. Late injection at {asked['inject_at']}. ID Score of unedited pictures: one person, two seeds "
        f"{same:.2f}, two people, one seed {others:.2f}. Classifiers' balanced accuracy on the people scored: {accuracies}. Correlation of "
        f"label and score predicted for held-out people: {fits}."
    )


def collapse_text(found: Mapping[str, Any]) -> str:
    """What each remedy does to the published VAE, one row per space, as Markdown."""
    head = ["space", "steps", "can keep", "lost, train", "held out", "best", "KL", "linear optimum", "KL a latent, middle half", "active"]
    head += ["decoded spread", "drawn spread", "ID, two draws", "one draw twice", "ID, reconstructed", "pictures without a face", "seconds"]
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
        f"`{command_of(found)}`: m = {asked['m']}, hidden widths {asked['widths']}, {adapters['train']:,} adapters to train on and "
        f"{adapters['held_out']} of held-out people, d = {adapters['d']:,}, seed {asked['seed']}; {trained['pictures']} pictures of draws, "
        f"{asked['people']} people reconstructed; seconds of one core."
    )


def samples_text(found: Mapping[str, Any]) -> str:
    """Whether drawn models are people, one row per space, as Markdown."""
    head = ["models", "pictures without a face", "one model, two seeds", "two models, one seed", "conditions met"]
    rows = []
    for name, row in found["rows"].items():
        scores = ["" if row[key] is None else f"{row[key]:.2f}" for key in ("within", "between")]
        held = ", ".join(bar for bar, holds in row.get("bars", {}).items() if holds) or ("none" if "bars" in row else "")
        rows.append([name, f"{row['missed']} of {row['pictures']}", *scores, held])
    return f"{markdown({'head': head, 'rows': rows})}\n\n`{command_of(found)}`; ID Score between generated pictures."


def directions_text(found: Mapping[str, Any]) -> str:
    """What other linear directions find, one row per set, as Markdown."""
    head = ["directions", "ID, other photos", "ID, input photo", "pictures without a face"]
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
    return f"{markdown({'head': head, 'rows': rows})}\n\n`{command_of(found)}`, {found['split']} split, m = {found['m']}, {people} people."


def command_of(found: Mapping[str, Any]) -> str:
    """The command as it is typed in the repository: that of a script holds the script's name alone."""
    command = str(found["command"])
    return f"python benchmarks/{command}" if command.split()[0].endswith(".py") else command


def published_text(found: Mapping[str, Any]) -> str:
    """The published inversions beside ours, one row per recipe, as Markdown."""
    head = ["recipe", "ID Score against other photos", "pictures without a face", "UNet evaluations"]
    rows = [
        [row["recipe"], f"{row['id_other']:.2f} ± {row['se']:.2f}", f"{row['missed']} of {row['pictures']}", f"{row['unet_evals']:.0f}"]
        for row in found["rows"]
    ]
    about = f"n = {found['rows'][0]['n']} people of the {found['split']} split; mean ± standard error over people"
    return f"{markdown({'head': head, 'rows': rows})}\n\n{about}. `{command_of(found)}`"


def paintings_text(found: Mapping[str, Any]) -> str:
    """Portraits of other centuries inverted, one row per way, as Markdown."""
    head = ["way, m = 128", "ID Score against the portrait", "pictures without a face", "UNet evaluations"]
    rows = [
        [row["way"], f"{row['id_input']:.2f} ± {row['se']:.2f}", f"{row['no_face']} of {row['pictures']}", f"{row['unet_evals']:.0f}"]
        for row in found["rows"]
    ]
    without = f"no face was found in {len(found['without_a_face'])} others ({', '.join(found['without_a_face'])})"
    about = f"n = {len(found['portraits'])} portraits; {without}; mean ± standard error over portraits with a face in a picture"
    command = re.sub(r"\S*(?=/usr/share/games)", "freecol", command_of(found))  # the folder that the package was unpacked to
    return f"{markdown({'head': head, 'rows': rows})}\n\n{about}. `{command}`"


def prior_text(found: Mapping[str, Any]) -> str:
    """Priors held against held-out people, one row each, as Markdown."""
    keys = ("nearest_ratio", "auc", "precision", "recall", "density", "coverage", "kid", "same", "different", "max_id")
    head = [
        "prior",
        "nearest row",
        "AUC",
        "precision",
        "recall",
        "density",
        "coverage",
        "KID",
        "same",
        "different",
        "highest ID",
        "no face",
    ]
    rows = [[row["name"], *(f"{row[key]:.2f}" for key in keys), f"{row['no_face']} of {row['pictures']}"] for row in found["prior"]]
    about = found["prior_about"]
    n = f"{about['points']} points of the fit, {about['held_out']} held out, {about['models']} models of each, m = {about['m']}"
    asked = "; ".join(f"`{row['attribute']}` at guidance {row['guidance']:g}: {row['moved']:.2f}" for row in found["prior_asked"])
    moved = f"How far the flow moves an attribute from 0 to 1, over the distance of real people's means: {asked}."
    like = found["prior_like"]
    near = f"Points drawn for held-out people's descriptions lie {like['own']:.1f} from theirs, {like['another']:.1f} from others'."
    return f"{markdown({'head': head, 'rows': rows})}\n\nlast run `{command_of(about)}`: {n}.\n\n{moved} {near}"
