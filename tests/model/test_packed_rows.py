"""A packed row gives the losses and the gradients of its samples alone, exactly, when nothing is dropped."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from megaswitch.data.batch import Batch
from megaswitch.data.config import DataConfig
from megaswitch.data.layout import dtype_for
from megaswitch.data.opening import open_split
from megaswitch.data.sidecar import TokenizerFacts
from megaswitch.data.writer import IndexedWriter
from megaswitch.layers.context import Context
from megaswitch.model.config import STACKS, ModelConfig
from megaswitch.model.micro_batch import make_micro_batch
from megaswitch.model.record import Record
from megaswitch.model.transformer import SwitchTransformer
from megaswitch.model.units import param_specs

CONFIG = ModelConfig(
    vocab_size=160,
    d_model=16,
    d_ff=24,
    d_kv=4,
    num_heads=4,
    num_encoder_layers=2,
    num_decoder_layers=2,
    num_experts=4,
    num_sparse_encoder_layers=1,
    num_sparse_decoder_layers=1,
    encoder_length=64,
    decoder_length=30,
    capacity_factor=None,
    eval_capacity_factor=None,
)
CPU = torch.device("cpu")


@pytest.fixture
def batch(tmp_path) -> Batch:
    rng = np.random.default_rng(0)
    with IndexedWriter(str(tmp_path / "corpus"), dtype_for(160)) as writer:
        for _ in range(30):
            writer.add_document(rng.integers(3, 60, rng.integers(1, 40)).tolist())
        writer.finish(TokenizerFacts("f" * 32, 60))
    data = DataConfig(train=str(tmp_path / "corpus"), split="1,0,0", packing=True)
    return open_split(data, "train", encoder_length=64, decoder_length=30, vocab_size=160, seed=1).batch(0, 4)


def make_model() -> SwitchTransformer:
    generator = torch.Generator().manual_seed(0)
    params = {
        name: nn.Parameter(torch.randn(spec.shape, generator=generator, dtype=torch.float64) * 0.3)
        for name, spec in param_specs(CONFIG).items()
    }
    return SwitchTransformer(CONFIG, params).eval()


def losses_of(model: SwitchTransformer, batch: Batch, tp: int = 1) -> Tensor:
    """[B, T]: the loss of each target; 0 where there is none. `tp` is a padding of lengths."""
    micro = make_micro_batch(batch, tp, CPU)
    context = Context(
        topology=model.topology,
        training=False,
        seed=0,
        step=0,
        samples_B=micro.samples_B,
        num_targets=1.0,
        num_groups={stack: float(len(batch.samples_B)) for stack in STACKS},
        lengths={"encoder": micro.encoder_ids_BS.shape[1], "decoder": micro.decoder_ids_BT.shape[1]},
    )
    record = Record(CONFIG, CPU)
    carry = model.encoder({}, micro, context, record)
    logits = model.decoder(carry, replace(micro, targets_BT=None), context, record)["logits"]
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), micro.targets_BT, reduction="none")
    return losses * (micro.targets_BT != 0)


def alone(batch: Batch, row: int, number: int) -> Batch:
    """One sample of a packed row as a batch of its own, without segments."""
    mine_S, mine_T = batch.encoder_segments_BS[row] == number, batch.decoder_segments_BT[row] == number
    sides = (batch.encoder_ids_BS[row, mine_S], batch.decoder_ids_BT[row, mine_T], batch.targets_BT[row, mine_T])
    return Batch(*(side[None] for side in sides), batch.samples_B[row : row + 1])


@pytest.mark.parametrize("tp", [1, 7])
def test_losses_and_gradients_are_those_of_the_samples_alone(batch, tp):
    model = make_model()
    packed = losses_of(model, batch, tp)
    packed.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.params.items() if p.grad is not None}
    for p in model.params.values():
        p.grad = None
    samples = 0
    for row in range(len(batch.samples_B)):
        for number in range(1, int(batch.encoder_segments_BS[row].max()) + 1):
            expected = losses_of(model, alone(batch, row, number))
            expected.sum().backward()
            mine = np.flatnonzero(batch.decoder_segments_BT[row] == number)
            torch.testing.assert_close(packed[row, mine], expected[0], rtol=1e-11, atol=1e-11)
            samples += 1
    assert samples > 8, "the example packs nothing"
    for name, p in model.params.items():
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-9, atol=1e-10, msg=name)


def test_without_segments_they_are_others(batch):
    model = make_model()
    mixed = batch._replace(encoder_segments_BS=None, decoder_segments_BT=None)
    assert not torch.allclose(losses_of(model, batch), losses_of(model, mixed), rtol=1e-3)
