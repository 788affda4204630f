"""Encoders and decoders learn from photos and from adapters, begin at a regression where they can, and go on after a cut."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import Ended, close, write_faces
from w2wpp.base.model import BaseModel
from w2wpp.common.checkpoints import save_checkpoint
from w2wpp.common.errors import W2WError
from w2wpp.dataset.weights import WeightDataset
from w2wpp.inversion import descent
from w2wpp.inversion.bound import EncoderOptions
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.inversion.person_photos import OwnAdapters, PersonPhotos
from w2wpp.inversion.teaching import fit_encoder, fit_with_decoder
from w2wpp.inversion.tone import Tones
from w2wpp.lora.batched import adapted, initial_weights
from w2wpp.lora.layout import Layout
from w2wpp.spaces.anchored_vae import AnchoredOptions, AnchoredVaeSpace
from w2wpp.spaces.base import Space
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.regression import Ridge

SMALL = AnchoredOptions(m=4, components=12, hidden=16, steps=40, batch=16)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in float32, so that equal means equal on every processor."""
    monkeypatch.setenv("W2WPP_PRECISION", "float32")


def test_an_encoder_explains_held_out_people_better_than_the_mean_does(
    base: BaseModel, bent_weights: Tensor, layout: Layout, described_photos: PersonPhotos, tmp_path: Path
) -> None:
    space = PcaSpace.fit(bent_weights, layout=layout, base_id=base.id, m=6)
    options = EncoderOptions(hidden=8, steps=16, batch=8, lr=1e-2, measured=2)
    encoder, history = fit_encoder(space, described_photos, options)
    losses = [found["loss"] for found in history["held_out"]]
    assert history["kept_step"] > 0 and min(losses) < losses[0]
    encoder.save(tmp_path / "encoder.safetensors")
    again = PhotoEncoder.load(tmp_path / "encoder.safetensors")
    about = described_photos.described["person-0"]
    assert close(again(about), encoder(about)) and again(about).shape == (2, 6)
    assert again.people == described_photos.latents.keys() and again.teacher == "photos"
    again.check(space)
    with pytest.raises(W2WError, match="another space"):
        again.check(space.truncate(5))
    with pytest.raises(W2WError, match="no decoder that can be trained"):
        fit_with_decoder(space, described_photos, options)
    (tmp_path / "encoder.safetensors").write_bytes(b"cut")
    with pytest.raises(W2WError, match="cut short"):
        PhotoEncoder.load(tmp_path / "encoder.safetensors")


def test_a_decoder_learns_with_its_encoder(base: BaseModel, bent_weights: Tensor, layout: Layout, described_photos: PersonPhotos) -> None:
    space = AnchoredVaeSpace.fit(bent_weights, SMALL, layout=layout, base_id=base.id, device="cpu")
    before = space.decode(torch.ones(1, 4))
    options = EncoderOptions(hidden=8, steps=16, batch=8, lr=1e-2, measured=2)
    taught, encoder, history = fit_with_decoder(space, described_photos, options)
    assert history["kept_step"] > 0 and (taught.decode(torch.ones(1, 4)) - before).abs().max() > 1e-3
    assert torch.equal(space.decode(torch.ones(1, 4)), before) and taught.history == space.history
    encoder.check(taught)
    # In the coordinates that were chosen, points of photos are like the prior, and `encode` follows.
    z = encoder(torch.cat(list(described_photos.described.values())))
    torch.testing.assert_close(z.mean(0), torch.zeros(4), atol=0.5, rtol=0)
    few = PersonPhotos(base, dict(list(described_photos.latents.items())[:3]), described_photos.described, described_photos.contexts)
    with pytest.raises(W2WError, match="3 people are too few"):
        fit_encoder(space, few, EncoderOptions())


