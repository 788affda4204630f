"""The anchored VAE: a variational autoencoder that starts as probabilistic PCA and may only get better.

Weights are standardised, projected on their top K principal components and whitened. Encoder and decoder are linear
maps that start at probabilistic PCA's (Tipping and Bishop 1999, eq. 8 and section 3.3), plus residual networks whose last
layer starts at zero. Everything learned works on K coefficients, whatever d is.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from w2wpp.common.device import pick_device
from w2wpp.common.errors import W2WError
from w2wpp.dataset.weights import WeightDataset
from w2wpp.lora.layout import Layout
from w2wpp.spaces.anchored_training import train_anchored
from w2wpp.spaces.base import Adapters, Space
from w2wpp.spaces.networks import layers
from w2wpp.spaces.pca import PcaSpace


@dataclass(frozen=True)
class AnchoredOptions:
    """How an anchored VAE is built and trained."""

    m: int = 128  # latents
    components: int = 2048  # K, principal components that the networks see; at most what the adapters span
    hidden: int = 512  # width of the residual networks' one hidden layer
    steps: int = 1200  # of Adam
    batch: int = 64  # adapters a step
    lr: float = 1e-3  # Adam's peak rate; it falls along a half cosine to 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.m >= 1 and self.components >= self.m and self.hidden >= 1 and self.lr > 0):
            found = f"m {self.m}, {self.components} components, hidden {self.hidden}, lr {self.lr:g}"
            raise W2WError(f"an anchored VAE cannot be built with {found}. Components must be at least m, the others above 0.")


@dataclass(frozen=True)
class Reading:
    """A linear map from adapters weights [n, d] to points: offset + (weights - mean) / scale @ directions.T, with a space's scale."""

    directions: Tensor  # [m, d]
    offset: Tensor  # [m]
    mean: Tensor  # [d]


