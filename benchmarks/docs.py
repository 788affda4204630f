"""`make docs`: bring results into the documentation, so that no figure or picture there is made by hand.

Tables go between their markers, `<!-- name:begin -->` and `<!-- name:end -->`; `TABLES` says which table goes into which page.
The newest demo's pictures go to docs/pictures (generated faces and a public-domain photo only).
"""

from pathlib import Path

from result_tables import (
    base_text,
    by_m_text,
    collapse_text,
    directions_text,
    edits_text,
    headline_text,
    paintings_text,
    prior_text,
    published_text,
    recogniser_text,
    samples_text,
    start_text,
    table1_text,
    tuning_text,
)
from scale_tables import kills_text, million_text, overhead_text, simulation_text
from space_tables import inversions_text, reconstruction_text
from speed_tables import (
    adapters_text,
    faults_text,
    import_text,
    inversion_speed_text,
    pca_sizes_text,
    pca_text,
    population_text,
    reading_text,
    sd15_text,
    similar_text,
)
from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_json, write_text
from w2wpp.common.runs import newest
from w2wpp.photos.images import read_image, write_image

TABLE1 = Path("docs/results/table1.json")
ADAPTERS = Path("docs/results/adapters.json")  # on val, people with four or more photos: DreamBooth, and from the encoder
ADAPTERS_WIDE = Path("docs/results/adapters-wide.json")  # the same of adapters of every linear layer, from nothing
SEARCHES = Path("docs/results/searches.json")  # on val, without PCA: eq. 7, CMA-ES and the cross-entropy method
BENCHMARKS = Path("benchmarks/results")
README, SCALE = Path("README.md"), Path("docs/scale.md")
RESULTS, EDITING, VAE, LORAS = (Path("docs") / page for page in ("results.md", "how/editing.md", "how/vae.md", "tutorials/your-loras.md"))
FLEETS, SD15, PUBLISHED = (Path("docs/tutorials") / page for page in ("fleets.md", "stable-diffusion.md", "published-files.md"))
COLLAPSED, INVERSION, TUNED = (Path("docs/research") / page for page in ("collapse.md", "inversion.md", "adapters.md"))
MADE = Path("docs/research/tiny-faces.md")
PICTURES = Path("docs/pictures")
OF_DEMO = {
    "drawn-anchored-VAE/pictures.png": "drawn.png",
    "strip.png": "strip.png",
    "edits.png": "edited.png",
    "inverted.png": "inverted.png",
}

# Page, marker, file of results, and the function that writes the table.
TABLES = (
    (README, "headline", TABLE1, headline_text),
    (RESULTS, "by-m", TABLE1, by_m_text),
    (RESULTS, "base", Path("docs/results/base.json"), base_text),
    (RESULTS, "recogniser", BENCHMARKS / "face_recogniser.json", recogniser_text),
    (RESULTS, "table1", TABLE1, table1_text),
    (TUNED, "adapters-val", ADAPTERS, table1_text),
    (TUNED, "adapters-wide", ADAPTERS_WIDE, table1_text),
    (TUNED, "tuning", BENCHMARKS / "tune_adapters.json", tuning_text),
    (TUNED, "start", BENCHMARKS / "tune_start.json", start_text),
    (RESULTS, "adapters", BENCHMARKS / "adapters.json", adapters_text),
    (RESULTS, "adapters-avx2", BENCHMARKS / "adapters_avx2.json", adapters_text),
    (TUNED, "population", BENCHMARKS / "population.json", population_text),
    (RESULTS, "pca", BENCHMARKS / "pca.json", pca_text),
    (RESULTS, "pca-large", BENCHMARKS / "pca_large.json", pca_sizes_text),
    (RESULTS, "pca-growth", BENCHMARKS / "pca_growth.json", pca_sizes_text),
    (RESULTS, "reading", BENCHMARKS / "reading.json", reading_text),
    (LORAS, "import", BENCHMARKS / "import.json", import_text),
    (FLEETS, "similar", BENCHMARKS / "similar.json", similar_text),
    (SD15, "sd15", BENCHMARKS / "sd15.json", sd15_text),
    (PUBLISHED, "published", BENCHMARKS / "published.json", published_text),
    (LORAS, "faults", BENCHMARKS / "faults.json", faults_text),
    (SCALE, "kills", BENCHMARKS / "ray_faults.json", kills_text),
    (SCALE, "overhead", BENCHMARKS / "ray_overhead.json", overhead_text),
    (SCALE, "simulation", BENCHMARKS / "ray_simulation.json", simulation_text),
    (SCALE, "million", BENCHMARKS / "million.json", million_text),
    (EDITING, "edits", BENCHMARKS / "edits.json", edits_text),
    (COLLAPSED, "collapse", BENCHMARKS / "collapse.json", collapse_text),
    (INVERSION, "searches", SEARCHES, table1_text),
    (VAE, "samples", BENCHMARKS / "samples.json", samples_text),
    (MADE, "one-space-adapters", Path("docs/results/one_space.json"), reconstruction_text),
    (MADE, "one-space-photos", Path("docs/results/one_space.json"), inversions_text),
    (MADE, "one-space-edits", BENCHMARKS / "edits_one_space.json", edits_text),
    (MADE, "one-space-edits-photos", BENCHMARKS / "edits_photos.json", edits_text),
    (MADE, "one-space-edits-mild", BENCHMARKS / "edits_mild.json", edits_text),
    (Path("docs/how/prior.md"), "prior", Path("docs/results/one_space.json"), prior_text),
    (Path("docs/how/inversion.md"), "paintings", Path("docs/results/paintings.json"), paintings_text),
    (Path("docs/how/inversion.md"), "inversion-speed", BENCHMARKS / "inversion_speed.json", inversion_speed_text),
    (INVERSION, "directions", BENCHMARKS / "directions.json", directions_text),
)


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


def write_tables() -> list[Path]:
    """Write every table of `TABLES` between its markers; returns the pages."""
    for page, name, source, text in TABLES:
        write_text(page, filled(page.read_text(encoding="utf-8"), name, text(read_json(source))))
    return list(dict.fromkeys(page for page, *_ in TABLES))


if __name__ == "__main__":
    print(*write_tables(), *demo_pictures(Path("runs"), PICTURES), sep="\n")
