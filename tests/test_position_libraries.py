"""Position encodings against other libraries'."""

from functools import partial

import pytest
import torch
from positions import attention, close
from torch import nn

from zoo.nn import ALiBi, Attention, Backbone, DeBERTa, Rotary, T5Bias, TransformerXL
from zoo.nn.relative_position import t5_bucket


def copied(module: Attention, q: nn.Linear, k: nn.Linear, v: nn.Linear, out: nn.Linear | None) -> None:
    """Give attention the weights of another library's linear maps; out None is the identity."""
    biases = [torch.zeros(16).double() if linear.bias is None else linear.bias for linear in (q, k, v)]
    module.qkv.weight.copy_(torch.cat([q.weight, k.weight, v.weight]))
    module.qkv.bias.copy_(torch.cat(biases))
    module.out.weight.copy_(torch.eye(16) if out is None else out.weight)
    module.out.bias.zero_()


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_t5_agrees_with_transformers(causal):
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    config = T5Config(d_model=16, d_kv=4, num_heads=4, dropout_rate=0.0, is_decoder=causal)
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).double().eval()
    nn.init.normal_(theirs.relative_attention_bias.weight)
    ours = attention(T5Bias(16, 4, causal=causal), causal=causal)
    copied(ours, theirs.q, theirs.k, theirs.v, theirs.o)
    ours.qkv.weight[:16] *= 2  # T5 does not divide by sqrt(d)
    ours.position.table.copy_(theirs.relative_attention_bias.weight.T)
    n = torch.arange(-300, 300)
    bucket = theirs._relative_position_bucket(-n, bidirectional=not causal)
    assert torch.equal(t5_bucket(n, causal=causal), bucket)
    t = torch.arange(300)
    close(ours.position.bias(t, t), theirs.compute_bias(300, 300)[0])
    x = torch.randn(2, 40, 16, dtype=torch.float64)
    mask = torch.zeros(40, 40).double().masked_fill(torch.ones(40, 40).triu(1).bool() & causal, -torch.inf)
    close(ours(x), theirs(x, mask=mask.expand(2, 1, 40, 40))[0])