@pytest.mark.parametrize("teacher", ["photos", "adapters", "likeness"])
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(
    base: BaseModel,
    bent_weights: Tensor,
    layout: Layout,
    described_photos: PersonPhotos,
    teacher: str,
    describer: Callable[[Tensor], Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = AnchoredVaeSpace.fit(bent_weights, SMALL, layout=layout, base_id=base.id, device="cpu")
    photos = described_photos if teacher == "photos" else taught_by_adapters(base, layout, described_photos, tmp_path / "own", 2.0)
    if teacher == "likeness":
        draw = torch.Generator().manual_seed(3)
        photos = replace(photos, tones=Tones.among({person: torch.rand(2, 7, generator=draw) for person in photos.people}))
    options = EncoderOptions(hidden=8, steps=8, batch=8, lr=1e-2, measured=4)
    torch.manual_seed(1)  # another process has drawn other numbers before
    whole, encoder, history = fit_with_decoder(space, photos, options)
    file = tmp_path / "checkpoint.pt"

    steps = list[int]()

    def cut(path: Path, parts: Any, step: int) -> None:
        save_checkpoint(path, parts, step)
        steps.append(step)
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(descent, "save_checkpoint", cut)
    torch.manual_seed(2)
    with pytest.raises(KeyboardInterrupt):
        fit_with_decoder(space, photos, options, file)
    assert steps[0] == 1  # who interrupts early has something to go on with, too
    if teacher == "likeness":
        with monkeypatch.context() as patch, pytest.raises(W2WError, match="other options or people"):
            patch.setattr(descent, "TONE", 2 * descent.TONE)
            fit_with_decoder(space, photos, options, file)
    for others, asked in ((replace(options, lr=2e-2), photos), (options, replace(photos, prompt="photo of somebody"))):
        with pytest.raises(W2WError, match="other options or people"):
            fit_with_decoder(space, asked, others, file)
    if teacher == "photos":  # where adapters teach, training begins at these, whatever the space
        other = AnchoredVaeSpace.fit(2 * bent_weights.flip(0), SMALL, layout=layout, base_id=base.id, device="cpu")
        with pytest.raises(W2WError, match="training in another space"):
            fit_with_decoder(other, photos, options, file)
    torch.manual_seed(3)
    again, resumed, told = fit_with_decoder(space, photos, options, file)
    assert told == history and len(told["step"]) == 5
    z = torch.ones(1, 4)
    assert torch.equal(again.decode(z), whole.decode(z))
    assert torch.equal(resumed(photos.described["person-0"]), encoder(photos.described["person-0"]))


def test_what_training_cannot_begin_with(
    base: BaseModel, bent_weights: Tensor, layout: Layout, described_photos: PersonPhotos, tmp_path: Path, w2w: Callable[..., Ended]
) -> None:
    space = AnchoredVaeSpace.fit(bent_weights, SMALL, layout=layout, base_id=base.id, device="cpu")
    for fit in (fit_encoder, fit_with_decoder):
        with pytest.raises(W2WError, match="0 steps leave an encoder that photos teach at z = 0"):
            fit(space, described_photos, EncoderOptions(hidden=8, steps=0))
    # Adapters of another layout teach too, without a regression.
    wide = Layout.of(base.pipeline.unet, rank=2, alpha=layout.alpha, targets=layout.targets)
    photos = taught_by_adapters(base, wide, described_photos, tmp_path / "wide", 1.0)
    with pytest.raises(W2WError, match="0 steps"):
        fit_with_decoder(space, photos, EncoderOptions(hidden=8, steps=0))
    taught, _, history = fit_with_decoder(space, photos, EncoderOptions(hidden=8, steps=2, batch=4, measured=1))
    assert taught.layout == layout and len(history["step"]) == 2
    # A file that is no checkpoint is never deleted.
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    ended = w2w("fit", "anchored-vae", "--checkpoint", mine, "--out", tmp_path / "space.safetensors", "--runs", tmp_path / "runs")
    assert ended.code == 2 and "--checkpoint was given without --faces" in ended.err
    for out in ({"--encoder": mine, "--out": tmp_path / "s"}, {"--encoder": tmp_path / "e", "--out": mine}):
        words = [word for pair in out.items() for word in pair]
        ended = w2w("fit", "anchored-vae", "--faces", tmp_path / "faces", "--checkpoint", mine, *words, "--runs", tmp_path / "runs")
        assert ended.code == 2 and "--checkpoint" in ended.err, ended.err
    ended = w2w("fit", "anchored-vae", "--teacher", "likeness", "--encoder-steps", 3, "--out", tmp_path / "s", "--runs", tmp_path / "runs")
    assert ended.code == 2 and "--teacher, --encoder-steps: of training on photos, and no --faces" in ended.err
    assert mine.read_text() == "mine"


def test_a_ridge_finds_the_directions_that_inputs_predict() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=draw) @ (torch.eye(6) + 0.3 * torch.randn(6, 6, generator=draw)) + 3
    slope = torch.randn(6, 2, generator=draw) @ torch.randn(2, 30, generator=draw)
    y = x @ slope + 5 + 0.01 * torch.randn(400, 30, generator=draw)
    ridge = Ridge.fit(x, lambda s: y[s], batch=37)
    directions, into = ridge.directions(4)
    z = (x - ridge.at) @ into.T
    torch.testing.assert_close(z.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.T.cov(), torch.eye(4), atol=0.02, rtol=0)
    lost = (ridge.centre + z @ directions - y).square().sum() / (y - y.mean(0)).square().sum()
    assert lost < 0.02 and directions[2:].norm() < 0.01 * directions.norm()
    assert ridge.directions(9)[0].shape == (6, 30)
    # Of an input that holds the others again, but for rounding, no direction is made.
    again = torch.cat([x, x[:, :1] + 1e-4 * torch.randn(400, 1, generator=draw)], 1)
    assert Ridge.fit(again, lambda s: y[s]).directions(9)[0].shape == (6, 30)


def taught_by_adapters(base: BaseModel, layout: Layout, described_photos: PersonPhotos, folder: Path, loudness: float) -> PersonPhotos:
    """Twenty people with an adapter each, a linear map of their mean description and a little noise."""
    draw, people = torch.Generator().manual_seed(5), list(described_photos.latents)
    dataset = WeightDataset.create(folder, layout, base.id, {"adapters": {"prior_prompt": "photo of a person"}})
    described = torch.stack([described_photos.described[person].mean(0) for person in people])
    own = initial_weights(layout) + 0.1 * described @ torch.randn(6, layout.d, generator=draw)
    dataset.append(own + 0.01 * torch.randn(own.shape, generator=draw), people, [{"person": p} for p in people], torch.float32)
    contexts = base.encode_text(["photo of sks person", "photo of sks person smiling", "", "photo of a person"]).float()
    return PersonPhotos(
        base, described_photos.latents, described_photos.described, contexts, taught=OwnAdapters.of(dataset, people, loudness)
    )


def test_where_adapters_teach_training_begins_at_their_regression(
    base: BaseModel, layout: Layout, described_photos: PersonPhotos, tmp_path: Path
) -> None:
    taught = taught_by_adapters(base, layout, described_photos, tmp_path / "own", 1.0)
    assert taught.taught is not None
    space = AnchoredVaeSpace.fit(taught.taught.dataset, SMALL, device="cpu")
    own, mean = taught.taught.dataset.rows(range(20)), taught.taught.mean
    torch.testing.assert_close(mean, own.mean(0))
    described = torch.stack([mine.mean(0) for mine in described_photos.described.values()])
    start, encoder, history = fit_with_decoder(space, taught, EncoderOptions(hidden=8, steps=0))
    found = start.decode(encoder(described))
    lost = (found - own).square().sum() / (own - mean).square().sum()
    assert history["kept_step"] == 0 and lost < 0.5 and start.basis.shape[0] == 4 + 4
    # An adapter is read as the point of its person's described_photos, also after a round trip through a file.
    z = encoder(described)
    start.save(tmp_path / "start.safetensors")
    for read in (start.encode(own), Space.load(tmp_path / "start.safetensors").encode(own)):
        assert (read - z).square().mean() < 0.5 * z.square().mean()
    # Twice as loud is twice as far from the mean adapter, in the same direction, at the same point.
    louder = taught_by_adapters(base, layout, described_photos, tmp_path / "loud", 2.0)
    other, way, _ = fit_with_decoder(space, louder, EncoderOptions(hidden=8, steps=0))
    torch.testing.assert_close(way(described), encoder(described), atol=1e-3, rtol=1e-3)
    centre = start.decode(torch.zeros(1, 4))
    torch.testing.assert_close(other.decode(way(described)) - centre, 2 * (found - centre), atol=2e-2, rtol=2e-2)
    # The encoder of a space that stays as it is begins at a regression too.
    begun, told = fit_encoder(space, taught, EncoderOptions(hidden=8, steps=0))
    z = space.encode(own)
    assert (begun(described) - z).square().mean() < 0.5 * (z - z.mean(0)).square().mean() and told["kept_step"] == 0


def test_a_loud_teacher_asks_for_more_than_adapters_predict(
    base: BaseModel, layout: Layout, described_photos: PersonPhotos, tmp_path: Path
) -> None:
    quiet, loud = (taught_by_adapters(base, layout, described_photos, tmp_path / str(loudness), loudness) for loudness in (1.0, 2.0))
    people, timesteps, kinds = ["person-0", "person-1"], torch.tensor([100, 800]), torch.tensor([0, 2])
    noisy = torch.randn(2, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    asked, louder = (teacher._asked(people, noisy, noisy, timesteps, kinds, torch.Generator()) for teacher in (quiet, loud))
    assert quiet.taught is not None
    with adapted(base.pipeline.unet, layout, quiet.taught.mean[None]):
        mean = base.predict(noisy, timesteps, quiet.contexts[kinds])
    assert (asked - mean).abs().max() > 1e-2
    torch.testing.assert_close(louder, mean + 2 * (asked - mean), atol=1e-4, rtol=1e-4)


def test_photos_teach_people_who_have_no_adapters(base: BaseModel, layout: Layout, described_photos: PersonPhotos, tmp_path: Path) -> None:
    own = taught_by_adapters(base, layout, described_photos, tmp_path / "own", 2.0)
    assert own.taught is not None and own.teacher == "adapters"
    both = replace(own, taught=replace(own.taught, rows={"person-0": [0], "person-3": [3]}))
    assert both.taught is not None and both.teacher == "both"
    draw = torch.Generator().manual_seed(0)
    noisy, target = torch.randn(2, 6, *base.latent_shape, generator=draw)
    people, timesteps, kinds = ["person-1", "person-0", "person-2"], torch.arange(100, 700, 100), torch.tensor([0, 3, 0, 3, 2, 3])
    asked = both._asked(people, noisy, target, timesteps, kinds, draw)
    predict = partial(both._predicted, noisy=noisy, timesteps=timesteps, kinds=kinds)
    mean, mine = predict(both.taught.mean[None]), predict(own.taught.dataset.rows([0]).repeat(3, 1))
    # Of the others, the noise that their photos have, twice as far from the mean adapter; the class is nobody's.
    for i, wanted in enumerate((target, mean, mine, mine, target, mean)):
        torch.testing.assert_close(asked[i], mean[i] + 2 * (wanted[i] - mean[i]), atol=1e-4, rtol=1e-4)
    # They take part in no regression, and a space of both is trained and read like another.
    some = replace(own, taught=replace(own.taught, rows={f"person-{i}": [i] for i in range(12)}))
    space = AnchoredVaeSpace.fit(own.taught.dataset, SMALL, device="cpu")
    taught, encoder, history = fit_with_decoder(space, some, EncoderOptions(hidden=8, steps=4, batch=8, measured=2))
    assert encoder.teacher == "both" and len(encoder.people) == 20 and len(history["step"]) == 3
    encoder.check(taught)
    assert fit_encoder(space, some, EncoderOptions(hidden=8, steps=0))[0].teacher == "both"
    few = replace(own, taught=replace(own.taught, rows={f"person-{i}": [i] for i in range(9)}))
    for fit in (fit_encoder, fit_with_decoder):
        with pytest.raises(W2WError, match="adapters of 9 of these people; 10 are needed"):
            fit(space, few, EncoderOptions(hidden=8, steps=0))
    # As loud as they are: what adapters predict, and the noise itself; `smiling` is no lesson of a plain photo.
    quiet = replace(both, taught=replace(both.taught, loudness=1.0))
    asked = quiet._asked(people, noisy, target, timesteps, kinds, draw)
    torch.testing.assert_close(asked[[0, 2]], torch.stack([target[0], mine[2]]), atol=1e-4, rtol=1e-4)
    told = list[Tensor]()

    def noted(people: Sequence[str], noisy: Tensor, target: Tensor, timesteps: Tensor, kinds: Tensor, draw: torch.Generator) -> Tensor:
        told.append(kinds.view(3, -1))
        return target

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PersonPhotos, "_asked", staticmethod(noted))
        both.loss(layout, own.taught.mean.repeat(3, 1), people, 60, torch.Generator().manual_seed(0))
    assert [bool((row == 1).any()) for row in told[0]] == [False, True, False]


def test_an_encoder_that_begins_at_a_regression_trains_its_linear_map(
    base: BaseModel, layout: Layout, described_photos: PersonPhotos, tmp_path: Path
) -> None:
    own = taught_by_adapters(base, layout, described_photos, tmp_path / "own", 1.0)
    assert own.taught is not None
    space = AnchoredVaeSpace.fit(own.taught.dataset, SMALL, device="cpu")
    start, _ = fit_encoder(space, own, EncoderOptions(hidden=8, steps=0))
    trained, history = fit_encoder(space, own, EncoderOptions(hidden=8, steps=8, batch=8, measured=4))
    losses = [held_out["loss"] for held_out in history["held_out"]]
    assert history["kept_step"] > 0 and min(losses) < losses[0]
    size, moved = start.linear.weight.square().mean().sqrt(), (trained.linear.weight - start.linear.weight).square().mean().sqrt()
    assert 0.01 * size < moved < size
    for ours, theirs in zip(trained.residual.parameters(), start.residual.parameters(), strict=True):
        assert torch.equal(ours, theirs) and not ours.requires_grad


def test_adapters_teach_what_a_persons_own_predict(base: BaseModel, layout: Layout, described_photos: PersonPhotos, tmp_path: Path) -> None:
    dataset = WeightDataset.create(tmp_path / "own", layout, base.id, {"adapters": {"prior_prompt": "photo of a person"}})
    draw = torch.Generator
    own = initial_weights(layout) + 0.3 * torch.randn(3, layout.d, generator=draw().manual_seed(3))
    labels = [{"person": "person-0"}, {"person": "person-1"}, {"person": "person-1"}]
    dataset.append(own, ["person-0", "person-1", "person-1#b"], labels, torch.float32)
    people = ["person-0", "person-1"]
    contexts = base.encode_text(["photo of sks person", "photo of sks person smiling", "", "photo of a person"]).float()
    latents = {person: described_photos.latents[person] for person in people}
    taught = PersonPhotos(base, latents, described_photos.described, contexts, taught=OwnAdapters.of(dataset, people))
    assert taught.teacher == "adapters"
    # Who decodes to the person's own adapter is right; of two adapters of one person each is taught in its turn.
    loss = taught.loss(layout, own[:2], people, 3, draw().manual_seed(0))
    other = taught.loss(layout, own[[1, 0]], people, 3, draw().manual_seed(0))
    assert loss[0] < 1e-9 < 1e-6 < other[0]
    seen = [taught.loss(layout, own[:2], people, 3, draw().manual_seed(seed))[1] for seed in range(6)]
    assert min(seen) < 1e-9 and max(seen) > 1e-6
    with pytest.raises(W2WError, match=r"no adapter in .*, such as person-2"):
        OwnAdapters.of(dataset, ["person-0", "person-2"])
    faces = write_faces(tmp_path / "faces", {"Ada_Lovelace": 1, "person-0": 2})
    told = PersonPhotos.of(base, faces, "train", "photo of sks person", "adapters", dataset)
    assert told.teacher == "adapters" and list(told.latents) == ["person-0"]
    everyone = PersonPhotos.of(base, faces, "train", "photo of sks person", dataset=dataset)
    assert everyone.teacher == "both" and list(everyone.latents) == ["Ada_Lovelace", "person-0"]
    with pytest.raises(W2WError, match="cannot teach without a dataset"):
        PersonPhotos.of(base, faces, "train", "photo of sks person", "adapters")


def test_names_teach_what_the_base_draws_when_told_one(
    base: BaseModel, layout: Layout, described_photos: PersonPhotos, tmp_path: Path
) -> None:
    contexts = base.encode_text(["photo of sks person", "photo of sks person smiling", ""]).float()
    ask = partial(PersonPhotos, base, described_photos.latents, described_photos.described, contexts)
    people, draw = ["person-0", "person-1"], torch.Generator
    zero = initial_weights(layout).repeat(2, 1)
    # An adapter that does nothing is right if the name says what `sks person` says, and wrong if it says something else.
    same, other = contexts[:2], base.encode_text(["photo of Ada Lovelace", "photo of Ada Lovelace smiling"])
    assert ask({p: same for p in people}).loss(layout, zero, people, 3, draw().manual_seed(0)).max() < 1e-9
    loss = ask({"person-0": same, "person-1": other}).loss(layout, zero, people, 3, draw().manual_seed(0))
    assert loss[0] < 1e-9 < 1e-7 < loss[1]
    faces = write_faces(tmp_path / "faces", {"Ada_Lovelace": 1, "Ida_Rhodes": 1})
    with pytest.raises(W2WError, match="no word for 1 of 2 people, such as Ida_Rhodes"):
        PersonPhotos.of(base, faces, "train", "photo of sks person", "names")
    with pytest.raises(W2WError, match="no teacher is called"):
        PersonPhotos.of(base, faces, "train", "photo of sks person", "nobody")
    for loudness, teacher in ((2.0, "photos"), (2.0, "auto"), (2.0, "names")):
        with pytest.raises(W2WError, match="It is for adapters"):
            PersonPhotos.of(base, faces, "train", "photo of sks person", teacher, loudness=loudness)
    with pytest.raises(W2WError, match="names take the place"):
        PersonPhotos.of(base, write_faces(tmp_path / "ada", {"Ada_Lovelace": 1}), "train", "photo of a person", "names")
