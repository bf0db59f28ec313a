"""What a run tells: a line of metrics a step, TensorBoard events, and a progress line now and then."""

import logging
from pathlib import Path

from megaswitch.checkpoint.training import Progress
from megaswitch.train.board import Board
from megaswitch.train.config import RunConfig
from megaswitch.train.evaluate import Evaluation
from megaswitch.train.memory import Memory
from megaswitch.train.run_folder import Metrics
from megaswitch.train.speed import Speed, clock_text
from megaswitch.train.step import StepResult

log = logging.getLogger(__name__)

Line = dict[str, float | int]


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return every > 0 and step % every == 0


def metrics_line(
    config: RunConfig,
    progress: Progress,
    result: StepResult,
    evaluation: Evaluation | None,
    tokens_per_s: float,
    epochs: float,
    memory_gb: float,
) -> Line:
    """One step's record. loss = nll + z_loss + aux_loss + router_z_loss, each with its coefficient; `epochs` are
    the passes over the corpus that was passed over most often; `memory_gb` is this rank's."""
    record, model = result.record, config.model
    line: Line = {
        "step": progress.step,
        "samples": progress.samples,
        "epochs": epochs,
        "loss": result.loss,
        "nll": record.mean_nll,
        "aux_loss": model.aux_loss_weight * record.aux,
        "z_loss": record.z / max(record.targets, 1.0),
        "router_z_loss": model.router_z_loss_coef * record.router_z,
        "dropped": record.dropped_share,
        "grad_norm": result.grad_norm,
        "lr": result.lr,
        "tokens_per_s": tokens_per_s,
        "skipped": progress.skipped,
        "memory_gb": memory_gb,
    }
    if evaluation is not None:
        line |= {"valid_nll": evaluation.nll, "valid_content_nll": evaluation.content_nll}
        for name, part in evaluation.sets.items():
            line |= {f"valid_nll/{name}": part.nll, f"valid_content_nll/{name}": part.content_nll}
    return line


class Reporter:
    """The first rank's records, in the run's folder."""

    def __init__(self, config: RunConfig, folder: Path, first_step: int, memory: Memory) -> None:
        self.config, self._folder, self._memory = config, folder, memory
        self.go_on_from(first_step)

    def go_on_from(self, step: int) -> None:
        """What was recorded of later steps is taken back."""
        self.metrics = Metrics(self._folder, step)
        self.board = Board(self._folder / "tb", step) if self.config.log.tensorboard else None

    def tell(
        self, progress: Progress, result: StepResult, evaluation: Evaluation | None, speed: Speed, epochs: float
    ) -> None:
        """Record one step."""
        step, every = progress.step, self.config.log.every
        used = self._memory.used_gb()
        line = metrics_line(self.config, progress, result, evaluation, speed.tokens_per_s, epochs, used)
        try:
            self.metrics.write(line)
        except OSError as error:  # a full disk: whether the run can go on is for the checkpoints to say
            log.error("step %d is not recorded in %s: %s", step, self.metrics.path, error.strerror or error)
        if due(step, every) or step == 1:
            self._say(line, speed)
        if self.board is not None:
            self._try_to_show(self.board, step, result, line)

    def _say(self, line: Line, speed: Speed) -> None:
        log.info(
            "step %d/%d  loss %.4f  nll %.4f  aux %.4f  dropped %.1f%%  norm %.3f  "
            "%.0f tokens/s  %.0f%% of peak  %s left",
            *(line["step"], self.config.train.steps, line["loss"], line["nll"], line["aux_loss"]),
            *(100 * line["dropped"], line["grad_norm"], speed.tokens_per_s),
            *(100 * speed.share_of_peak, clock_text(speed.seconds_left)),
        )

    def _try_to_show(self, board: Board, step: int, result: StepResult, line: Line) -> None:
        """Pictures are not worth a run: with the first trouble there are no more of them."""
        try:
            self._show(board, step, result, line)
        except Exception as error:
            log.error("step %d: no more TensorBoard events: %s: %s", step, type(error).__name__, error)
            self.board = None

    def _show(self, board: Board, step: int, result: StepResult, line: Line) -> None:
        every = self.config.log
        board.scalars(step, {k.replace("_", "/", 1): v for k, v in line.items() if k.startswith("valid_")})
        if due(step, every.every) or step == 1:
            board.scalars(step, {f"train/{k}": v for k, v in line.items() if not k.startswith(("valid", "step"))})
            board.layers(step, result.record)
        if due(step, every.images_every) or step == 1:
            board.picture(step, result.record)

    def close(self) -> None:
        """Write out what is left."""
        self.metrics.close()
        if self.board is not None:
            self.board.close()
