"""Adapters of other tools come in and go out: each way is checked by a forward pass of the real library's UNet."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from conftest import Ended
from w2wpp.base.model import BaseModel
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.formats.canonical import canonical, to_weights
from w2wpp.exchange.formats.diffusers import write_diffusers
from w2wpp.exchange.formats.kohya import write_kohya
from w2wpp.exchange.formats.lora_file import read_lora
from w2wpp.exchange.formats.peft import write_peft
from w2wpp.lora.batched import adapted
from w2wpp.lora.layout import Layout, layout_of

Command = Callable[..., Ended]


@pytest.fixture
def weights(layout: Layout) -> torch.Tensor:
    return torch.randn(layout.d, generator=torch.Generator().manual_seed(0)) * 0.1


def output(unet: torch.nn.Module, base: BaseModel) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(2, *base.latent_shape, generator=draw)
    context = base.encode_text(["photo of sks person"]).float().expand(2, -1, -1)
    with torch.no_grad():
        return unet(x, torch.tensor([100, 700]), context).sample


def ours(base: BaseModel, layout: Layout, weights: torch.Tensor) -> torch.Tensor:
    with adapted(base.pipeline.unet, layout, weights[None]):
        return output(base.pipeline.unet, base)


@pytest.mark.parametrize("write", [write_diffusers, write_kohya])
@pytest.mark.parametrize(("rank", "alpha"), [(1, 27.0), (3, 4.5)])
def test_diffusers_computes_what_we_computed(pico: Path, base: BaseModel, tmp_path: Path, write: Callable, rank: int, alpha: float) -> None:
    layout = Layout.of(base.pipeline.unet, rank=rank, alpha=alpha)
    weights = torch.randn(layout.d, generator=torch.Generator().manual_seed(1)) * 0.1
    write(tmp_path / "lora.safetensors", layout, weights)
    pipeline = StableDiffusionPipeline.from_pretrained(pico, dtype=torch.float32, safety_checker=None)
    pipeline.text_encoder.float()
    alone = output(pipeline.unet, base)
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    theirs = output(pipeline.unet, base)
    assert (theirs - alone).abs().max() > 1e-2  # the adapter matters, so equality says something
    torch.testing.assert_close(theirs, ours(base, layout, weights), atol=1e-4, rtol=0)


def old_diffusers(path: Path, layout: Layout, weights: torch.Tensor) -> None:
    keys = {".lora_A.": ".lora.down.", ".lora_B.": ".lora.up."}
    rename(path, layout, weights, keys, prefix="unet.", metadata={"unet.r": layout.rank, "unet.lora_alpha": layout.alpha})


def oldest_diffusers(path: Path, layout: Layout, weights: torch.Tensor) -> None:
    keys = {".to_q.lora_A.": ".processor.to_q_lora.down.", ".to_q.lora_B.": ".processor.to_q_lora.up."}
    keys |= {key.replace("to_q", "to_v"): value.replace("to_q", "to_v") for key, value in keys.items()}
    rename(path, layout, weights, keys, prefix="unet.", metadata={"unet.r": layout.rank, "unet.lora_alpha": layout.alpha})


def rename(path: Path, layout: Layout, weights: torch.Tensor, keys: dict[str, str], prefix: str, metadata: dict[str, float]) -> None:
    tensors = {}
    for name, matrix in layout.unflatten(weights).items():
        for old, new in keys.items():
            name = name.replace(old, new)
        tensors[prefix + name] = matrix.contiguous()
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(metadata)})


@pytest.mark.parametrize("write", [write_diffusers, write_kohya, old_diffusers, oldest_diffusers, None])
def test_every_format_reads_back_with_its_alpha(
    base: BaseModel, layout: Layout, weights: torch.Tensor, tmp_path: Path, write: Callable | None
) -> None:
    path = tmp_path / "lora.safetensors" if write else tmp_path / "lora"
    if write:
        write(path, layout, weights)
    else:
        write_peft(path, layout, weights, "pico")
    lora = read_lora(path, base.pipeline.unet)
    for name, matrix in layout.unflatten(weights).items():
        side = lora.down if ".lora_A." in name else lora.up
        assert torch.equal(side[name.rsplit(".lora_", 1)[0]], matrix)
    assert set(lora.scale.values()) == {layout.scale}
    row, error = to_weights(lora, layout)
    assert error < 1e-6
    torch.testing.assert_close(ours(base, layout, row), ours(base, layout, weights), atol=1e-4, rtol=0)


def test_equivalent_factors_become_equal() -> None:
    draw = torch.Generator().manual_seed(0)
    down, up, mix = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((3, 12), (9, 3), (3, 3)))
    a, b, values = canonical(down, up, 3)
    again_a, again_b, _ = canonical(torch.linalg.inv(mix) @ down, up @ mix, 3)
    torch.testing.assert_close(again_a, a, atol=1e-5, rtol=0)
    torch.testing.assert_close(again_b, b, atol=1e-5, rtol=0)
    torch.testing.assert_close((b @ a).double(), up @ down, atol=1e-5, rtol=0)
    wide_a, wide_b, _ = canonical(down, up, 5)  # a larger rank: the same product, padded
    torch.testing.assert_close((wide_b @ wide_a).double(), up @ down, atol=1e-5, rtol=0)
    cut_a, cut_b, _ = canonical(down, up, 1)  # Eckart and Young 1936
    torch.testing.assert_close((up @ down - (cut_b @ cut_a).double()).norm(), values[1:].norm(), atol=1e-5, rtol=0)


def test_files_of_many_tools_ranks_and_alphas_become_rows(w2w: Command, pico: Path, base: BaseModel, tmp_path: Path) -> None:
    unet, draw = base.pipeline.unet, torch.Generator().manual_seed(3)
    made = {}
    for name, rank, alpha, write in (("a/one", 1, 27.0, write_kohya), ("two", 4, 2.0, write_diffusers)):
        layout = Layout.of(unet, rank=rank, alpha=alpha)
        made[name] = (layout, torch.randn(layout.d, generator=draw) * 0.1)
        write(tmp_path / f"in/{name}.safetensors", *made[name])
    layout = Layout.of(unet, rank=2, alpha=8.0)
    made["three"] = (layout, torch.randn(layout.d, generator=draw) * 0.1)
    write_peft(tmp_path / "in/three", *made["three"], "pico")
    words = ("import", tmp_path / "in", "--out", tmp_path / "data", "--base", pico, "--runs", tmp_path / "runs", "--json")
    result = w2w(*words).json()
    assert (result["n"], result["rank"], result["imported"]) == (3, 4, 3)
    assert result["worst_rank_error"]["error"] < 1e-6
    data = WeightDataset.load(tmp_path / "data")
    for name, (layout, weights) in made.items():
        row = data.rows([data.index_of(name)])[0]
        torch.testing.assert_close(ours(base, data.layout, row), ours(base, layout, weights), atol=1e-4, rtol=0)
    assert w2w(*words).json()["imported"] == 0  # again: all are there
    narrow = w2w(*words[:3], tmp_path / "narrow", *words[4:], "--rank", 1).json()
    assert 0.1 < narrow["worst_rank_error"]["error"] < 1


def test_more_files_follow_in_the_layout_of_the_rows(w2w: Command, pico: Path, base: BaseModel, tmp_path: Path) -> None:
    unet, draw, words = base.pipeline.unet, torch.Generator().manual_seed(4), ("--base", pico, "--runs", tmp_path / "runs", "--json")
    wide, thin = Layout.of(unet, rank=3, alpha=2.0), Layout.of(unet, rank=1, alpha=1.0, targets=("to_q",))
    write_kohya(tmp_path / "first" / "one.safetensors", wide, torch.randn(wide.d, generator=draw))
    given = torch.randn(thin.d, generator=draw)
    write_diffusers(tmp_path / "second" / "Ada" / "pytorch_lora_weights.safetensors", thin, given)
    (tmp_path / "second" / "old.ckpt").write_bytes(b"pickled")
    w2w("import", tmp_path / "first", "--out", tmp_path / "data", *words).json()
    write_kohya(tmp_path / "second" / "Ada.safetensors", thin, given)
    twice = w2w("import", tmp_path / "second", "--strict", "--out", tmp_path / "data", *words)
    assert twice.code == 2 and "would both be called Ada" in twice.err
    (tmp_path / "second" / "Ada.safetensors").unlink()
    labels = tmp_path / "labels.csv"
    labels.write_text("file,age\nAda,36\n")
    stranger = w2w("import", tmp_path / "second", "--labels", labels, "--out", tmp_path / "data", *words)
    assert stranger.code == 2 and "Ada/pytorch_lora_weights.safetensors" in stranger.err
    labels.write_text("file,age\nAda/pytorch_lora_weights.safetensors,36\n")
    found = w2w("import", tmp_path / "second", "--labels", labels, "--out", tmp_path / "data", *words).json()
    assert (found["imported"], found["already_there"], found["rank"], found["pickles_left_out"]) == (1, 0, 3, ["old.ckpt"])
    data = WeightDataset.load(tmp_path / "data")
    assert data.ids == ["one", "Ada"] and data.labels[1]["age"] == "36"
    torch.testing.assert_close(ours(base, data.layout, data.rows([1])[0]), ours(base, thin, given), atol=1e-4, rtol=0)
    w2w("import", tmp_path / "second", "--out", tmp_path / "thin", *words).json()
    for refused, said in (
        (w2w("import", tmp_path / "first", "--out", tmp_path / "thin", *words), "to_v is adapted here, and not in"),
        (w2w("import", tmp_path / "second", "--rank", 2, "--out", tmp_path / "data", *words), "rows of rank 3"),
        (w2w("import", tmp_path / "second", "--out", tmp_path / "second" / "data", *words), "whose files are to be read"),
    ):
        assert refused.code == 2 and said in refused.err


@pytest.mark.parametrize("targets", [("to_q", "to_out.0"), ("attn1.to_out.0", "attn2.to_k"), ("to_k", "net.2")])
def test_a_layout_is_named_by_the_fewest_words_that_say_it(base: BaseModel, targets: tuple[str, ...]) -> None:
    wanted = Layout.of(base.pipeline.unet, rank=2, alpha=4.0, targets=targets)
    found = layout_of(base.pipeline.unet, set(wanted.modules), 2, 4.0)
    assert found.matrices == wanted.matrices and set(found.targets) == set(targets)
    one = layout_of(base.pipeline.unet, {wanted.modules[0]}, 2, 4.0)
    assert one.modules == wanted.modules[:1]


def test_a_published_folder_is_read_column_by_its_name(w2w: Command, pico: Path, base: BaseModel, layout: Layout, tmp_path: Path) -> None:
    weights = torch.randn(5, layout.d, generator=torch.Generator().manual_seed(2))
    torch.save(weights, tmp_path / "all_weights.pt")
    keys = {f"base_model.model.{m.name.replace('.weight', '.identity1.weight')}": m.shape for m in layout.matrices}
    torch.save({key: [(shape[0] * shape[1],), torch.Size(shape)] for key, shape in keys.items()}, tmp_path / "weight_dimensions.pt")
    common = ("--base", pico, "--runs", tmp_path / "runs", "--json")
    assert w2w("import", tmp_path, "--out", tmp_path / "data", *common).json()["imported"] == 5
    data = WeightDataset.load(tmp_path / "data")
    assert data.layout == layout and torch.equal(data.rows(), weights)
    # The same columns, kept in another order.
    backwards = list(reversed(layout.matrices))
    torch.save(torch.cat([weights[:, layout.slices[m.name]] for m in backwards], 1), tmp_path / "all_weights.pt")
    dims = {f"base_model.model.{m.name}": [(m.shape[0] * m.shape[1],), m.shape] for m in backwards}
    torch.save(dims, tmp_path / "weight_dimensions.pt")
    w2w("import", tmp_path, "--out", tmp_path / "again", *common).json()
    assert torch.equal(WeightDataset.load(tmp_path / "again").rows(), weights)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_export_writes_one_file(w2w: Command, dataset: Path, pico: Path, base: BaseModel, tmp_path: Path, form: str) -> None:
    words = ("export", "--dataset", dataset, "--id", "person-3", "--base", pico, "--format", form, "--runs", tmp_path / "runs", "--json")
    out = Path(w2w(*words).json()["out"])
    data = WeightDataset.load(dataset)
    row, _ = to_weights(read_lora(out, base.pipeline.unet), data.layout)
    torch.testing.assert_close(ours(base, data.layout, row), ours(base, data.layout, data.rows([3])[0]), atol=1e-4, rtol=0)
    refused = w2w(*words, "--out", tmp_path / "folder")
    assert refused.code == 2 and ".safetensors" in refused.err


class Evil:
    """A pickle that would leave a file behind if it were run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple]:
        return (Path.touch, (self.mark,))


