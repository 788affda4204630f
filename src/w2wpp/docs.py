"""`make docs`: bring results into the documentation, so that no figure or picture there is made by hand.

Tables go between their markers, `<!-- name:begin -->` and `<!-- name:end -->`: table 1 into README.md (its headline) and
docs/results.md, and there the adapters and the benchmarks of speed too, the edits into docs/editing.md, the VAE's collapse into
docs/collapse.md, drawn models and other directions into docs/inversion.md. The newest demo's pictures go to
docs/pictures (generated faces and a public-domain photo only), and with them the loss curves of tiny-faces.
"""

from pathlib import Path

from w2wpp.base_model import ASSETS
from w2wpp.errors import W2WError
from w2wpp.figures import curves_svg
from w2wpp.files import read_json, write_text
from w2wpp.images import read_image, write_image
from w2wpp.result_tables import (
    adapters_text,
    base_text,
    collapse_text,
    directions_text,
    edits_text,
    faults_text,
    headline_text,
    judge_text,
    pca_sizes_text,
    pca_text,
    population_text,
    reading_text,
    samples_text,
    start_text,
    table1_text,
    tuning_text,
)
from w2wpp.runs import newest

TABLE1 = Path("docs/results/table1.json")
ADAPTERS = Path("docs/results/adapters.json")  # on val, people with four or more photos: DreamBooth, and from the encoder
ADAPTERS_WIDE = Path("docs/results/adapters-wide.json")  # the same of adapters of every linear layer, from nothing
SEARCHES = Path("docs/results/searches.json")  # on val, without PCA: eq. 7, CMA-ES and the cross-entropy method
BENCHMARKS = Path("benchmarks/results")
README, RESULTS, EDITING, COLLAPSED, INVERSION = (
    Path(page) for page in ("README.md", "docs/results.md", "docs/editing.md", "docs/collapse.md", "docs/inversion.md")
)
LORAS = Path("docs/bring-your-own-loras.md")
PICTURES = Path("docs/pictures")
OF_DEMO = {
    "drawn-PCA-w2w/pictures.png": "drawn-pca.png",
    "drawn-VAE-w2w/pictures.png": "drawn-vae.png",
    "drawn-anchored-VAE/pictures.png": "drawn-anchored-vae.png",
    "strip.png": "strip.png",
    "reconstructions.png": "reconstructions.png",
    "inverted.png": "inverted.png",
}


def filled(page: str, name: str, text: str) -> str:
    """`page` with what stands between the markers of `name` replaced by `text`. Raises W2WError without the markers."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if begin not in page or end not in page:
        raise W2WError(f"the page has no {begin} and {end}. Put both where {name} belongs.")
    before, rest = page.split(begin, 1)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}"


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
        (README, "headline", TABLE1, headline_text),
        (RESULTS, "base", Path("docs/results/base.json"), base_text),
        (RESULTS, "judge", BENCHMARKS / "judge.json", judge_text),
        (RESULTS, "table1", TABLE1, table1_text),
        (RESULTS, "adapters-val", ADAPTERS, table1_text),
        (RESULTS, "adapters-wide", ADAPTERS_WIDE, table1_text),
        (RESULTS, "tuning", BENCHMARKS / "tune_adapters.json", tuning_text),
        (RESULTS, "start", BENCHMARKS / "tune_start.json", start_text),
        (RESULTS, "adapters", BENCHMARKS / "adapters.json", adapters_text),
        (RESULTS, "population", BENCHMARKS / "population.json", population_text),
        (RESULTS, "pca", BENCHMARKS / "pca.json", pca_text),
        (RESULTS, "pca-large", BENCHMARKS / "pca_large.json", pca_sizes_text),
        (RESULTS, "pca-growth", BENCHMARKS / "pca_growth.json", pca_sizes_text),
        (RESULTS, "reading", BENCHMARKS / "reading.json", reading_text),
        (LORAS, "faults", BENCHMARKS / "faults.json", faults_text),
        (EDITING, "edits", BENCHMARKS / "edits.json", edits_text),
        (COLLAPSED, "collapse", BENCHMARKS / "collapse.json", collapse_text),
        (INVERSION, "searches", SEARCHES, table1_text),
        (INVERSION, "samples", BENCHMARKS / "samples.json", samples_text),
        (INVERSION, "directions", BENCHMARKS / "directions.json", directions_text),
    ):
        write_text(page, filled(page.read_text(encoding="utf-8"), name, text(read_json(source))))
        made.append(page)
    print(*dict.fromkeys(made), sep="\n")
