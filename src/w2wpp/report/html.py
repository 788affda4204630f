"""report.html: one self-contained file, made from a run's `results.json` and the PNG files beside it.

`results["sections"]` is a list of {title, text, figures: [{file, caption}], curves: [{caption, ylabel, log, series}],
table: {head, rows}}; all but the title may be absent.
"""

import base64
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from w2wpp import __version__
from w2wpp.common.errors import W2WError
from w2wpp.common.files import write_text
from w2wpp.common.runs import newest, read_results
from w2wpp.report.figures import curves_svg


def write_report(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write `folder`/report.html from `results`; returns its path. Raises W2WError if a figure's file is missing."""
    template = Environment(loader=PackageLoader("w2wpp.report"), autoescape=True, undefined=StrictUndefined).get_template("report.html.j2")
    sections = [_embedded(folder, section) for section in results["sections"]]
    path = folder / "report.html"
    head = {key: results[key] for key in ("title", "subtitle", "command", "seed")}
    write_text(path, template.render(sections=sections, version=__version__, **head))
    return path


def _embedded(folder: Path, section: Mapping[str, Any]) -> dict[str, Any]:
    figures = [{"uri": data_uri(folder / figure["file"]), "caption": figure["caption"]} for figure in section.get("figures", ())]
    curves = [
        {"svg": curves_svg(curve["series"], "epoch", curve["ylabel"], log=curve["log"]), "caption": curve["caption"]}
        for curve in section.get("curves", ())
    ]
    return {
        "title": section["title"],
        "text": section.get("text", ""),
        "figures": figures,
        "curves": curves,
        "table": section.get("table"),
    }


def data_uri(path: Path) -> str:
    """A PNG file as a data: address."""
    try:
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise W2WError(f"cannot read the report's figure {path}: {error.strerror}. Run the command again.") from error


def table1_rows(table1: Mapping[str, Any]) -> dict[str, Any]:
    """Table 1 (see `evaluation.table1`) as {head, rows} of text, for reports and pages."""
    head = [
        "method",
        "space",
        "m",
        "ID, input photo",
        "ID, other photos",
        "ID, other people",
        "above PCA, published",
        "people",
        "pictures without a face",
        "UNet evaluations",
        "seconds",
    ]
    rows = [
        [
            row["method"],
            row["space"] or "",
            row["m"] or "",
            mean_se(row["id_input"], row["id_input_se"]),
            mean_se(row["id_other"], row["id_other_se"]),
            mean_se(row["id_other_people"], row["id_other_people_se"]),
            _above(row),
            row["n"],
            row["missed"],
            "" if row["unet_evals"] is None else f"{row['unet_evals']:,.0f}",
            "" if row["seconds"] is None else f"{row['seconds']:.1f}",
        ]
        for row in table1["rows"]
    ]
    return {"head": head, "rows": [[str(cell) for cell in row] for row in rows]}


def table1_report(table1: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What `write_report` needs for table 1 and the sheets of pictures that `evaluation.table1` left in `folder`/sheets."""
    sheets = sorted(path.relative_to(folder) for path in (folder / "sheets").glob("*.png"))
    figures = [{"file": str(path), "caption": f"{path.stem}: the input photo, then pictures; one row per person"} for path in sheets]
    return {
        "title": f"Table 1 on the {table1['split']} split",
        "subtitle": f"Base {table1['base']}. ID Score, mean ± standard error over people.",
        "command": table1["command"],
        "seed": table1["seed"],
        "sections": [
            {"title": "The table", "table": table1_rows(table1)},
            {"title": "Pictures beside their photos", "figures": figures},
        ],
    }


def _above(row: Mapping[str, Any]) -> str:
    """The paired difference of other photos' scores to published inversion in PCA of the same m."""
    found = row.get("against", {}).get("inversion, published", {}).get("id_other")
    return "" if not found or found["se"] is None else f"{found['difference']:+.3f} ± {found['se']:.3f}"


def mean_se(mean: float | None, error: float | None) -> str:
    """A mean and its standard error as a cell of a table; nothing where there is no mean."""
    if mean is None:
        return ""
    return f"{mean:.2f}" if error is None else f"{mean:.2f} ± {error:.2f}"


if __name__ == "__main__":
    run = Path(sys.argv[1]) if len(sys.argv) > 1 else newest("runs", "demo")
    print(write_report(run, read_results(run)))