def test_pickles_are_refused_and_not_run(w2w: Command, pico: Path, layout: Layout, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "lora.pt").write_bytes(pickle.dumps(Evil(mark)))
    (tmp_path / "all").mkdir()
    torch.save({"a": Evil(mark)}, tmp_path / "all" / "all_weights.pt")
    torch.save({"a": Evil(mark)}, tmp_path / "all" / "weight_dimensions.pt")
    (tmp_path / "named.safetensors").write_bytes(pickle.dumps(Evil(mark)))
    for source in ("lora.pt", "all", "named.safetensors"):
        ended = w2w("import", tmp_path / source, "--out", tmp_path / "data", "--base", pico, "--runs", tmp_path / "runs")
        assert ended.code == 2 and ended.err.count("error:") == 1, ended.err
    assert not mark.exists() and not (tmp_path / "data").exists()


def test_half_precision_is_read(base: BaseModel, layout: Layout, weights: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    write_kohya(path, layout, weights)
    save_file({key: value.half() for key, value in load_file(path).items()}, path)
    lora = read_lora(path, base.pipeline.unet)
    assert lora.rank == layout.rank
    for layer, down in lora.down.items():
        assert torch.equal(down, layout.unflatten(weights)[f"{layer}.lora_A.weight"].half().float())
