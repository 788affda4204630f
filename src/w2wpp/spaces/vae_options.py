"""How a VAE-w2w is built and trained."""

import math
from dataclasses import dataclass

from w2wpp.common.errors import W2WError

SCHEDULES = ("steps", "cyclical", "ramp")
VARIANTS = ("plain", "residual-adversarial", "vanilla", "second")


@dataclass(frozen=True)
class VaeOptions:
    """How a VAE-w2w is built and trained; the defaults are the report's, for Stable Diffusion 1.5, but for an
    activation after the decoder's first layer; `PRESETS["report"]` is without."""

    m: int = 512  # latents
    widths: tuple[int, ...] = (4096, 2048, 1024)  # of the encoder's hidden layers; the decoder mirrors them
    scale: float = 10.0  # what weights are multiplied with; decoding divides by it
    lr: float = 1e-4  # Adam's rate
    batch: int = 64  # adapters a step
    epochs: int = 12
    warmup_epochs: int = 3  # with KL weight 0; in as many more it rises step by step
    kl_weight: float = 0.005  # after the rise; of the KL averaged over latents, against the error averaged over d
    schedule: str = "steps"  # or "cyclical": four times from 0 up; or "ramp": from `kl_start` in equal steps over `ramp_epochs`
    variant: str = "plain"  # "residual-adversarial": residual blocks, and a critic of decoded weights; "vanilla", "second": the seed's
    adversarial_weight: float = 0.001  # of the critic's word, against the error averaged over d
    seed: int = 0
    shift: float = 0.0  # what is taken from weights before they are scaled
    kl_start: float = 0.0  # of the ramp, in its first epoch after the warm-up
    ramp_epochs: int = 5
    blocks: int = 1  # of the second model, whose one width is that of its blocks

    def __post_init__(self) -> None:
        for given, known in ((self.schedule, SCHEDULES), (self.variant, VARIANTS)):
            if given not in known:
                raise W2WError(f"a VAE knows no {given!r}. Choose {' or '.join(known)}.")
        if self.variant == "second" and len(self.widths) != 1:
            raise W2WError(f"the second model has one width, not {len(self.widths)}. Give one, such as --widths 1024.")
        if self.variant == "vanilla" and not self.widths:
            raise W2WError("the vanilla VAE has hidden layers. Give their widths, such as --widths 2048,1024.")
        numbers = {"m": (self.m, 1), "widths": (min(self.widths, default=1), 1), "batch": (self.batch, 1), "epochs": (self.epochs, 1)}
        for name, (found, least) in (
            numbers | {"warmup_epochs": (self.warmup_epochs, 0), "ramp_epochs": (self.ramp_epochs, 0), "blocks": (self.blocks, 1)}
        ).items():
            if found < least:
                raise W2WError(f"a VAE cannot be trained with {name} {found}: {least} is the least. Give a larger number.")
        rates = {"scale": (self.scale, False), "lr": (self.lr, False)}
        rates |= {"kl_weight": (self.kl_weight, True), "kl_start": (self.kl_start, True)}
        rates |= {"adversarial_weight": (self.adversarial_weight, True)}
        for name, (rate, may_be_0) in rates.items():
            if not (0 < rate < math.inf or (rate == 0 and may_be_0)):
                wanted = "a number of at least 0" if may_be_0 else "a number above 0"
                raise W2WError(f"a VAE cannot be trained with {name} {rate:g}: {wanted} was expected. Give another.")


# Weights2Weights++ as it is: `report`, what its text says; `script`, what its training script does; `second`, its second model.
PRESETS = {
    "report": VaeOptions(variant="vanilla"),
    "script": VaeOptions(
        variant="vanilla", widths=(2048, 1024), epochs=15, schedule="ramp", warmup_epochs=5, ramp_epochs=5, kl_start=0.001
    ),
    "second": VaeOptions(m=1024, variant="second", widths=(1024,), kl_weight=0.1, warmup_epochs=0, adversarial_weight=0.1),
}


def preset(name: str) -> VaeOptions:
    """The options of a preset by its name. Raises W2WError if there is none of it."""
    if name not in PRESETS:
        raise W2WError(f"a VAE has no preset {name!r}. Choose {', '.join(PRESETS)}.")
    return PRESETS[name]
