"""Which linear directions of the weights to keep: does a metric other than the standardised coordinates' find people better?

    python benchmarks/directions.py faces64

Spaces of m latents over the embedded adapters, each a set of directions and nothing else; one photo of each val person is
inverted in 40 UNet evaluations from the mean adapter, and scored against the photos that were not seen.
  standardised  PCA of standardised coordinates: PCA-w2w
  equal         every matrix has the same total variance
  product       PCA in the metric of |BA - B'A'|^2, to first order around the mean adapter
  whitened      directions by their variance between people over that within (two adapters of one person), in 1,024 components
  crossed       directions of the covariance between a person's two adapters, in 1,024 components
Min-SNR weights of the objective, a row of the committed results, gained nothing and left the package.
Writes benchmarks/results/directions.json.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from machine import machine
from w2wpp.base.drawing import generate_for
from w2wpp.base.model import BaseModel
from w2wpp.common.files import write_json
from w2wpp.common.runs import command_line, versions
from w2wpp.dataset.weights import WeightDataset
from w2wpp.evaluation.table1 import Subjects, _person_scores, summary
from w2wpp.inversion.gradient import InversionOptions, invert
from w2wpp.lora.layout import Layout
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.faces import embed_pictures
from w2wpp.photos.images import to_tensor
from w2wpp.spaces.anchored_vae import AnchoredOptions, AnchoredVaeSpace
from w2wpp.spaces.pca import PcaSpace

K, RIDGE = 1024, 0.1
RESULTS = Path(__file__).parent / "results" / "directions.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", type=Path)
    parser.add_argument("--m", type=int, default=128)
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--solver-steps", type=int, default=15)
    args = parser.parse_args()
    base, data = BaseModel.load("tiny-faces"), WeightDataset.load("tiny-faces")
    subjects = Subjects.of(AlignedFaces.load(args.faces), "val", None)
    people = [subject.person for subject in subjects.people]
    latents = base.encode_images(to_tensor([subject.input_photo for subject in subjects.people])).float()
    weights, pairs = data.rows(), pairs_of(data)
    pca = PcaSpace.fit(data, m=K)
    options = InversionOptions(group=40)
    ways: dict[str, Callable[[], Any]] = {
        "standardised": lambda: pca.truncate(args.m),
        "equal": lambda: scaled(weights, data, equal(weights, data.layout), args.m),
        "product": lambda: scaled(weights, data, product(weights, data.layout), args.m),
        "whitened": lambda: of_directions(pca, whitened(pca.encode(weights), pairs, args.m)),
        "crossed": lambda: of_directions(pca, crossed(pca.encode(weights), pairs, args.m)),
    }
    rows = []
    for name, fit in ways.items():
        space = fit()
        found = invert(base, space, latents, people, options)
        with torch.no_grad():
            adapters = space.decode(found.z)
        drawn = generate_for(base, data.layout, adapters, people, data.prompting.prompt, args.pictures, steps=args.solver_steps)
        scores = summary([_person_scores(subjects, i, embed_pictures(pictures)) for i, pictures in enumerate(drawn)])
        kept = {key: scores[key] for key in ("id_input", "id_input_se", "id_other", "id_other_se", "n", "missed")}
        rows.append({"name": name, **kept, "pictures": args.pictures * len(people)})
        print(rows[-1], flush=True)
        write_json(
            RESULTS,
            {"command": command_line(), "versions": versions(), "machine": machine(), "split": "val", "seed": 0, "m": args.m, "rows": rows},
        )


def pairs_of(data: WeightDataset) -> Tensor:
    """Rows of the two adapters of each person who has two: [pairs, 2]."""
    where = {name: i for i, name in enumerate(data.ids)}
    return torch.tensor([[where[name.removesuffix("#b")], i] for name, i in where.items() if name.endswith("#b")])


def scaled(weights: Tensor, data: WeightDataset, scale: Tensor, m: int) -> PcaSpace:
    """PCA of (weights - mean) / scale."""
    space = PcaSpace(data.layout, data.base_id, m)
    space.mean, space.scale = weights.mean(0), scale
    x = (weights - space.mean) / scale
    values, vectors = torch.linalg.eigh(x.double().T.cov())
    variances, space.components = values.flip(0)[:m], vectors.flip(1)[:, :m].T.float()
    space.spread, space.explained_variance_ratio = variances.sqrt().float(), (variances / x.var(0).double().sum()).float()
    return space


def equal(weights: Tensor, layout: Layout) -> Tensor:
    """One scale a matrix: the root of its coordinates' total variance. [d]"""
    parts = layout.unflatten(weights)
    return layout.flatten({name: part.var(0).sum().sqrt().expand(part.shape[1:]) for name, part in parts.items()})


def product(weights: Tensor, layout: Layout) -> Tensor:
    """A change of A counts as much as B is long (root mean square), and the other way round: d(BA) = B dA + dB A. [d]"""
    parts = layout.unflatten(weights)

    def partner(name: str) -> Tensor:
        other = parts[name.replace("lora_A", "lora_B") if "lora_A" in name else name.replace("lora_B", "lora_A")]
        return other.flatten(1).square().sum(1).mean().sqrt().clamp_min(1e-6)

    return layout.flatten({name: (1 / partner(name)).expand(part.shape[1:]) for name, part in parts.items()})


def whitened(z: Tensor, pairs: Tensor, m: int) -> Tensor:
    """Directions [m, K] in units of each coefficient's deviation: the largest variance between people over that within."""
    difference = (z[pairs[:, 0]] - z[pairs[:, 1]]).double()
    within = difference.T @ difference / (2 * len(pairs))
    within = within + RIDGE * within.diagonal().mean() * torch.eye(len(within)).to(within)
    root = torch.linalg.cholesky(within)
    total = torch.linalg.solve_triangular(root, z.double().T.cov(), upper=False)
    total = torch.linalg.solve_triangular(root, total.T, upper=False)
    values, vectors = torch.linalg.eigh((total + total.T) / 2)
    return (root @ (vectors.flip(1)[:, :m] * values.flip(0)[:m].sqrt())).T.float()


def crossed(z: Tensor, pairs: Tensor, m: int) -> Tensor:
    """Directions [m, K]: of the covariance between one adapter of a person and the other, the largest."""
    a, b = z[pairs[:, 0]].double(), z[pairs[:, 1]].double()
    shared = (a - z.mean(0)).T @ (b - z.mean(0)) / len(pairs)
    values, vectors = torch.linalg.eigh((shared + shared.T) / 2)
    return (vectors.flip(1)[:, :m] * values.flip(0)[:m].clamp_min(1e-3).sqrt()).T.float()


def of_directions(pca: PcaSpace, directions: Tensor) -> AnchoredVaeSpace:
    """A space whose latents are coefficients of `directions` [m, K] (not orthogonal) of PCA's whitened coefficients, scaled to N(0, 1)."""
    m = len(directions)
    space = AnchoredVaeSpace(pca.layout, pca.base_id, AnchoredOptions(m=m, components=pca.m, hidden=1))
    space.mean, space.scale, space.basis, space.spread = pca.mean, pca.scale, pca.components, pca.spread
    space.decoder.weight.data, space.decoder.bias.data = directions.T.contiguous(), torch.zeros(pca.m)
    for residual in (space.encoder_residual, space.decoder_residual):
        for parameter in residual.parameters():
            nn.init.zeros_(parameter)
    return space.frozen()


if __name__ == "__main__":
    main()