class AnchoredVaeSpace(Space):
    """A space whose z is the mean of an adapter's posterior; the prior is N(0, I)."""

    kind = "anchored-vae"
    mean: Tensor  # [d], in the adapters' units
    scale: Tensor  # [d], each coordinate's standard deviation
    basis: Tensor  # [K, d], orthonormal, in standardised units; float16 once compact
    spread: Tensor  # [K], each coefficient's standard deviation, falling; 1 once compact
    base_log_variance: Tensor  # [m], of the posterior while the residual network says nothing

    def __init__(self, layout: Layout, base_id: str, options: AnchoredOptions) -> None:
        super().__init__(layout, base_id)
        self.options, self.m = options, options.m
        k, m = options.components, options.m
        self.register_buffer("mean", torch.zeros(layout.d))
        self.register_buffer("scale", torch.ones(layout.d))
        self.register_buffer("basis", torch.zeros(k, layout.d))
        self.register_buffer("spread", torch.ones(k))
        self.register_buffer("base_log_variance", torch.zeros(m))
        self.encoder, self.decoder = nn.Linear(k, m), nn.Linear(m, k)
        self.encoder_residual, self.decoder_residual = layers((k, options.hidden, 2 * m)), layers((m, options.hidden, k))
        self.log_sigma = nn.Parameter(torch.zeros(()))  # of the likelihood, in standardised units (sigma-VAE)

    @classmethod
    def fit(
        cls,
        data: WeightDataset | Tensor,
        options: AnchoredOptions | None = None,
        *,
        layout: Layout | None = None,
        base_id: str = "",
        device: str = "auto",
    ) -> Self:
        """Train on a dataset, or on weights [n, d] given with their layout and base. What training saw is `history` of the space.

        history: the bound and its parts on train and held-out people, one number per measurement, and whether the
        trained space was accepted. Raises W2WError for fewer than m + 1 adapters, NaN, or a loss that is not a number.
        """
        options, adapters = options or AnchoredOptions(), Adapters.of(data, layout, base_id)
        adapters.check_m(options.m)
        options = replace(options, components=max(options.m, min(options.components, len(adapters) - 1, adapters.layout.d)))
        pca = PcaSpace.fit(data, m=options.components, layout=layout, base_id=base_id, at_most=True)  # fewer where some are alike
        if pca.m < options.m:
            raise W2WError(f"m = {options.m} is not possible: these adapters span only {pca.m} directions, some are alike. Lower --m.")
        rest = float(pca.spread.square().sum() * (1 / pca.explained_variance_ratio.sum() - 1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            space = cls.anchored(pca, replace(options, components=pca.m), rest).to(pick_device(device))
        space.history = train_anchored(space, adapters, rest)
        return space.frozen()

    @classmethod
    def anchored(cls, pca: PcaSpace, options: AnchoredOptions, rest: float) -> Self:
        """Probabilistic PCA as a space: before training it is PCA-w2w with the right prior and shrinkage.

        pca: of K components. rest: variance that they leave out, summed over coordinates.
        """
        m, d = options.m, pca.layout.d
        space = cls(pca.layout, pca.base_id, options)
        space.prompting = pca.prompting
        variance = pca.spread.double().square()
        # The variance of each direction that is noise to the model: the mean over those beyond m.
        noise = float((variance[m:].sum() + rest) / max(1, d - m))
        kept = (1 - noise / variance[:m]).clamp_min(1e-3)
        space.mean, space.scale, space.basis, space.spread = pca.mean, pca.scale, pca.components, pca.spread
        space.base_log_variance = (1 - kept).clamp_min(1e-6).log().float()
        for linear in (space.encoder, space.decoder):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
            linear.weight.data.diagonal().copy_(kept.sqrt().float())
        for residual in (space.encoder_residual, space.decoder_residual):
            for parameter in residual[-1].parameters():
                nn.init.zeros_(parameter)
        space.log_sigma.data.fill_(0.5 * torch.tensor(max(noise, 1e-12)).log())
        return space

    def standardise(self, weights: Tensor) -> Tensor:
        """Adapters weights [n, d] -> the same about the mean, in each coordinate's standard deviations."""
        return (self.given(weights) - self.mean) / self.scale

    def whiten(self, weights: Tensor) -> Tensor:
        """Adapters weights [n, d] -> whitened coefficients [n, K]."""
        return self.standardise(weights) @ self.basis.float().T / self.spread

    def posterior(self, whitened: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened coefficients [n, K] -> mean and log variance of their latents, [n, m] each."""
        shift, widen = self.encoder_residual(whitened).chunk(2, 1)
        return self.encoder(whitened) + shift, self.base_log_variance + widen

    def decode_whitened(self, z: Tensor) -> Tensor:
        """Latents z [n, m] -> whitened coefficients [n, K]."""
        return self.decoder(z) + self.decoder_residual(z)

    def unwhiten(self, whitened: Tensor) -> Tensor:
        """Whitened coefficients [n, K] -> adapters weights [n, d]."""
        return (whitened * self.spread) @ self.basis.float() * self.scale + self.mean

    def encode(self, weights: Tensor) -> Tensor:
        """Adapters weights [n, d] -> points z [n, m] float32, their posteriors' means. Raises W2WError for another d or NaN.

        After training on photos (`inversion.teaching`) z was chosen for photos. Where that began at adapters, this is the point of
        their person's photos that they predict. Else adapters lie mostly outside of what the decoder reaches.
        """
        return self.posterior(self.whiten(weights))[0]

    def decode(self, z: Tensor) -> Tensor:
        """Points z [n, m] -> adapters weights [n, d] float32 in their own units; differentiable."""
        return self.unwhiten(self.decode_whitened(z.to(self.device)))

    def following(self) -> Self:
        """This space, whose `encode` is the exact posterior of the decoder's linear part (Tipping and Bishop 1999, eq. 6)."""
        space = deepcopy(self)
        linear = space.decoder.weight.detach().double()  # [K, m]
        precision = space.spread.double().square() / (2 * space.log_sigma.detach().double()).exp()  # [K], of each coefficient's noise
        posterior = (linear.T @ (precision[:, None] * linear) + torch.eye(space.m).to(linear)).inverse()
        space.encoder.weight.data = (posterior @ (linear.T * precision)).float()
        space.encoder.bias.data = -(space.encoder.weight.data @ space.decoder.bias.data)
        space.base_log_variance = posterior.diagonal().log().float()
        for parameter in space.encoder_residual[-1].parameters():
            nn.init.zeros_(parameter)
        return space

    def recentred(self, z: Tensor) -> tuple[Self, Tensor, Tensor]:
        """The space in the coordinates in which points z [n, m] of real people, n above m, are N(0, I): encoded points need not be.

        A former z is (z - mean) factor^-T there. Returns the space, mean [m] and factor [m, m], lower triangular.
        """
        mean, covariance = z.mean(0), z.double().T.cov()
        floor = 1e-4 * covariance.diagonal().mean() * torch.eye(self.m).to(covariance)
        factor = torch.linalg.cholesky(covariance + floor).float()
        space = deepcopy(self)
        first: Any = space.decoder_residual[0]
        for linear in (space.decoder, first):
            linear.bias.data += linear.weight.data @ mean.to(space.device)
            linear.weight.data = linear.weight.data @ factor.to(space.device)
        return space, mean, factor

    def along(self, directions: Tensor, centre: Tensor) -> "AnchoredVaeSpace":
        """A linear space that decodes z to centre + z @ directions [k, d], both standardised as here; where k < m, components follow.

        Its directions need not be orthogonal, so its `encode` has no meaning until it is `compacted`.
        """
        rest = (self.decoder.weight.data * self.spread[:, None]).T[: self.m - len(directions)] @ self.basis.float()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            space = AnchoredVaeSpace(self.layout, self.base_id, replace(self.options, components=self.m)).to(self.device)
        space.prompting, space.history, space.log_sigma = self.prompting, self.history, self.log_sigma
        space.mean, space.scale = self.mean + centre.to(self.mean) * self.scale, self.scale
        space.basis = torch.cat([directions.to(rest), rest])
        for linear in (space.encoder, space.decoder, space.encoder_residual[-1], space.decoder_residual[-1]):
            for parameter in linear.parameters():
                nn.init.zeros_(parameter)
        nn.init.eye_(space.decoder.weight)
        return space.frozen()

    def freed(self, rate: float) -> dict[str, tuple[nn.Module, float]]:
        """Its directions and its mean as parameters, each with its rate of training: `rate` times the directions' size."""
        size = rate * float(self.basis.square().mean().sqrt())
        self.basis, self.mean = nn.Parameter(self.basis.float()), nn.Parameter(self.mean)
        return {
            "directions": (nn.ParameterList([self.basis]), size),
            "mean": (nn.ParameterList([self.mean]), size * float(self.scale.mean())),
        }

    def compacted(self, reading: Reading | None = None) -> "AnchoredVaeSpace":
        """The same decoder on no more components than it reaches, m + hidden + 1: a smaller file.

        reading: its `encode`, which takes m components more; without one `encode` follows the decoder. Variances of the
        posterior follow the decoder in both cases.
        """
        linear: Any = self.decoder
        last: Any = self.decoder_residual[-1]
        offset = linear.bias.data + last.bias.data
        basis = self.basis.data.double()
        reached = torch.cat([linear.weight.data, last.weight.data, offset[:, None]], 1) * self.spread[:, None]
        spanned = reached.double().T @ basis if reached.shape[1] < len(basis) else basis
        if reading:
            spanned = torch.cat([spanned, reading.directions.to(spanned)])
        kept = torch.linalg.qr(spanned.T)[0].T  # [k, d]
        into = ((kept @ basis.T) * self.spread.double()).float()  # [k, K]
        small = AnchoredVaeSpace(self.layout, self.base_id, replace(self.options, components=len(kept))).to(self.device)
        small.prompting, small.history = self.prompting, self.history
        new: Any
        for new, old in ((small.decoder, linear), (small.decoder_residual[-1], last)):
            new.weight.data, new.bias.data = into @ old.weight.data, into @ old.bias.data
        small.decoder_residual[0].load_state_dict(self.decoder_residual[0].state_dict())
        for parameter in small.encoder_residual.parameters():
            nn.init.zeros_(parameter)
        small.basis, small.mean, small.scale, small.log_sigma = kept.half(), self.mean.data, self.scale, self.log_sigma
        small = small.following()
        if reading:
            moved = (small.mean - reading.mean.to(small.mean)) / small.scale
            small.encoder.weight.data = (reading.directions.to(kept) @ kept.T).float()
            small.encoder.bias.data = reading.offset.to(moved) + reading.directions.to(moved) @ moved
        return small.frozen()

    def config(self) -> dict[str, Any]:
        """The options it was trained with."""
        return {"options": asdict(self.options)}

    @classmethod
    def blank(cls, layout: Layout, base_id: str, config: Mapping[str, Any]) -> Self:
        """A space with untrained networks."""
        return cls(layout, base_id, AnchoredOptions(**config["options"]))
