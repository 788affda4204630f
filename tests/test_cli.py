"""The command line: quick help, one JSON object, dry runs that make nothing, and one clear line for bad input."""

import ast
import errno
import inspect
import os
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import torch
import typer

from conftest import Ended, refused, write_faces
from w2wpp.base.train import BaseTraining
from w2wpp.cli import app
from w2wpp.cli.help import FIRST, PANELS
from w2wpp.dataset.weights import WeightDataset
from w2wpp.demo import DemoOptions
from w2wpp.inversion.gradient import REFINED, InversionOptions
from w2wpp.inversion.resembling import LikenessOptions
from w2wpp.lora.layout import Layout
from w2wpp.photos.images import write_image
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.vae_options import VaeOptions

Call = Callable[..., Ended]
VERBS = {
    "faces align", "base train", "base sharpen", "base show", "adapters train", "adapters status",
    "dataset info", "dataset select", "dataset merge", "dataset labels", "import",
    "fit pca", "fit vae", "fit anchored-vae", "fit encoder", "fit prior",
    "sample", "interpolate", "reconstruct", "edit", "invert", "generate", "score", "export", "evaluate", "demo",
    "similar", "dedupe", "mix", "resize", "map", "explore",
}  # fmt: skip


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every verb with its full name."""
    if not hasattr(command, "commands"):
        yield " ".join(path), command
        return
    for name, sub in command.commands.items():
        yield from leaves(sub, (*path, name))


COMMANDS = dict(leaves(typer.main.get_command(app)))


def flags(verb: str) -> dict[str, Any]:
    """A verb's options by long name, with their defaults."""
    return {option.opts[0]: option.default for option in COMMANDS[verb].params}


def test_the_verbs_are_those_of_the_documentation() -> None:
    assert set(COMMANDS) == VERBS


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_option_has_help_and_files_come_with_a_dry_run(verb: str) -> None:
    for param in COMMANDS[verb].params:
        assert getattr(param, "help", None), f"{param.name} of {verb} has no help"
    assert "--json" in flags(verb)
    assert ("--out" in flags(verb)) == ("--dry-run" in flags(verb)) == ("--runs" in flags(verb))


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_ends_with_an_example_that_parses_and_has_its_options_in_panels(w2w: Call, verb: str) -> None:
    """The example is parsed by typer, so that it cannot rot."""
    command = COMMANDS[verb]
    assert command.epilog.startswith(f"Example: w2w {verb}")
    depth = len(verb.split())
    command.make_context("w2w", shlex.split(command.epilog)[2 + depth :])
    for param in command.params:
        assert param.param_type_name == "argument" or param.rich_help_panel in PANELS
        assert "[" not in param.help, f"{param.name} of {verb}: markup would swallow what is in brackets"
    ended = w2w(*verb.split(), "--help")
    assert ended.code == 0 and " ".join(ended.out.split()).endswith(command.epilog)
    panels = [panel for panel in PANELS if f"─ {panel} ─" in ended.out]
    assert "Output" in panels and panels == sorted(panels, key=lambda panel: ended.out.index(f"─ {panel} ─"))


def test_w2w_alone_shows_the_pipeline_and_five_commands_that_parse(w2w: Call) -> None:
    ended = w2w()
    assert ended.code == 0
    assert "photos -> base -> adapters -> dataset -> spaces -> inversion -> exchange -> evaluation" in ended.out
    assert len(FIRST) == 5 and max(map(len, ended.out.splitlines())) <= 120
    for line, _ in FIRST:
        assert line in ended.out
        name, *words = shlex.split(line)[1:]
        COMMANDS[name].make_context("w2w", words)
    for verb in VERBS:
        assert all(word in ended.out for word in verb.split())


def test_help_lists_the_verbs_in_the_order_of_the_pipeline(w2w: Call) -> None:
    said = w2w("--help").out
    order = ["faces", "base", "adapters", "dataset", "fit", "sample", "invert", "import", "score", "evaluate", "demo"]
    places = [said.index(f"│ {name} ") for name in order]
    assert places == sorted(places)


def test_completion_can_be_installed(w2w: Call) -> None:
    assert "--install-completion" in w2w("--help").out


def numbers_of(function: Any) -> Iterator[tuple[str, Any]]:
    """The options of a verb that are numbers, and what typer knows of each."""
    for name, annotation in get_type_hints(function, include_extras=True).items():
        kind, *about = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
        if {int, float} & {kind, *get_args(kind)}:
            yield name, about[0] if about else None


