"""What is wrong with a configuration in a world of a given size: everything that spans fields, told at once.

Pure: nothing is started, opened or allocated.
"""

from collections.abc import Iterator

from megaswitch.data.objectives import plan
from megaswitch.data.spans import random_spans_helper
from megaswitch.model.config import STACKS, ModelConfig
from megaswitch.model.units import stage_problems
from megaswitch.topology.grid import layout_problems
from megaswitch.train.config import RunConfig
from megaswitch.train.ranges import range_problems
from megaswitch.train.router_check import router_problems
from megaswitch.utils.errors import UserError
from megaswitch.utils.problem import Problem


def check(config: RunConfig, world: int) -> list[Problem]:
    """All problems of training `config` with `world` processes; empty when there are none."""
    problems = [*range_problems(config), *_model(config.model), *layout_problems(config.layout, world)]
    if problems:
        return problems
    return [
        *stage_problems(config.model, config.layout),
        *_sharding(config),
        *_batches(config, world),
        *_lengths(config),
        *router_problems(config),
    ]


def _model(model: ModelConfig) -> Iterator[Problem]:
    """Sparse layers and experts belong together."""
    sparse = {stack: getattr(model, f"num_sparse_{stack}_layers") for stack in STACKS}
    for stack, number in sparse.items():
        layers = model.num_layers(stack)
        if layers >= 1 and not 0 <= number <= layers:
            remedy = f"give a number from 0 to {layers}"
            yield Problem(f"model.num_sparse_{stack}_layers", f"is {number}", remedy)
    if model.num_experts and not any(sparse.values()):
        remedy = "set model.num_sparse_encoder_layers and model.num_sparse_decoder_layers, or model.num_experts=0"
        yield Problem("model.num_experts", f"is {model.num_experts}, but no layer is sparse", remedy)


def _sharding(config: RunConfig) -> Iterator[Problem]:
    """What has to divide what."""
    model, layout = config.model, config.layout
    cases = [
        ("layout.tp", layout.tp, "model.num_heads", model.num_heads),
        ("layout.tp", layout.tp, "model.d_ff", model.d_ff),
        ("layout.etp", layout.etp, "model.d_ff", model.d_ff),
        ("layout.ep", layout.ep, "model.num_experts", model.num_experts),
    ]
    for axis, size, key, number in cases:
        if number % size:
            fits = ", ".join(str(n) for n in range(1, min(number, 64) + 1) if number % n == 0)
            yield Problem(axis, f"= {size} does not divide {key} = {number}", f"choose a divisor of it ({fits})")
    if model.vocab_size < layout.tp:
        yield Problem("layout.tp", f"is larger than model.vocab_size = {model.vocab_size}", "choose a smaller tp")
    if layout.ep > 1 and model.num_experts == 0:
        yield Problem("layout.ep", f"is {layout.ep}, but the model has no experts", "set layout.ep=1")
    if layout.dispatch == "padded" and None in (model.capacity_factor, model.eval_capacity_factor):
        remedy = "set model.capacity_factor and model.eval_capacity_factor, or layout.dispatch=variable"
        yield Problem("layout.dispatch", "is padded, but nothing limits an expert's slots", remedy)


def _batches(config: RunConfig, world: int) -> Iterator[Problem]:
    """Micro-batches are whole routing groups, and the global batch is whole micro-batches on each rank."""
    model, train, layout = config.model, config.train, config.layout
    for stack in STACKS:
        size = model.group_size(stack)
        if model.num_sparse(stack) and train.micro_batch % size:
            key = "decoder_group_sequences" if stack == "decoder" else "group_sequences"
            message = f"= {train.micro_batch} is not a multiple of the {stack}'s routing group of {size} sequences"
            yield Problem("train.micro_batch", message, f"choose a multiple of {size}, or a smaller model.{key}")
    dp = world // (layout.pp * layout.tp)
    if train.global_batch % (dp * train.micro_batch):
        message = f"= {train.global_batch} is not a multiple of dp x train.micro_batch = {dp} x {train.micro_batch}"
        remedy = f"choose a multiple of {dp * train.micro_batch}, or a smaller train.micro_batch"
        if train.global_batch < dp * train.micro_batch:
            remedy += " (with smaller routing groups: model.group_sequences)"
        yield Problem("train.global_batch", message, remedy)


def _lengths(config: RunConfig) -> Iterator[Problem]:
    """The targets of a corrupted encoder sequence must fit into the decoder."""
    model, data = config.model, config.data
    if all("task:" in entry for entry in data.train.split(",")):
        return  # pairs have lengths of their own
    if config.train.objective != "span_corruption":
        yield from _objective(config)
        return
    try:
        _, targets = random_spans_helper(model.encoder_length, data.noise_density, data.mean_span_length)
    except UserError as error:
        key, _, message = str(error).partition(" ")
        if key.startswith("data."):
            yield Problem(key, message, "T5 takes data.noise_density=0.15 and data.mean_span_length=3")
        else:
            remedy = "change it, or data.noise_density and data.mean_span_length"
            yield Problem("model.encoder_length", str(error), remedy)
        return
    if targets > model.decoder_length:
        message = f"= {model.decoder_length} is too short for the targets of {model.encoder_length} encoder tokens"
        yield Problem("model.decoder_length", message, f"give {targets}, or a shorter model.encoder_length")


def _objective(config: RunConfig) -> Iterator[Problem]:
    """Other objectives find their own lengths, where there are any."""
    model, objective = config.model, config.train.objective
    try:
        plan(objective, model.encoder_length, model.decoder_length, config.data)
    except UserError as error:
        remedy = "change what it names, or the objective"
        yield Problem("train.objective", f"= {objective} cannot work: {error}", remedy)
    if config.data.packing:
        remedy = "set data.packing=false or train.objective=span_corruption"
        yield Problem("data.packing", f"does not go with train.objective={objective}", remedy)
