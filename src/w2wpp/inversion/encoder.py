"""From a photo to a point in one pass: a network from a description of the face to z, trained on what its points draw.

The description is `descriptors.describe_faces`, by a network other than the face recogniser: FaceNet only scores, and is never optimised.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from w2wpp.adapters.start import Start
from w2wpp.common.assets import located
from w2wpp.common.errors import W2WError
from w2wpp.common.files import checksum, read_checked, write_checked
from w2wpp.common.hub import Token, fetched
from w2wpp.photos.descriptors import mean_descriptions
from w2wpp.photos.images import Image
from w2wpp.spaces.base import Space
from w2wpp.spaces.networks import layers
from w2wpp.spaces.point_files import alike, fingerprint
from w2wpp.spaces.pretrained import PATTERNS

FORMAT = "w2wpp-encoder-1"


class PhotoEncoder(nn.Module):
    """Descriptions [n, f] -> points z [n, m] of one space."""

    mean: Tensor  # [f], over photos
    scale: Tensor  # [f]
    space: Tensor  # the fingerprint of the space that the points lie in
    people: frozenset[str]  # whose photos it learned from; empty if that is not known
    teacher: str  # of `inversion.person_photos`; empty if that is not known

    def __init__(self, features: int, m: int, hidden: int) -> None:
        super().__init__()
        self.features, self.m, self.hidden, self.people, self.teacher = features, m, hidden, frozenset(), ""
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("space", torch.zeros(0))
        self.linear, self.residual = nn.Linear(features, m), layers((features, hidden, m))
        for parameter in (*self.linear.parameters(), *self.residual[-1].parameters()):  # begin at z = 0, the mean adapter
            nn.init.zeros_(parameter)

    def forward(self, described: Tensor) -> Tensor:
        """Descriptions [n, f] -> points z [n, m] float32."""
        x = (described - self.mean) / self.scale
        return self.linear(x) + self.residual(x)

    def recentre(self, mean: Tensor, factor: Tensor) -> None:
        """Follow a space whose points z have become factor^-1 (z - mean)."""
        self.linear.bias.data -= mean
        for parameter in (*self.linear.parameters(), *self.residual[-1].parameters()):
            moved = torch.linalg.solve_triangular(factor, parameter.data.reshape(self.m, -1), upper=False)
            parameter.data = moved.reshape(parameter.shape)

    def points(self, people: Sequence[Sequence[Image]]) -> Tensor:
        """Each person's aligned photos [h, w, 3] uint8 -> points z [n, m]; several photos are described by their mean.

        Raises W2WError without the extra that describes faces.
        """
        return self(mean_descriptions(people))

    def check(self, space: Space) -> None:
        """Raise W2WError unless this encoder was trained for `space`."""
        if self.m != space.m or not alike(self.space.cpu(), fingerprint(space)):
            raise W2WError(f"the encoder was trained for another space (m = {self.m}) than {space.source}. Train it: `w2w fit encoder`.")

    def save(self, path: str | Path) -> None:
        """Write the encoder as one safetensors file."""
        config = [self.features, self.m, self.hidden]
        about = {"format": FORMAT, "config": json.dumps(config), "people": json.dumps(sorted(self.people)), "teacher": self.teacher}
        write_checked(path, self.state_dict(), about)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, revision: str | None = None, token: Token = None, local_files_only: bool = False
    ) -> "PhotoEncoder":
        """Load the encoder beside a space, from disk, as `load`, or from the Hugging Face hub; arguments as of `Space.from_pretrained`."""
        return cls.load(fetched(source, PATTERNS, revision=revision, token=token, local_files_only=local_files_only))

    @classmethod
    def load(cls, path: str | Path) -> "PhotoEncoder":
        """Read what `save` wrote, the encoder in a folder of `Space.save_pretrained`, or `tiny-faces`, that of the embedded space.

        Raises W2WError if the file is not a whole encoder, or was altered.
        """
        path = str(located(path, "space/encoder.safetensors"))
        tensors, about = read_checked(path, "encoder")
        if about.get("format") != FORMAT:
            raise W2WError(f"{path} holds no encoder ({FORMAT} was expected). Make one with `w2w fit encoder`.")
        try:
            encoder = cls(*json.loads(about["config"]))
            encoder.space, encoder.people = tensors["space"], frozenset(json.loads(about.get("people", "[]")))
            encoder.teacher = about.get("teacher", "")
            encoder.load_state_dict(tensors, assign=True)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise W2WError(f"{path} does not hold what its header says ({str(error).splitlines()[0]}). Train it again.") from error
        return encoder.requires_grad_(False).eval()


def encoder_start(space: Space, encoder: PhotoEncoder) -> Start:
    """Training that begins at the adapters of the points to which an encoder maps the photos.

    Raises W2WError if the encoder was trained for another space.
    """
    encoder.check(space)

    @torch.no_grad()
    def weights(people: Sequence[Sequence[Image]]) -> Tensor:
        return space.decode(encoder.points(people)).cpu()

    return Start(f"encoder {checksum(encoder.state_dict(), {})} of {space.kind}, m = {space.m}", weights)