@pytest.mark.parametrize("group", [app, *(info.typer_instance for info in app.registered_groups)])
def test_every_number_has_a_bound(group: Any) -> None:
    for info in group.registered_commands:
        for name, option in numbers_of(info.callback):
            assert option is not None and option.min is not None, f"{name} of {info.callback.__name__}"


@pytest.mark.parametrize("group", [app, *(info.typer_instance for info in app.registered_groups)])
def test_a_verb_parses_calls_and_prints(group: Any) -> None:
    """Below its signature and docstring a verb has 40 lines at most: what is longer belongs in the library."""
    for info in group.registered_commands:
        function = ast.parse(textwrap.dedent(inspect.getsource(info.callback))).body[0]
        assert isinstance(function, ast.FunctionDef) and function.end_lineno and ast.get_docstring(function)
        assert function.end_lineno - function.body[1].lineno < 40, function.name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("fit vae --m 0", "'--m': Input should be greater than or equal to 1"),
        ("fit vae --bogus 3", "No such option: --bogus"),
        ("nosuch", "No such command 'nosuch'"),
        ("invert", "Missing argument 'space'"),
    ],
)
def test_a_command_line_that_is_wrong_says_so_in_one_line(w2w: Call, words: str, expected: str) -> None:
    refused(w2w(*words.split()), expected, "--help` lists")


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, w2wpp.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def said(command: str, option: str) -> str:
    """What the help gives as the default of an option that has none of its own."""
    return next(given.show_default for given in COMMANDS[command].params if given.opts[0] == f"--{option}")


def test_flags_say_the_same_defaults_as_the_library() -> None:
    vae, inversion, base, demo = VaeOptions(), InversionOptions(), BaseTraining(), DemoOptions()
    for name in ("m", "epochs", "batch", "lr", "kl_weight", "warmup_epochs", "schedule", "variant"):
        ours = getattr(vae, name)
        assert name == "variant" or said("fit vae", name.replace("_", "-")).split(";")[0] == (
            ours if isinstance(ours, str) else f"{ours:g}"
        )
    assert said("fit vae", "widths").split(";")[0] == ",".join(map(str, vae.widths))
    for name in ("prompt", "seed"):
        assert flags("invert")[f"--{name.replace('_', '-')}"] == getattr(inversion, name) == getattr(REFINED, name)
    likeness = LikenessOptions()
    for name in ("steps", "batch", "lr"):
        assert (
            said("invert", name)
            == f"{getattr(inversion, name):g}; from an encoder {getattr(REFINED, name):g}, by likeness {getattr(likeness, name):g}"
        )
    assert said("invert", "prior-weight") == f"{inversion.prior_weight:g}" and REFINED.prior_weight == inversion.prior_weight
    assert flags("base train")["--autoencoder-steps"] == base.autoencoder.steps
    assert flags("base train")["--denoiser-steps"] == base.denoiser.steps
    assert flags("base train")["--batch"] == base.denoiser.batch
    assert (flags("demo")["--base"], flags("demo")["--dataset"]) == (demo.base, demo.dataset)


@pytest.fixture
def space(tmp_path: Path, dataset: Path) -> Path:
    """A PCA space of them."""
    PcaSpace.fit(WeightDataset.load(dataset), m=4).save(tmp_path / "space.safetensors")
    return tmp_path / "space.safetensors"


@pytest.mark.parametrize("verb", sorted(verb for verb in VERBS if "--dry-run" in flags(verb)))
def test_a_dry_run_of_each_example_says_its_options_and_nothing_of_python(w2w: Call, verb: str, tmp_path: Path) -> None:
    said = w2w(*shlex.split(COMMANDS[verb].epilog)[2:], "--dry-run", "--runs", tmp_path / "runs", "--json").json()["options"]
    assert {param.name for param in COMMANDS[verb].params} - {"dry_run", "as_json", "runs", "help"} <= said.keys()
    assert not [value for value in said.values() if "<" in str(value)]
    assert not (tmp_path / "runs").exists()


