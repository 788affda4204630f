"""The report and the README's table come from results files alone."""

from pathlib import Path

import numpy as np
import pytest

from docs import TABLES, filled
from result_tables import (
    HEADLINE,
    base_text,
    by_m_text,
    headline_text,
    recogniser_text,
    start_text,
    table1_text,
    tuning_text,
)
from speed_tables import pca_sizes_text, pca_text
from w2wpp.common.errors import W2WError
from w2wpp.photos.images import write_image
from w2wpp.report.html import table1_rows, write_report

TABLE1 = {
    "split": "test",
    "base": "tiny-faces",
    "command": "w2w evaluate faces",
    "seed": 0,
    "versions": {},
    "rows": [
        {"method": "base", "space": None, "m": None, "id_input": 0.1, "id_input_se": 0.004, "id_other": 0.09, "id_other_se": None}
        | {"id_other_people": 0.08, "id_other_people_se": 0.01, "n": 80, "missed": 3, "unet_evals": None, "seconds": None},
        {"method": "inversion", "space": "pca", "m": 128, "id_input": 0.456, "id_input_se": 0.021, "id_other": None, "id_other_se": None}
        | {"id_other_people": 0.09, "id_other_people_se": 0.01, "n": 80, "missed": 0, "unet_evals": 4000, "seconds": 12.345}
        | {"against": {"inversion, published": {"id_other": {"difference": 0.04, "se": 0.012, "p": 0.01, "n": 80}}}},
    ],
}


def test_table_shows_errors_counts_and_gaps() -> None:
    base, pca = table1_rows(TABLE1)["rows"]
    assert base == ["base", "", "", "0.10 ± 0.00", "0.09", "0.08 ± 0.01", "", "80", "3", "", ""]
    assert pca == ["inversion", "pca", "128", "0.46 ± 0.02", "", "0.09 ± 0.01", "+0.040 ± 0.012", "80", "0", "4,000", "12.3"]


def test_a_page_changes_only_between_the_markers_and_twice_is_once() -> None:
    begin, end = "<!-- table1:begin -->", "<!-- table1:end -->"
    text = table1_text(TABLE1)
    assert text.startswith("| method") and "`w2w evaluate faces`" in text
    once = filled(f"before\n{begin}\nold\n{end}\nafter\n", "table1", text)
    assert once.startswith(f"before\n{begin}\n| method") and once.endswith(f"{end}\nafter\n")
    assert "old" not in once
    assert filled(once, "table1", text) == once
    with pytest.raises(W2WError, match="has no"):
        filled("no markers", "table1", text)


def test_the_tuning_table_says_what_was_tried() -> None:
    options = {"targets": ["to_q"], "rank": 1, "alpha": 9.0, "lr": 0.02, "steps": 60, "batch": 2, "prior_batch": 1, "prior_weight": 0.25}
    row = {"id": 0.2146, "se": 0.021, "others": 0.1, "missed": 3.0, "d": 3200.0, "options": options}
    text = tuning_text({"command": "python tune", "people": 24, "pictures": 4, "rows": [row]})
    assert "| to_q | 1 | 3,200 | 9 | 0.02 | 60 x (2 + 1) | 0.25 | 0.215 ± 0.021 | 0.100 | 3 of 96 |" in text


def test_the_table_of_starts_says_what_was_tried_and_what_was_not_trained() -> None:
    scores = {"id_other": 0.3471, "id_other_se": 0.011, "id_input": 0.43, "id_strangers": 0.09, "missed": 4}
    options = {"lr": 0.002, "steps": 90, "prior_weight": 0.1, "blend": 0.5}
    rows = [{"many": False, "options": None, **scores}, {"many": True, "options": options, **scores}]
    text = start_text({"command": "python tune", "people": 10, "pictures": 6, "start": "encoder x", "rows": rows})
    assert "| one | not trained |  |  |  | 0.347 ± 0.011 | 0.430 | 0.090 | 4 of 60 |" in text
    assert "| many | 0.002 | 90 | 0.1 | 0.5 | 0.347 ± 0.011 |" in text


