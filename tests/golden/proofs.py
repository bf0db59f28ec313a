"""Which test proves which key of the published vectors; `test_coverage.py` holds this to the files and to README.md."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

WHOLE = "whole file"


@dataclass(frozen=True)
class Proof:
    """Files (a shell pattern below `vectors`) and keys (a regular expression that matches wholly) that a test proves.

    A `quirk` is another library's way: the test has it as a reference, and the package does not offer it.
    """

    files: str
    keys: str
    test: str
    quirk: bool = False

    def covers(self, file: str, key: str) -> bool:
        """Whether the key is among these."""
        return fnmatch(file, self.files) and re.fullmatch(self.keys, key) is not None


ROUTER, DETAILS, CHOICES = "test_router.py", "test_router_details.py", "test_router_choices.py"
PARTS, OPTIMIZER, SPANS = "test_model_parts.py", "test_optimizer.py", "test_span_corruption.py"
HF, HF_PARTS = "test_hugging_face.py", "test_hugging_face_parts.py"
SWITCH_FILES = "router_switch_[cdnt]*.npz"

PROOFS = (
    Proof("adafactor_*.npz", r"p0|grads|lr|min_dim|(t5x|mtf)_(\w+_p(_step1)?|v[rc]?)", f"{OPTIMIZER}::test_adafactor"),
    Proof("adafactor_*.npz", "(t5x|mtf)_factored_axes", f"{OPTIMIZER}::test_factored_dimensions"),
    Proof("adafactor_*.npz", "hf_.*", f"{OPTIMIZER}::test_hugging_faces_rule_is_another", quirk=True),
    Proof("lr.npz", ".*", f"{OPTIMIZER}::test_learning_rate_and_decay"),
    Proof("capacity.npz", ".*", f"{PARTS}::test_capacity"),
    Proof("groups.json", ".*", f"{PARTS}::test_groups", quirk=True),
    Proof("param_counts.json", ".*", f"{PARTS}::test_parameter_counts"),
    Proof("ce_zloss.npz", "(?!.*_all_positions).*", f"{PARTS}::test_cross_entropy_with_z_loss"),
    Proof("ce_zloss.npz", ".*_all_positions", f"{PARTS}::test_cross_entropy_with_z_loss", quirk=True),
    Proof("rel_buckets.npz", ".*(?<!_f64)(?<!_flaxformer)", f"{PARTS}::test_relative_buckets"),
    Proof("rel_buckets.npz", ".*_(f64|flaxformer)", f"{PARTS}::test_relative_buckets", quirk=True),
    Proof("distill_T?.npz", ".*", "test_distillation.py::test_loss_and_gradient"),
    Proof("moe_*.npz", "dlogits|index|kept|gate|position", f"{DETAILS}::test_gradient_of_a_layers_logits"),
    Proof(
        "moe_*.npz",
        "x|Wr|wi|wo|wi_gate|capacity|alpha|zc|dout|out|aux|z|d(x|Wr|wi|wo|wi_gate)",
        "test_moe_layer.py::test_layer_and_gradients",
    ),
    Proof(SWITCH_FILES, "(?!d_)(?!aux$)(?!z$).*", f"{ROUTER}::test_switch_top1"),
    Proof(SWITCH_FILES, "aux|z|d_aux|d_z", f"{ROUTER}::test_losses_and_their_gradients"),
    Proof("router_switch_padding.npz", "logits|probs", f"{DETAILS}::test_logits_and_probabilities"),
    Proof(
        "router_switch_padding.npz",
        "index|gate|position|dispatch",
        f"{DETAILS}::test_places_of_real_tokens_among_padding",
    ),
    Proof(
        "router_switch_padding.npz",
        "x|W|capacity|importance|kept|combine|aux_clean",
        f"{ROUTER}::test_padding_is_not_routed_and_not_counted",
    ),
    Proof(
        "router_switch_padding.npz",
        "aux|aux_t5x|aux_ignoring_padding_flag",
        f"{DETAILS}::test_padding_as_others_count_it",
        quirk=True,
    ),
    Proof("router_switch_padding.npz", "z", f"{DETAILS}::test_z_loss_leaves_padding_out", quirk=True),
    Proof("router_selective_precision.npz", "logits_.*", f"{DETAILS}::test_logits_of_the_two_precisions"),
    Proof(
        "router_selective_precision.npz",
        "probs_bf16_path",
        f"{ROUTER}::test_the_narrow_router_is_what_selective_precision_avoids",
    ),
    Proof(
        "router_selective_precision.npz",
        "x_bf16_as_f32|W|capacity|probs_f32|index|kept|combine_bf16_as_f32",
        f"{ROUTER}::test_selective_precision",
    ),
    Proof("router_bpr.npz", "logits|probs|gate", f"{DETAILS}::test_logits_and_probabilities"),
    Proof(
        "router_bpr.npz",
        "x|W|capacity|index|order|aux|combine|dispatch|kept",
        f"{ROUTER}::test_batch_prioritised_routing",
    ),
    Proof("router_exploration.npz", ".*", f"{ROUTER}::test_exploration"),
    Proof("router_top2.npz", ".*", f"{CHOICES}::test_top2"),
    Proof("router_ntlb.npz", "logits|probs", f"{DETAILS}::test_logits_and_probabilities"),
    Proof("router_ntlb.npz", "x|W|capacity|k|combine|aux|choice|left", f"{CHOICES}::test_no_token_left_behind"),
    Proof("span_helper.npz", ".*", f"{SPANS}::test_helper_gives_the_published_lengths"),
    Proof("span_counts.npz", ".*", f"{SPANS}::test_counts_follow_float32_rounding"),
    Proof("span_corruption.npz", r"\w+_(tokens|mask|inputs|targets)", f"{SPANS}::test_inputs_and_targets_of_a_mask"),
    Proof("span_corruption.npz", r"\w+_first_(noise|nonnoise)", f"{SPANS}::test_mask_of_indicators"),
    Proof("span_corruption.npz", r"\w+_(noise|nonnoise)_lens", f"{SPANS}::test_lengths_of_segments"),
    Proof("hf_tiny_*/config.json", WHOLE, f"{HF}::test_logits"),
    Proof("hf_tiny_*/model.safetensors", WHOLE, f"{HF}::test_logits"),
    Proof("hf_tiny_*/io.npz", "input_ids|attention_mask|decoder_input_ids|logits", f"{HF}::test_logits"),
    Proof(
        "hf_tiny_*/io.npz",
        "encoder_last_hidden_state|router_logits_.*",
        f"{HF_PARTS}::test_encoder_output_and_router_logits",
    ),
    Proof("hf_tiny_*/io.npz", "labels|ce", f"{HF_PARTS}::test_cross_entropy"),
    Proof(
        "hf_tiny_*/io.npz",
        "aux_per_layer|z_per_layer|switch_loss",
        f"{HF_PARTS}::test_losses_by_layer_and_their_sum",
    ),
    Proof("hf_tiny_t5_*/io.npz", "hf_loss", f"{HF_PARTS}::test_cross_entropy", quirk=True),
    Proof("hf_tiny_[!t]*/io.npz", "hf_.*", f"{HF_PARTS}::test_hugging_faces_own_sum_is_another", quirk=True),
    Proof("hf_tiny_*/grads_ce.npz", ".*", f"{HF}::test_gradients_of_the_cross_entropy"),
    Proof("hf_tiny_*/grads_switch.npz", ".*", f"{HF}::test_gradients_with_the_load_balancing_loss"),
)


def keys(root: Path) -> Iterator[tuple[str, str]]:
    """Every key of every file below `root`, but for the texts that describe them."""
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.suffix != ".txt"):
        file = path.relative_to(root).as_posix()
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                yield from ((file, key) for key in arrays.files)
        elif path.suffix == ".json" and path.parent == root:
            yield from ((file, key) for key in json.loads(path.read_text()))
        else:
            yield file, WHOLE


def table() -> str:
    """The proofs as README.md has them."""
    rows = ["| vectors | keys | proven by | |", "|---|---|---|---|"]
    for proof in PROOFS:
        pattern = "all" if proof.keys == ".*" else proof.keys.replace("|", ", ")
        rows.append(f"| `{proof.files}` | `{pattern}` | `{proof.test}` | {'another library' if proof.quirk else ''} |")
    return "\n".join(rows)
