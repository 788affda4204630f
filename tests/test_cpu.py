import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from peft import LoraConfig

from w2wpp.base.cpu import suit_cpu
from w2wpp.lora.batched import adapted
from w2wpp.lora.layout import Layout

EVERYWHERE = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


@pytest.fixture
def unets(pico):
    """As diffusers loads it, and the same suited to a CPU."""
    plain, suited = (UNet2DConditionModel.from_pretrained(pico, subfolder="unet").eval() for _ in range(2))
    plain.set_attn_processor(AttnProcessor2_0())
    suit_cpu(suited)
    return plain, suited


def predicted(unet, n=4):
    draw = torch.Generator().manual_seed(0)
    config = unet.config
    x = torch.randn(n, config.in_channels, config.sample_size, config.sample_size, generator=draw)
    context = torch.randn(n, 8, config.cross_attention_dim, generator=draw)
    return unet(x, torch.arange(n) * 200, context).sample


@pytest.mark.parametrize("targets", [("attn2.to_k", "attn2.to_v"), EVERYWHERE])
def test_suited_is_the_same_function_with_the_same_gradients(unets, targets):
    layout = Layout.of(unets[0], rank=2, targets=targets)
    first = torch.randn(2, layout.d, generator=torch.Generator().manual_seed(1)) * 0.1
    outputs, gradients = [], []
    for unet in unets:
        weights = first.clone().requires_grad_(True)
        with adapted(unet, layout, weights):
            outputs.append(predicted(unet))
        outputs[-1].square().sum().backward()
        gradients.append(weights.grad)
    torch.testing.assert_close(outputs[1], outputs[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-3, rtol=1e-3)


def test_suited_keeps_the_layers_of_peft(unets):
    before = predicted(unets[1])
    for unet in unets:
        torch.manual_seed(0)
        unet.add_adapter(LoraConfig(r=2, target_modules=list(EVERYWHERE), init_lora_weights=False))
    plain, suited = (predicted(unet) for unet in unets)
    assert (suited - before).abs().max() > 1e-2
    torch.testing.assert_close(suited, plain, atol=2e-5, rtol=1e-4)