def test_dry_run_shows_the_resolved_options_and_makes_nothing(w2w: Call, tmp_path: Path, dataset: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    ended = w2w("fit", "vae", dataset, "--m", 7, "--runs", tmp_path / "runs", "--dry-run", "--json").json()
    assert (ended["options"]["m"], ended["options"]["lr"]) == (7, 1e-4)
    assert ended["writes"][0].endswith("fit-vae/space.safetensors")
    assert sorted(tmp_path.rglob("*")) == before


def test_without_json_the_result_is_for_people(w2w: Call, dataset: Path) -> None:
    ended = w2w("dataset", "info", dataset)
    assert ended.code == 0
    assert not ended.out.startswith("{")


def test_a_folder_with_no_people(w2w: Call, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(w2w("faces", "align", tmp_path / "empty", "--out", tmp_path / "faces", "--runs", tmp_path / "runs"), "no person/photo.jpg")
    assert not (tmp_path / "faces").exists()


def test_a_photo_without_a_face_or_cut_short(w2w: Call, tmp_path: Path, pico: Path, space: Path) -> None:
    blank = tmp_path / "blank.png"
    write_image(blank, torch.full((64, 64, 3), 127, dtype=torch.uint8).numpy())
    options = ["--base", pico, "--runs", tmp_path / "runs", "--device", "cpu"]
    refused(w2w("invert", space, blank, *options), "no face")
    blank.write_bytes(blank.read_bytes()[:40])
    refused(w2w("invert", space, blank, *options), "not a readable picture")


def test_options_that_would_be_ignored(w2w: Call, tmp_path: Path, pico: Path, space: Path) -> None:
    blank = tmp_path / "blank.png"
    write_image(blank, torch.full((64, 64, 3), 127, dtype=torch.uint8).numpy())
    options = ["--base", pico, "--runs", tmp_path / "runs", "--device", "cpu", "--no-align"]
    refused(w2w("invert", space, blank, "--published", "--steps", 3, "--prior-weight", 0, *options), "--steps, --prior-weight")


def test_an_unknown_word(w2w: Call, tmp_path: Path, pico: Path) -> None:
    refused(w2w("generate", "photo of zork", "--base", pico, "--runs", tmp_path / "runs"), "zork", "does not know")


def test_another_rank_or_base(w2w: Call, tmp_path: Path, base: Any, pico: Path, space: Path) -> None:
    other = Layout.of(base.pipeline.unet, rank=2)
    data = WeightDataset.create(tmp_path / "rank-2", other, base.id)
    data.append(torch.zeros(1, other.d), ["someone"], [{"person": "someone"}])
    options = ["--base", pico, "--runs", tmp_path / "runs"]
    refused(w2w("reconstruct", space, tmp_path / "rank-2", *options), "rank 1", "rank 2")
    foreign = WeightDataset.create(tmp_path / "foreign", other, "0" * 16)
    foreign.append(torch.zeros(1, other.d), ["someone"], [{"person": "someone"}])
    refused(w2w("generate", "--dataset", tmp_path / "foreign", *options), "0" * 16, base.id)


def test_a_space_cut_short_and_m_beyond_n(w2w: Call, tmp_path: Path, pico: Path, dataset: Path, space: Path) -> None:
    runs = tmp_path / "runs"
    before = space.read_bytes()
    refused(w2w("fit", "pca", dataset, "--m", 10, "--out", space, "--overwrite", "--runs", runs), "10")
    assert space.read_bytes() == before
    space.write_bytes(before[:-100])
    refused(w2w("sample", space, "--base", pico, "--runs", runs), "space.safetensors")


def test_an_id_that_is_not_there(w2w: Call, tmp_path: Path, pico: Path, dataset: Path) -> None:
    ended = w2w("export", "--dataset", dataset, "--id", "nobody", "--base", pico, "--runs", tmp_path / "runs")
    refused(ended, "'nobody'", "person-0")


def test_a_full_disk_leaves_the_old_file(w2w: Call, tmp_path: Path, dataset: Path, space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = space.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(w2w("fit", "pca", dataset, "--m", 3, "--out", space, "--overwrite", "--runs", tmp_path / "runs"), "No space left")
    assert space.read_bytes() == before


def test_adapters_need_a_base_that_fits_the_faces(w2w: Call, tmp_path: Path, pico: Path) -> None:
    faces = write_faces(tmp_path / "faces", {"Ada": 1}, size=24)
    ended = w2w(
        "adapters", "train", faces, "--out", tmp_path / "d", "--base", pico, "--steps", 1, "--prior-weight", 0, "--runs", tmp_path / "runs"
    )
    refused(ended, "24x24", "16x16")