def test_the_recognisers_table_names_the_reference_and_the_bases_its_gap() -> None:
    row = {"people": 60, "faces": 120, "same": 0.669, "same_se": 0.017, "different": 0.087, "different_sd": 0.142, "rank1": 0.95}
    text = recogniser_text({"command": "python face_recogniser", "size": 64, "rows": [row], "reference": row | {"same": 0.698}})
    assert "| two each of 60 people | 120 | 0.669 ± 0.017 | 0.087 (sd 0.142) | 95.0% |" in text
    assert "| two each of 60 people, the reference | 120 | 0.698" in text and "64x64" in text
    measured = {"samples": 200, "faces_found": 0.985, "autoencoder_cosine": 0.9, "autoencoder_n": 560}
    text = base_text({"command": "w2w base show", "measured": measured | {"name_id": 0.42, "name_floor": 0.114, "name_people": 60}})
    assert "| 95% | 98.5% |" in text and "| 0.25 | 0.306 (0.420 - 0.114) |" in text


def test_the_headline_has_six_rows_and_a_bare_row_for_real_photos() -> None:
    keys = [key for _, *key in HEADLINE]
    rows = [{**TABLE1["rows"][0], "method": method, "space": space, "m": m, "pictures": 240} for method, space, m in keys]
    rows[-1] |= {"pictures": 0, "id_other": 0.62, "id_other_se": 0.02}
    text = headline_text({**TABLE1, "rows": rows}).splitlines()
    assert len(text) == 2 + 6 + 2 and text[2] == "| base, no adapter | 0.09 | 3 of 240 |  |"
    assert text[7] == "| real photos | 0.62 ± 0.02 |  |  |" and text[-1].startswith("n = 80 people")


def test_the_table_by_m_has_one_row_per_method_and_one_column_per_m() -> None:
    text = by_m_text(TABLE1).splitlines()
    assert text[0] == "| method | space | no space | m = 128 | UNet evaluations |"
    assert text[2] == "| base |  | 0.09 |  |  |" and text[3] == "| inversion | pca |  |  | 4,000 |"
    assert "80 people of the test split" in text[-1]


def test_pca_is_compared_round_by_round_and_an_unfinished_way_says_how_far_it_came() -> None:
    size = {"n": 4000, "d": 20000, "m": 200, "cpu_seconds": 4.0, "peak_gib": 0.5, "explained_variance": 0.65}
    runs = [{**size, "way": way, "seconds": seconds} for way, seconds in (("ours", 1), ("other", 4), ("ours", 2), ("other", 6))]
    about = {"command": "python pca", "machine": {"cpu": "a cpu", "threads": 2, "memory_gib": 23.5}}
    assert "| other | 5.0 | 3.5 | 4.0 | 0.50 | 0.65000 |" in pca_text({**about, "runs": runs})
    stopped = {**size, "way": "other", "seconds": 60.0, "rows_done": 1000, "extrapolated_seconds": 240.0}
    ended = {"n": 4000, "d": 20000, "m": 200, "way": "third", "ended": "not started"}
    text = pca_sizes_text({**about, "runs": [runs[2], stopped, ended]})
    assert "| 4,000 | 20,000 | 200 | other | 240, from its first 1,000 rows | 4.0 | 0.50 |  |" in text
    assert "| third | not started |" in text and "2 threads" in text


@pytest.mark.parametrize(("page", "name"), [(page, name) for page, name, _, _ in TABLES])
def test_the_repositorys_pages_have_the_markers(page: Path, name: str) -> None:
    text = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
    assert text.count(f"<!-- {name}:begin -->") == text.count(f"<!-- {name}:end -->") == 1


def test_report_escapes_text_and_embeds_pictures(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    results = {
        "title": "A <title>",
        "subtitle": "",
        "command": "w2w demo",
        "seed": 0,
        "sections": [
            {"title": "Pictures", "figures": [{"file": "a.png", "caption": "a & b"}]},
            {"title": "Curves", "curves": [{"caption": "loss", "ylabel": "loss", "log": True, "series": {"train": [2.0, 1.0]}}]},
            {"title": "Table", "table": table1_rows(TABLE1)},
        ],
    }
    html = write_report(tmp_path, results).read_text()
    assert "A &lt;title&gt;" in html and "a &amp; b" in html
    assert "data:image/png;base64," in html and "<svg" in html and "0.46 ± 0.02" in html
    (tmp_path / "a.png").unlink()
    with pytest.raises(W2WError, match=r"a\.png"):
        write_report(tmp_path, results)
