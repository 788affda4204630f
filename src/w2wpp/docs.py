"""`make docs`: bring results into the documentation, so that no figure or picture there is made by hand.

Table 1 goes into README.md, between its markers, from docs/results/table1.json; the newest demo's pictures go to
docs/pictures (generated faces and a public-domain photo only), and with them the loss curves of tiny-faces.
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

BEGIN, END = "<!-- table1:begin -->", "<!-- table1:end -->"
TABLE1 = Path("docs/results/table1.json")
README = Path("README.md")
PICTURES = Path("docs/pictures")
OF_DEMO = {
    "drawn-PCA-w2w/pictures.png": "drawn-pca.png",
    "drawn-VAE-w2w/pictures.png": "drawn-vae.png",
    "strip.png": "strip.png",
    "reconstructions.png": "reconstructions.png",
    "inverted.png": "inverted.png",
}


def markdown(table: Mapping[str, Any]) -> str:
    """A {head, rows} table as Markdown."""
    lines = [table["head"], ["---"] * len(table["head"]), *table["rows"]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_table1(readme: str, table1: Mapping[str, Any]) -> str:
    """`readme` with the text between its markers replaced by table 1. Raises W2WError without the markers."""
    if BEGIN not in readme or END not in readme:
        raise W2WError(f"the README has no {BEGIN} and {END}. Put both where the table belongs.")
    before, rest = readme.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    caption = f"`{table1['command']}`, {table1['split']} split, seed {table1['seed']}; mean ± standard error over people."
    return f"{before}{BEGIN}\n{markdown(table1_rows(table1))}\n\n{caption}\n{END}{after}"


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
    if TABLE1.exists():
        write_text(README, with_table1(README.read_text(encoding="utf-8"), read_json(TABLE1)))
        made.append(README)
    print(*made, sep="\n")
