"""Every kernel that there is in Triton, by its name in `ops/fused`. Importing this imports Triton."""

from collections.abc import Callable, Mapping
from typing import Any

from megaswitch.ops.triton import (
    adafactor,
    adamw,
    attention,
    cross_entropy,
    dropout,
    geglu,
    grouped,
    permute,
    rms_norm,
    router,
    routing,
)

IMPLEMENTATIONS: Mapping[str, Callable[..., Any]] = {
    "add_rms_norm_forward": rms_norm.add_rms_norm_forward,
    "rms_norm_backward": rms_norm.rms_norm_backward,
    "attention_forward": attention.attention_forward,
    "attention_backward": attention.attention_backward,
    "adafactor_mean_squares_": adafactor.adafactor_mean_squares_,
    "adafactor_squares_": adafactor.adafactor_squares_,
    "adafactor_apply_": adafactor.adafactor_apply_,
    "adafactor_update_": adafactor.adafactor_update_,
    "adafactor_moments_": adafactor.adafactor_moments_,
    "adafactor_apply_moments_": adafactor.adafactor_apply_moments_,
    "adamw_": adamw.adamw_,
    "dropout": dropout.dropout,
    "jitter": dropout.jitter,
    "features_uniform": dropout.features_uniform,
    "cross_entropy_statistics": cross_entropy.cross_entropy_statistics,
    "cross_entropy_gradient": cross_entropy.cross_entropy_gradient,
    "route_forward": router.route_forward,
    "route_backward": router.route_backward,
    "tokens_gradient": router.tokens_gradient,
    "queue": routing.queue,
    "count_choices": routing.count_choices,
    "lane_order": routing.lane_order,
    "collect_rows": permute.collect_rows,
    "collect_rows_backward": permute.collect_rows_backward,
    "grouped_times": grouped.grouped_times,
    "grouped_relu": grouped.grouped_relu,
    "grouped_geglu": grouped.grouped_geglu,
    "add_grouped_": grouped.add_grouped_,
    "geglu_gradient_": geglu.geglu_gradient_,
}
