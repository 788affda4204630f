"""Build a small Stable Diffusion pipeline from nothing: the same classes as SD 1.5, other sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderTiny, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

# Words without a meaning. Each stands for "someone the base has not met"; `sks` is DreamBooth's.
PLACEHOLDERS = ("sks", "ohwx", "zwx", "hta", "bnha", "kst", "vcz", "qlp")
# The words of captions that are not names.
WORDS = ("photo", "of", "a", "man", "woman", "person", "smiling", *PLACEHOLDERS)
START, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<unk>"


@dataclass(frozen=True)
class BaseSizes:
    """How large a pipeline to build; the defaults take under 15 MB in float16; `tiny-faces` has a wider UNet."""

    image_size: int = 64  # pixels
    latent_channels: int = 16
    autoencoder_width: int = 32
    decoder_blocks: tuple[int, ...] = (2, 2, 1, 1)  # of each resolution, the smallest first; a halving between two
    unet_widths: tuple[int, ...] = (96, 120)
    unet_dropout: float = 0.0  # in residual blocks, while the base is trained
    attention_heads: int = 4
    norm_groups: int = 8
    text_width: int = 128
    text_layers: int = 2
    prompt_tokens: int = 12

    @property
    def latent_size(self) -> int:
        """The side of the latents."""
        return self.image_size // 2 ** (len(self.decoder_blocks) - 1)


def build_tokenizer(names: Sequence[str], prompt_tokens: int) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, in which each name ("Aaron Eckhart") is one token; case does not matter."""
    vocabulary = {word: i for i, word in enumerate((START, END, UNKNOWN, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, vocabulary[START]), (END, vocabulary[END])]
    )
    tokenizer.add_tokens([AddedToken(name.lower(), normalized=True, single_word=True) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=END, unk_token=UNKNOWN, model_max_length=prompt_tokens
    )


def build_text_encoder(sizes: BaseSizes, tokenizer: PreTrainedTokenizerFast) -> CLIPTextModel:
    """An untrained text encoder for a tokenizer's words; its weights are drawn from the global generator."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=sizes.text_width,
            intermediate_size=2 * sizes.text_width,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=sizes.attention_heads,
            max_position_embeddings=sizes.prompt_tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_pipeline(sizes: BaseSizes, names: Sequence[str] = (), seed: int = 0) -> StableDiffusionPipeline:
    """An untrained pipeline whose tokenizer knows `names`; its weights are drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # modules draw their initial weights from the global generator
        tokenizer = build_tokenizer(names, sizes.prompt_tokens)
        levels = len(sizes.decoder_blocks)
        # An encoder without residual blocks is linear: it learns in minutes what normalised ones take hours for, and
        # keeps what a principal component analysis would. The decoder is where the capacity goes.
        vae = AutoencoderTiny(
            in_channels=3,
            out_channels=3,
            encoder_block_out_channels=(sizes.autoencoder_width,) * levels,
            decoder_block_out_channels=(sizes.autoencoder_width,) * levels,
            num_encoder_blocks=(0,) * levels,
            num_decoder_blocks=sizes.decoder_blocks,
            latent_channels=sizes.latent_channels,
        )
        unet = UNet2DConditionModel(
            sample_size=sizes.latent_size,
            in_channels=sizes.latent_channels,
            out_channels=sizes.latent_channels,
            layers_per_block=1,
            block_out_channels=sizes.unet_widths,
            down_block_types=("CrossAttnDownBlock2D",) * len(sizes.unet_widths),
            up_block_types=("CrossAttnUpBlock2D",) * len(sizes.unet_widths),
            cross_attention_dim=sizes.text_width,
            attention_head_dim=sizes.attention_heads,
            norm_num_groups=sizes.norm_groups,
            dropout=sizes.unet_dropout,
        )
        text_encoder = build_text_encoder(sizes, tokenizer)
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
