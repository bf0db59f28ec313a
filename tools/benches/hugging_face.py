"""transformers' models with our weights: the same tensors under its names, and its training step."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benches.command_line import Options
from benches.models import DTYPES, Batch
from megaswitch.checkpoint.hugging_face.describe import their_config
from megaswitch.checkpoint.hugging_face.names import TABLES, family_of, their_names, transposed
from megaswitch.model.config import ModelConfig
from megaswitch.topology.start import Place
from megaswitch.utils.errors import MissingInputError
from megaswitch.utils.malloc import keep_freed_memory

try:
    import transformers
except ImportError as error:
    raise MissingInputError("transformers is not installed; `bash launch/install.sh` does it") from error


def as_theirs(params: Mapping[str, Tensor], model: ModelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies of our weights, named and laid out as theirs."""
    found = {}
    for name, tensor in params.items():
        names = their_names(name, model, family_of(model))
        parts = tensor.detach().unbind(0) if len(names) > 1 else [tensor.detach()]
        for theirs, part in zip(names, parts, strict=True):
            turned = part.t() if transposed(name) else part
            found[theirs] = turned.to(dtype, copy=True).contiguous()
    return found


def make_model(params: Mapping[str, Tensor], model: ModelConfig, dtype: str) -> Any:
    """Their model in training mode with our weights, and the attention that is fastest with a learned bias: eager."""
    described = their_config(model, None, dtype)
    described.pop("architectures")
    kind = described.pop("model_type")
    config = transformers.AutoConfig.for_model(kind, **described)
    config._attn_implementation = "eager"
    config.use_cache = False
    with torch.device("meta"):
        made = transformers.AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager")
    state = as_theirs(params, model, DTYPES[dtype])
    missing, unexpected = made.load_state_dict(state, strict=False, assign=True)
    made.tie_weights()
    assert not unexpected and set(missing) <= {*TABLES, "lm_head.weight"}, (missing, unexpected)
    left = [name for name, tensor in (*made.named_parameters(), *made.named_buffers()) if tensor.is_meta]
    assert not left, left
    return made.train()


def make_optimizer(parameters: Any, name: str) -> torch.optim.Optimizer:
    """torch's: AdamW in its fastest form; Adafactor has one on the CPU."""
    if name == "adafactor":
        return torch.optim.Adafactor(parameters, lr=1e-4)
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)


def make_step(
    weights: Path, model: ModelConfig, batch: Batch, options: Options, place: Place
) -> Callable[[], float]:
    """Forward, backward and optimizer over always the same batch, from our weights in a file; returns the loss."""
    del place
    if options.peer_keeps_memory:
        keep_freed_memory()
    autocast = options.peer_precision == "autocast"  # as their Trainer does with bf16=True
    made = make_model(load_file(weights), model, "float32" if autocast else options.dtype)
    optimizer = make_optimizer(made.parameters(), options.optimizer)
    encoder, targets = torch.from_numpy(batch.encoder_ids_BS), torch.from_numpy(batch.targets_BT)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = made(input_ids=encoder, labels=targets, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def layer_round(case: Mapping[str, Tensor]) -> Callable[[], Tensor]:
    """Forward and backward of their sparse layer over the inputs of `layer.make_case`; returns its output."""
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

    (_, tokens, width), (experts, _, hidden) = case["x"].shape, case["wi"].shape
    shape = {"d_model": width, "d_ff": hidden, "num_experts": experts, "expert_capacity": tokens // experts}
    quiet = {"dropout_rate": 0.0, "router_jitter_noise": 0.0}
    config = transformers.AutoConfig.for_model("switch_transformers", **quiet, **shape)
    with torch.device("meta"):
        layer = SwitchTransformersSparseMLP(config)
    state = {"router.classifier.weight": case["router"].t().contiguous()}
    for i in range(experts):
        state |= {f"experts.expert_{i}.{w}.weight": case[w][i].t().contiguous() for w in ("wi", "wo")}
    layer.load_state_dict(state, assign=True)

    def once() -> Tensor:
        layer.zero_grad(set_to_none=True)
        out = layer(case["x"].detach().requires_grad_())
        out.backward(case["grad"])
        return out.detach()

    return once
