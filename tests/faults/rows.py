"""What befalls long runs, what is expected then, and which tests show it; `test_rows.py` holds this to the files."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A fault: its number in the list that the project began with, what it is, what is expected, and its tests (paths
    below tests/)."""

    number: int
    fault: str
    expected: str
    tests: tuple[str, ...]


def _row(number: int, fault: str, expected: str, *tests: str) -> Row:
    return Row(number, fault, expected, tests)


PEERS, STEPS, FILES = "faults/test_peers.py", "faults/test_steps.py", "faults/test_files.py"
START, TORCHRUN = "faults/test_start.py", "faults/test_torchrun.py"
STORE, DAMAGE = "checkpoint/test_checkpoint_store.py", "checkpoint/test_checkpoint_damage.py"
BAD, CHECK, INDEXED = "train/test_bad_input.py", "train/test_check.py", "data/test_indexed.py"
TEXT, LAYER = "data_prep/test_documents.py", "layers/test_switch_layer.py"

ROWS = (
    _row(
        1, "a rank is killed in a step", "the others end with 76 and name it; the next start ends bit for bit the same",
        f"{PEERS}::test_killed_in_a_step", f"{TORCHRUN}::test_a_killed_worker_is_started_again",
        f"{TORCHRUN}::test_thirty_random_kills",
    ),
    _row(2, "killed while a shard is written", "the step before resumes",
        f"{STORE}::test_killed_on_the_way_the_previous_one_resumes"),
    _row(
        3, "killed around the rename", "either state resumes",
        f"{STORE}::test_killed_on_the_way_the_previous_one_resumes",
        f"{STORE}::test_killed_after_the_rename_the_new_one_resumes",
    ),
    _row(
        4, "the first rank is killed", "as any other",
        f"{PEERS}::test_killed_in_a_step", f"{TORCHRUN}::test_a_killed_worker_is_started_again",
    ),
    _row(5, "all ranks are killed", "the last checkpoint resumes", f"{PEERS}::test_all_are_killed"),
    _row(6, "keys of a dead rendezvous", "every restart comes back", f"{TORCHRUN}::test_thirty_random_kills",
         f"{TORCHRUN}::test_a_killed_worker_is_started_again"),
    _row(
        7, "a crash in C, or an error of ours", "its stack is shown; the others end with 76",
        f"{PEERS}::test_a_crash_shows_its_stack", f"{PEERS}::test_a_rank_that_raises",
    ),
    _row(8, "a rank is stopped", "named; stacks; all end with 76", f"{PEERS}::test_a_stopped_rank_is_named",
         f"{TORCHRUN}::test_a_stopped_worker_is_named_and_all_are_started_again"),
    _row(9, "the interpreter or the loader hangs", "named, with its phase",
         f"{PEERS}::test_a_loader_that_is_stuck_is_named", f"{PEERS}::test_a_held_interpreter_is_seen_from_outside"),
    _row(10, "a slow rank", "a warning with rank and phase", f"{PEERS}::test_a_straggler_is_named_with_its_phase"),
    _row(11, "SIGTERM", "step, save, 75", f"{FILES}::test_the_first_signal_lets_the_step_finish_and_saves",
         f"{TORCHRUN}::test_twenty_seconds_from_sigterm_to_the_end"),
    _row(12, "SIGUSR1", "the same", f"{FILES}::test_the_first_signal_lets_the_step_finish_and_saves",
         f"{TORCHRUN}::test_sigusr1_through_torchrun",
        "train/test_processes.py::test_a_signal_to_one_rank_stops_all_after_the_step_and_saves"),
    _row(13, "a second signal in the save", "ends at once, spoils nothing",
         f"{FILES}::test_a_second_signal_in_the_last_save_ends_at_once_and_spoils_nothing"),
    _row(14, "a grace shorter than a save", "the checkpoint before is whole; a warning ahead",
         f"{FILES}::test_killed_when_the_grace_is_over",
        f"{FILES}::test_a_save_that_is_longer_than_the_grace_is_warned_of"),
    _row(15, "too little room", "73 at the start; later the save fails and training goes on",
         f"{FILES}::test_checkpoints_that_have_no_room_are_refused_at_the_start",
         f"{STORE}::test_too_little_space_is_seen_before_writing",
         "checkpoint/test_checkpoint_saver.py::test_a_failure_is_told_at_the_next_step_and_training_goes_on"),
    _row(16, "the disk fills up in a save", "the save fails, nothing is left of it, training goes on",
         f"{FILES}::test_a_disk_that_is_full_for_a_while", f"{STORE}::test_a_full_disk"),
    _row(17, "a file system with trouble", "tried again; where it lasts and the run has to end for it, 74",
        "checkpoint/test_checkpoint_saver.py::test_trouble_that_passes"),
    _row(18, "a folder that cannot be written", "73 at the start on all ranks",
         f"{FILES}::test_a_folder_that_cannot_be_written_is_refused_at_the_start",
        f"{BAD}::test_a_file_where_the_run_folder_should_be"),
    _row(19, "the folder holds another run", "refused", f"{BAD}::test_checkpoint_of_another_model",
         f"{BAD}::test_a_fresh_start_does_not_mix_with_what_is_there"),
    _row(20, "two jobs in one folder", "73 for the second", f"{FILES}::test_a_second_job_in_the_folder"),
    _row(21, "a truncated shard", "named; an older one resumes", f"{DAMAGE}::test_the_run_falls_back_and_says_so"),
    _row(22, "a flipped bit in a shard", "none goes unnoticed", f"{DAMAGE}::test_every_flipped_bit_is_noticed",
         f"{BAD}::test_a_damaged_newest_checkpoint_gives_way_to_the_one_before"),
    _row(23, "missing, extra, foreign shards", "refused", f"{DAMAGE}::test_the_run_falls_back_and_says_so"),
    _row(24, "a manifest of any bytes", "65", f"{DAMAGE}::test_any_bytes_are_no_manifest",
        f"{DAMAGE}::test_hostile_manifests",
         f"{DAMAGE}::test_a_huge_manifest_is_not_read"),
    _row(25, "a stale, empty or dangling `latest`", "it decides nothing",
        f"{FILES}::test_a_file_named_latest_decides_nothing"),
    _row(26, "the newest checkpoint is damaged", "the older one, loudly; by name an error",
         f"{DAMAGE}::test_the_run_falls_back_and_says_so",
        f"{BAD}::test_a_damaged_newest_checkpoint_gives_way_to_the_one_before"),
    _row(27, "a checkpoint that is not there", "66; never silently from the beginning",
         f"{BAD}::test_checkpoint_that_is_not_there",
        f"{DAMAGE}::test_when_all_are_bad_it_is_an_error_that_names_them"),
    _row(28, "another layout on resume", "weights and optimizer state are equal, the order of samples too",
         "parity/test_resharding.py::test_every_pair_of_layouts", "parity/test_resume.py::test_another_layout",
         "parity/test_resume.py::test_another_global_batch_keeps_the_order_of_samples"),
    _row(29, "a layout that does not divide", "64, with what would do", f"{CHECK}::test_what_spans_fields",
        f"{BAD}::test_layout"),
    _row(30, "a world that the layout does not divide", "64",
        "topology/test_grid.py::test_impossible_layouts_are_told_with_a_remedy"),
    _row(31, "ranks of different configurations or versions", "64, naming the rank",
         f"{PEERS}::test_ranks_that_were_started_differently", f"{START}::test_each_fact_names_the_odd_rank"),
    _row(32, "a format of the future", "refused", f"{DAMAGE}::test_hostile_manifests"),
    _row(33, "a collective that others do not join", "all end; who waits where is told",
        f"{PEERS}::test_a_mismatched_collective_ends_all"),
    _row(34, "missing corpus files", "66, naming them", f"{BAD}::test_missing_file",
        f"{INDEXED}::test_missing_files_are_named"),
    _row(35, "index and data disagree", "refused when opened", f"{INDEXED}::test_opening_refuses",
        "data/test_fuzz.py::test_damaged_files"),
    _row(36, "hostile numbers in an index", "65, no allocation", f"{INDEXED}::test_no_damage_to_an_index_crashes",
         "data/test_fuzz.py::test_damaged_arrays"),
    _row(37, "a flipped bit in a corpus", "found by verify; an impossible id in training: 65",
         "data_prep/test_inspect_verify_merge.py::test_verify_finds_any_flipped_bit",
        f"{BAD}::test_an_id_outside_the_vocabulary_is_found_in_training"),
    _row(38, "a corpus that shrinks while in use", "an error, no crash",
         "data/test_dataset.py::test_refuses_a_file_that_shrinks_while_in_use",
         "data/test_fuzz.py::test_a_file_cut_short_while_it_is_read_is_an_error_not_a_signal"),
    _row(39, "ids of another vocabulary", "refused", "data/test_dataset.py::test_refuses_a_vocabulary_too_small",
         f"{BAD}::test_vocabulary_larger_than_the_models"),
    _row(40, "another tokenizer", "refused", "data/test_dataset.py::test_refuses_an_unknown_or_other_tokenizer"),
    _row(41, "empty documents", "counted", f"{TEXT}::test_empty_documents_are_counted_and_may_be_refused"),
    _row(42, "text that is none", "by policy, with the first places", f"{TEXT}::test_each_kind_of_bad_line",
         "data_prep/test_preprocess.py::test_policies_count_and_go_on"),
    _row(43, "huge documents", "bounded memory", "data_prep/test_preprocess.py::test_a_long_line_takes_little_memory",
         "data_prep/test_records.py::test_a_record_that_is_too_long_is_never_in_memory"),
    _row(44, "truncated packed files and bombs", "an error, a little at a time",
        "data_prep/test_inputs.py::test_truncated_and_damaged_files",
         "data_prep/test_inputs.py::test_a_bomb_is_unpacked_a_little_at_a_time"),
    _row(45, "preparation is killed", "it goes on",
        "data_prep/test_preprocess.py::test_killed_at_any_moment_it_goes_on",
         "data_prep/test_preprocess.py::test_a_worker_that_dies_is_told"),
    _row(46, "too little data, impossible blends", "64 or 65", f"{BAD}::test_empty_corpus",
         "data/test_mixture.py::test_bad_corpora_are_refused_by_the_key",
        "data/test_dataset.py::test_refuses_nothing_to_read"),
    _row(47, "numbers that are not finite on one rank",
        "skipped by all; 78 with a dump in the end; a second attempt tells why",
         f"{STEPS}::test_a_nan_of_one_rank_is_skipped_by_all_and_a_resumed_run_knows",
         f"{STEPS}::test_a_passing_fault_is_told_from_a_lasting_one_by_a_second_attempt",
         f"{STEPS}::test_nan_in_one_expert_ends_the_run_with_a_dump"),
    _row(48, "a spike of the loss", "back to the newest checkpoint, past the batches",
         f"{STEPS}::test_a_spike_is_gone_back_from_and_its_batches_are_left_out", f"{STEPS}::test_what_is_a_spike"),
    _row(49, "a router that collapses", "a warning; nothing hangs, nothing is NaN",
         f"{STEPS}::test_a_run_whose_tokens_all_want_one_expert_goes_on",
        f"{STEPS}::test_a_collapsed_router_is_told_once",
         f"{LAYER}::test_extremes"),
    _row(50, "ties and overflow in a router", "float32, deterministic",
        "golden/test_router.py::test_selective_precision",
         f"{LAYER}::test_extremes"),
    _row(51, "weights of one replica change by themselves", "named",
        f"{STEPS}::test_a_flipped_bit_in_one_replica_is_named",
         f"{STEPS}::test_replicas_that_are_alike_pass"),
    _row(52, "clocks that jump", "nothing goes by them", f"{START}::test_nothing_is_decided_by_the_clock_on_the_wall"),
    _row(53, "loggers that are down", "training goes on", f"{FILES}::test_loggers_that_are_down_end_no_run"),
    _row(54, "a port in use, an address that is wrong", "76 with host and port",
        f"{START}::test_who_cannot_be_met_is_told_with_the_address"),
    _row(55, "too many open files", "named; training goes on", f"{FILES}::test_too_many_open_files_end_no_run"),
    _row(56, "files that would run code", "none does", f"{FILES}::test_nothing_is_unpickled_and_no_secret_is_written",
         "checkpoint/test_hugging_face_import.py::test_pickles_are_refused_with_the_remedy"),
    _row(57, "paths that lead elsewhere", "refused", f"{DAMAGE}::test_hostile_manifests",
         "checkpoint/test_checkpoint_places.py::test_what_is_no_regular_file_is_never_opened"),
    _row(58, "hostile sizes", "no allocation", "checkpoint/test_checkpoint_fuzz.py::test_a_few_thousand"),
    _row(59, "secrets in what is written", "none", f"{FILES}::test_nothing_is_unpickled_and_no_secret_is_written"),
    _row(60, "sockets that strangers reach", "loopback on one machine; said in SECURITY.md",
        f"{START}::test_what_listens_is_told"),
)


def table() -> str:
    """The rows as README.md has them."""
    lines = ["| | fault | expected | shown by |", "|---|---|---|---|"]
    for row in ROWS:
        tests = ", ".join(f"`{test}`" for test in row.tests)
        lines.append(f"| {row.number} | {row.fault} | {row.expected} | {tests} |")
    return "\n".join(lines)
