import pytest
import torch

from w2wpp.common.errors import W2WError
from w2wpp.lora.layout import Layout


def test_flatten_is_the_inverse_of_unflatten(base):
    layout = Layout.of(base.pipeline.unet, rank=2)
    weights = torch.randn(3, layout.d)
    assert torch.equal(layout.flatten(layout.unflatten(weights)), weights)


def test_order_is_the_sorted_peft_key_order_and_survives_json(base):
    layout = Layout.of(base.pipeline.unet)
    names = [m.name for m in layout.matrices]
    assert names == sorted(names)
    assert Layout.from_json(layout.to_json()) == layout


def test_refusals_name_what_was_found_and_expected(base):
    one, two = Layout.of(base.pipeline.unet), Layout.of(base.pipeline.unet, rank=2)
    with pytest.raises(W2WError, match=rf"space expects {one.d:,} weights \(rank 1\); row 3 has {two.d:,} \(rank 2\)"):
        one.check_same(two, "space", "row 3")
    with pytest.raises(W2WError, match="alpha 5"):
        one.check_same(Layout.of(base.pipeline.unet, alpha=5), "space", "row 3")
    with pytest.raises(W2WError, match="no linear layer"):
        Layout.of(base.pipeline.unet, targets=("to_z",))
    with pytest.raises(W2WError, match="not a layout"):
        Layout.from_json('{"matrices": 3}')
    matrices = one.unflatten(torch.zeros(one.d))
    name = one.matrices[0].name
    with pytest.raises(W2WError, match="missing"):
        one.flatten({key: value for key, value in matrices.items() if key != name})
    with pytest.raises(W2WError, match="has no matrix"):
        one.flatten({**matrices, "x.lora_A.weight": torch.zeros(1, 1)})


def test_adapters_of_a_text_encoder_are_refused_where_it_would_be_left_out() -> None:
    layers = {"down.to_q": torch.nn.Linear(4, 4), "text_encoder.text_model.fc1": torch.nn.Linear(4, 4)}
    Layout.on({"down.to_q": layers["down.to_q"]}, rank=1, alpha=1, targets=("to_q",)).check_denoiser_alone()
    with pytest.raises(W2WError, match=r"adapt the text_encoder too.*--drop-text-encoder"):
        Layout.on(layers, rank=1, alpha=1, targets=("to_q", "fc1")).check_denoiser_alone()
