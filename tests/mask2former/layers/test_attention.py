"""Attention blocks against torch's own modules and against their formulas."""

import pytest
import torch
from torch import nn

from mask2former.layers import MLP, CrossAttentionLayer, FFNLayer, MultiheadAttention, SelfAttentionLayer

B, Q, M, C, HEADS = 2, 5, 7, 16, 4


def inputs(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def some_mask() -> torch.Tensor:
    mask = torch.rand(B, Q, M, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[:, :, 0] = False
    return mask


def test_same_parameters_and_numbers_as_torch() -> None:
    ours = MultiheadAttention(C, HEADS).double()
    theirs = nn.MultiheadAttention(C, HEADS, batch_first=True).double()
    theirs.load_state_dict(ours.state_dict())
    query, key, value = inputs((B, Q, C), (B, M, C), (B, M, C))
    mask = some_mask()
    torch.testing.assert_close(ours(query, key, value), theirs(query, key, value)[0])
    expected = theirs(query, key, value, attn_mask=mask.repeat_interleave(HEADS, 0))[0]
    additive = torch.zeros(mask.shape).masked_fill(mask, -torch.inf)
    for form in (mask, mask[:, None], mask[:, None].expand(-1, HEADS, -1, -1), additive):
        torch.testing.assert_close(ours(query, key, value, form), expected)
    expected = theirs(query, key, value, attn_mask=mask[0])[0]
    torch.testing.assert_close(ours(query, key, value, mask[0]), expected)


def test_projected_keys_can_be_reused() -> None:
    attention = MultiheadAttention(C, HEADS).double()
    query, key, value = inputs((B, Q, C), (B, M, C), (B, M, C))
    projected = attention.project_key_value(key, value)
    torch.testing.assert_close(
        attention.attend(attention.project_query(query), *projected), attention(query, key, value)
    )


def test_self_attention_formula() -> None:
    x, pos = inputs((B, Q, C), (1, Q, C))
    for pre_norm in (False, True):
        layer = SelfAttentionLayer(C, HEADS, normalize_before=pre_norm).double()
        source = layer.norm(x) if pre_norm else x
        expected = x + layer.self_attn(source + pos, source + pos, source)
        torch.testing.assert_close(layer(x, query_pos=pos), expected if pre_norm else layer.norm(expected))


def test_cross_attention_formula_with_identity() -> None:
    query, memory, identity, key_pos, query_pos = inputs(
        (B, Q, C), (B, M, C), (B, Q, C), (1, M, C), (1, Q, C)
    )
    mask = some_mask()
    for pre_norm in (False, True):
        layer = CrossAttentionLayer(C, HEADS, normalize_before=pre_norm).double()
        source = layer.norm(query) if pre_norm else query
        attended = layer.multihead_attn(source + query_pos, memory + key_pos, memory, mask)
        arguments = {"memory_mask": mask, "key_pos": key_pos, "query_pos": query_pos}
        for residual in (None, identity):
            expected = (query if residual is None else residual) + attended
            actual = layer(query, memory, identity=residual, **arguments)
            torch.testing.assert_close(actual, expected if pre_norm else layer.norm(expected))


def test_ffn_formula() -> None:
    (x,) = inputs((B, Q, C))
    layer = FFNLayer(C, 32, activation="gelu").double()
    expected = layer.norm(x + layer.linear2(nn.functional.gelu(layer.linear1(x))))
    torch.testing.assert_close(layer(x), expected)
    layer = FFNLayer(C, 32, normalize_before=True).double()
    expected = x + layer.linear2(layer.linear1(layer.norm(x)).relu())
    torch.testing.assert_close(layer(x), expected)


def test_mlp_is_linear_relu_linear() -> None:
    mlp = MLP(C, 8, 3, 2).double()
    (x,) = inputs((B, Q, C))
    torch.testing.assert_close(mlp(x), mlp.layers[1](mlp.layers[0](x).relu()))
    assert list(MLP(4, 8, 2, 3).state_dict()) == [
        f"layers.{i}.{n}" for i in range(3) for n in ("weight", "bias")
    ]


def test_published_state_dict_names() -> None:
    norm = ["norm.weight", "norm.bias"]
    attention = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
    for layer, name in ((SelfAttentionLayer, "self_attn"), (CrossAttentionLayer, "multihead_attn")):
        assert list(layer(C, HEADS).state_dict()) == [f"{name}.{key}" for key in attention] + norm
    assert list(FFNLayer(C).state_dict()) == [
        "linear1.weight",
        "linear1.bias",
        "linear2.weight",
        "linear2.bias",
        *norm,
    ]


def test_gradients_reach_everything() -> None:
    layer = CrossAttentionLayer(8, 2).double()
    query, memory, identity = (t.requires_grad_() for t in inputs((1, 2, 8), (1, 3, 8), (1, 2, 8)))
    assert torch.autograd.gradcheck(lambda q, m, i: layer(q, m, identity=i), (query, memory, identity))


def test_dropout_only_in_training() -> None:
    layer = SelfAttentionLayer(C, HEADS, dropout=0.5)
    (x,) = inputs((B, Q, C), dtype=torch.float32)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_empty_batch_and_no_queries() -> None:
    layer = CrossAttentionLayer(C, HEADS)
    assert layer(torch.zeros(0, Q, C), torch.zeros(0, M, C)).shape == (0, Q, C)
    assert layer(torch.zeros(B, 0, C), torch.zeros(B, M, C)).shape == (B, 0, C)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"16.*num_heads \(3\)"):
        MultiheadAttention(16, 3)
    with pytest.raises(ValueError, match=r"activation.*'tanh'"):
        FFNLayer(C, activation="tanh")
    with pytest.raises(ValueError, match="num_layers"):
        MLP(1, 1, 1, 0)