@pytest.mark.parametrize("T", [5, 12])
@torch.no_grad()
def test_deberta_agrees_with_transformers(T):
    from transformers import DebertaConfig
    from transformers.models.deberta.modeling_deberta import (
        DisentangledSelfAttention,
        build_relative_position,
    )

    config = DebertaConfig(
        hidden_size=16,
        num_attention_heads=4,
        relative_attention=True,
        max_relative_positions=8,
        pos_att_type=["c2p", "p2c"],
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    theirs = DisentangledSelfAttention(config).double().eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    ours = attention(DeBERTa(16, 4, span=8))
    q, k, v = (nn.Linear(16, 16).double() for _ in range(3))
    for i, linear in enumerate((q, k, v)):  # their map is split by heads, then into q, k and v
        linear.weight.copy_(theirs.in_proj.weight.unflatten(0, (4, 3, 4))[:, i].flatten(0, 1))
        linear.bias.copy_((theirs.q_bias, torch.zeros(16), theirs.v_bias)[i])
    copied(ours, q, k, v, None)
    ours.position.key.load_state_dict(theirs.pos_proj.state_dict())
    ours.position.query.load_state_dict(theirs.pos_q_proj.state_dict())
    x = torch.randn(2, T, 16, dtype=torch.float64)
    y, _ = theirs(
        x,
        torch.ones(2, 1, T, T),
        relative_pos=build_relative_position(x, x),
        rel_embeddings=ours.position.table.detach(),
    )
    torch.testing.assert_close(ours(x), y, rtol=1e-6, atol=1e-6)  # their scale is float32


@torch.no_grad()
def test_deberta_agrees_with_the_second_version_too():
    from transformers import DebertaV2Config
    from transformers.models.deberta_v2.modeling_deberta_v2 import (
        DisentangledSelfAttention,
        build_relative_position,
    )

    config = DebertaV2Config(
        hidden_size=16,
        num_attention_heads=4,
        relative_attention=True,
        max_relative_positions=8,
        pos_att_type=["c2p", "p2c"],
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    theirs = DisentangledSelfAttention(config).double().eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    ours = attention(DeBERTa(16, 4, span=8))
    copied(ours, theirs.query_proj, theirs.key_proj, theirs.value_proj, None)
    # a bias of theirs adds the same to a query's scores with all keys
    ours.position.key.weight.copy_(theirs.pos_key_proj.weight)
    ours.position.query.load_state_dict(theirs.pos_query_proj.state_dict())
    x = torch.randn(2, 12, 16, dtype=torch.float64)
    y, _ = theirs(
        x,
        torch.ones(2, 1, 12, 12),
        relative_pos=build_relative_position(x, x),
        rel_embeddings=ours.position.table.detach(),
    )
    torch.testing.assert_close(ours(x), y, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_transformer_xl_agrees_with_xlnet():
    from transformers import XLNetConfig
    from transformers.models.xlnet.modeling_xlnet import XLNetModel

    config = XLNetConfig(
        vocab_size=5, d_model=16, n_head=4, n_layer=1, d_inner=16, dropout=0.0, attn_type="bi"
    )
    model = XLNetModel(config).double().eval()
    theirs = model.layer[0].rel_attn
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    theirs.seg_embed.zero_()
    ours = attention(TransformerXL(16, 4))
    q, k, v = torch.randn(3, 2, 4, 7, 4, dtype=torch.float64)
    ours.position.weight.copy_(theirs.r.permute(1, 2, 0))
    ours.position.u.copy_(theirs.r_w_bias.unsqueeze(1))
    ours.position.v.copy_(theirs.r_r_bias.unsqueeze(1))
    distances = model.relative_positional_encoding(7, 7).double()
    r = torch.einsum("ibh,hnd->ibnd", distances, theirs.r)
    y = theirs.rel_attn_core(*(z.permute(2, 0, 1, 3) for z in (q, k, v)), r)  # (T, B, H, d)
    t = torch.arange(7)
    torch.testing.assert_close(ours.attend(q, k, v, t, t), y.permute(1, 2, 0, 3), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rotary_agrees_with_transformers():
    from transformers import GPTNeoXConfig
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding, apply_rotary_pos_emb

    parameters = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    for options, rope in (
        ({}, parameters),
        ({"interpolation": 4.0}, {**parameters, "rope_type": "linear", "factor": 4.0}),
    ):
        config = GPTNeoXConfig(hidden_size=32, num_attention_heads=4, rope_parameters=rope)
        q, k = torch.randn(2, 2, 4, 30, 8)
        cos, sin = GPTNeoXRotaryEmbedding(config)(q, torch.arange(30)[None])
        halves = torch.cat([torch.arange(0, 8, 2), torch.arange(1, 8, 2)])
        theirs = apply_rotary_pos_emb(q[..., halves], k[..., halves], cos, sin)
        ours = Rotary(32, 4, **options).rotate(q, k, torch.arange(30))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a[..., halves], b, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_whole_network_agrees_with_gpt_neox():
    from transformers import GPTNeoXConfig, GPTNeoXModel

    config = GPTNeoXConfig(
        vocab_size=3,
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=64,
        hidden_act="gelu",
        use_parallel_residual=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
    )
    theirs = GPTNeoXModel(config).double().eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    ours = Backbone(16, 2, partial(Attention, heads=2), position=Rotary).double()
    # their features lie by heads, then by q, k, v; pairs that turn together are half a head apart, ours neighbours
    turned = torch.arange(8).view(2, 4).T.flatten()
    for mine, layer in zip(ours.blocks, theirs.layers, strict=True):
        for kind in ("weight", "bias"):
            q, k, v = getattr(layer.attention.query_key_value, kind).unflatten(0, (2, 3, 8)).unbind(1)
            parts = [q[:, turned], k[:, turned], v]
            getattr(mine.mixer.qkv, kind).copy_(torch.cat([part.flatten(0, 1) for part in parts]))
        for here, there in (
            (mine.mixer.out, layer.attention.dense),
            (mine.mlp.inner, layer.mlp.dense_h_to_4h),
            (mine.mlp.out, layer.mlp.dense_4h_to_h),
            (mine.mixer_norm, layer.input_layernorm),
            (mine.mlp_norm, layer.post_attention_layernorm),
        ):
            here.load_state_dict(there.state_dict())
    ours.norm.load_state_dict(theirs.final_layer_norm.state_dict())
    x = torch.randn(2, 21, 16, dtype=torch.float64)
    # their angles are float32
    torch.testing.assert_close(ours(x), theirs(inputs_embeds=x).last_hidden_state, rtol=1e-5, atol=1e-5)


def test_alibi_agrees_with_bloom():
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    for heads in (4, 6, 12):
        theirs = build_alibi_tensor(torch.ones(1, 9), heads, torch.float32)  # m_h t_k, of each head
        bias = ALiBi(48, heads).bias(torch.tensor([8]), torch.arange(9))
        torch.testing.assert_close(bias - bias[..., :1], theirs - theirs[..., :1])
