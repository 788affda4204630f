"""One adapter of anybody's as a row of a layout, for a space to encode."""

from pathlib import Path

from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.formats.canonical import to_weights
from w2wpp.exchange.formats.lora_file import read_lora
from w2wpp.exchange.formats.peft import CONFIG, read_peft
from w2wpp.lora.layout import Layout


def read_adapter(path: str | Path, base: Denoiser, layout: Layout) -> Tensor:
    """An adapter of `base` as weights [d] float32 of `layout`: a peft folder, or a safetensors file of any tool.

    A peft folder of that very layout is taken number by number, as an adapter of the layout's dataset; anything else is
    brought to the layout's rank, scale and gauge (`formats.canonical`), and what it changes in text encoders is left out.
    Raises W2WError for a file that is no LoRA of the base, or that adapts layers which the layout does not.
    """
    path = Path(path)
    if (path / CONFIG).is_file():
        try:
            found, weights = read_peft(path)
        except W2WError:  # no plain LoRA of one rank; what is wrong with it is said below, if anything is
            pass
        else:
            if found == layout:
                return weights
    lora = read_lora(path, base, drop_text_encoder=True)
    if strangers := sorted(set(lora.down) - set(layout.modules)):
        raise W2WError(f"{path.name} adapts {strangers[0]}; {', '.join(layout.targets)} were expected. Give an adapter of these layers.")
    return to_weights(lora, layout)[0]
