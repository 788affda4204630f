"""Run examples/tour.ipynb from top to bottom, in a temporary folder; the notebook itself stays as it is.

It fails where a cell fails. `--pictures docs/pictures` also copies its pictures there, as tour-NAME.png.
"""

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "tour.ipynb"


def run_tour(pictures: Path | None) -> list[Path]:
    """Execute every cell; returns the pictures that were copied. Raises nbclient's CellExecutionError where a cell fails."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
        made = sorted(Path(folder, "tour").glob("*.png"))
        if pictures is None:
            return made
        return [Path(shutil.copy(picture, pictures / f"tour-{picture.name}")) for picture in made]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="Folder for the pictures; they are not kept unless given.")
    for made in run_tour(parser.parse_args().pictures):
        print(made)
