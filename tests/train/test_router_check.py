"""Every router option that means nothing, or nothing good, is one clear problem."""

from dataclasses import replace

import pytest
from train.corpus import tiny_run

from megaswitch.train.check import check
from megaswitch.train.router_check import precision_problems

DENSE = {"num_experts": 0, "num_sparse_encoder_layers": 0, "num_sparse_decoder_layers": 0}


@pytest.mark.parametrize(
    "model,train,key,word",
    [
        ({"router": "top2", "exploration": "sample"}, {}, "model.exploration", "top2"),
        ({"second_policy": "all"}, {}, "model.second_policy", "switch"),
        ({"router": "ntlb", "second_threshold": 0.5}, {}, "model.second_threshold", "ntlb"),
        ({"second_place_loss": True}, {}, "model.second_place_loss", "switch"),
        ({"router": "top2", "router_choices": 3}, {}, "model.router_choices", "top2"),
        ({"router": "ntlb", "router_choices": 9}, {}, "model.router", "9 of 4"),
        ({"expert_attention": True}, {"dtype": "bfloat16"}, "model.expert_attention", "diverges"),
        ({"expert_attention": True, **DENSE}, {}, "model.expert_attention", "no experts"),
    ],
)
def test_problem(tmp_path, model, train, key, word):
    config = tiny_run(tmp_path, tmp_path / "corpus")
    config = replace(config, model=replace(config.model, **model), train=replace(config.train, **train))
    (problem,) = check(config, 1)
    assert problem.key == key
    assert word in problem.message


@pytest.mark.parametrize(
    "model",
    [
        {"exploration": "sample", "router_dropout": 0.1, "jitter": 0.01},
        {"router": "top2", "second_policy": "threshold", "second_threshold": 0.3, "second_place_loss": True},
        {"router": "ntlb", "router_choices": 4},
        {"router": "noisy_topk", "router_choices": 1},
        {"router_priority": "probability", "fixed_capacity": 3},
        {"expert_attention": True, "expert_attention_in_bfloat16": True},
    ],
)
def test_no_problem(tmp_path, model):
    config = tiny_run(tmp_path, tmp_path / "corpus")
    config = replace(config, model=replace(config.model, **model), train=replace(config.train, dtype="bfloat16"))
    assert check(config, 1) == []


def test_what_diverges_is_refused_where_auto_becomes_bfloat16(tmp_path):
    model = replace(tiny_run(tmp_path, tmp_path / "corpus").model, expert_attention=True)
    assert [p.key for p in precision_problems(model, bfloat16=True)] == ["model.expert_attention"]
    assert list(precision_problems(model, bfloat16=False)) == []
    assert list(precision_problems(replace(model, expert_attention_in_bfloat16=True), bfloat16=True)) == []
