from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch

from w2wpp.lora.batched import adapted, initial_weights
from w2wpp.lora.layout import Layout


def run(base, n, context=None):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((1, *base.latent_shape), generator=generator).expand(n, -1, -1, -1)
    context = base.encode_text(["photo of sks person"]).expand(n, -1, -1)
    with torch.no_grad():
        return base.pipeline.unet(x, torch.full((n,), 300), context).sample


def test_hooks_compute_the_merged_weights(base):
    unet = base.pipeline.unet
    layout = Layout.of(unet, rank=2, alpha=5)
    weights = torch.randn(2, layout.d) * 0.1
    with adapted(unet, layout, weights):
        hooked = run(base, 2)
    for row, output in zip(weights, hooked, strict=True):
        matrices = layout.unflatten(row)
        before = {name: unet.get_submodule(name).weight.clone() for name in layout.modules}
        with torch.no_grad():
            for name in layout.modules:
                product = matrices[f"{name}.lora_B.weight"] @ matrices[f"{name}.lora_A.weight"]
                unet.get_submodule(name).weight += layout.scale * product
            merged = run(base, 1)[0]
            for name, weight in before.items():
                unet.get_submodule(name).weight.copy_(weight)
        torch.testing.assert_close(output, merged, atol=1e-5, rtol=1e-5)


def test_initial_weights_change_nothing_and_the_base_is_restored(base):
    layout = Layout.of(base.pipeline.unet)
    plain = run(base, 1)
    with adapted(base.pipeline.unet, layout, initial_weights(layout, 3)[None]):
        assert torch.equal(run(base, 1), plain)
    with adapted(base.pipeline.unet, layout, torch.randn(1, layout.d)):
        assert not torch.allclose(run(base, 1), plain)
    assert torch.equal(run(base, 1), plain)
    assert torch.equal(initial_weights(layout, 3), initial_weights(layout, 3))
    assert not torch.equal(initial_weights(layout, 3), initial_weights(layout, 4))


def test_threads_that_share_a_unet_have_each_their_own_adapters(base):
    layout = Layout.of(base.pipeline.unet)
    adapters = torch.randn(2, 1, layout.d, generator=torch.Generator().manual_seed(2)) * 0.1
    alone = []
    for weights in adapters:
        with adapted(base.pipeline.unet, layout, weights):
            alone.append(run(base, 1))
    both_open = Barrier(2)

    def work(weights):
        with adapted(base.pipeline.unet, layout, weights):
            both_open.wait()
            output = run(base, 1)
            both_open.wait()
        return output

    with ThreadPoolExecutor(2) as pool:
        for output, expected in zip(pool.map(work, adapters), alone, strict=True):
            torch.testing.assert_close(output, expected)
