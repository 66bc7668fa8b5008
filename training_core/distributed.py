"""Training in processes of its own, one per device of the machine; all of them end with the calling process."""

import contextvars
import itertools
import json
import logging
import subprocess
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState
from torch.distributed.elastic.multiprocessing.errors import record
from transformers.utils.logging import disable_progress_bar

from training_core.child_processes import child_process
from training_core.config import RunConfig, SettingsError, read_settings
from training_core.dataset.checked_schema import answer_schema
from training_core.dataset.store import load_training_data
from training_core.folders import complete_file, seal_digest
from training_core.model_setup import free_models, load_model_and_tokenizer
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.trainer import TrainingSummary, load_summary, train_model
from training_core.training.adapter import write_adapter
from training_core.training.interruption import end_when_stuck
from training_core.training.out_of_memory import is_out_of_memory

logger = logging.getLogger(__name__)

ADAPTER_FOLDER = "adapter"

_PROBLEMS_FILE = "problems.json"  # why a process of the training ended, for the process that started it
_SECONDS_TO_END = 30  # for a step and its checkpoint
_LINES_KEPT = 100


def train_adapter(config: RunConfig, dataset: Path, run_dir: Path) -> TrainingSummary:
    """Train and write ``run_dir/adapter``: on GPUs in a process for each of them, on a CPU in this process.

    A training that failed on a GPU leaves nothing in its memory that way, so that it can be tried again. ``dataset`` is
    a folder of ``prepare_data``. With ``on_out_of_memory="halve"`` it goes on with half the tokens per batch where they
    do not fit. Raises what ``train_model`` and ``train_on_devices`` raise.
    """
    for halvings in itertools.count():
        try:
            _train(config, dataset, run_dir, halvings)
            break
        except SettingsError as error:
            if config.on_out_of_memory == "stop" or not is_out_of_memory(error):
                raise
            share = f"1/{2 ** (halvings + 1)}"
            logger.warning("%s\nThe training goes on with %s of the tokens per batch, same rows a step", error, share)
    return load_summary(run_dir)


def _train(config: RunConfig, dataset: Path, run_dir: Path, halvings: int) -> None:
    if torch.cuda.is_available():
        train_on_devices(config, dataset, run_dir, torch.cuda.device_count(), halvings)
        return
    with free_models():
        _train_here(config, dataset, run_dir, halvings)


def train_on_devices(config: RunConfig, dataset: Path, run_dir: Path, devices: int, halvings: int = 0) -> None:
    """Train on all devices, one process for each, and write ``run_dir/adapter``; ``halvings`` as in ``train_model``.

    The processes log to the log of this process, and end when it does. When this process is interrupted, they save a
    checkpoint first, and log that too. Raises ``SettingsError`` when that is what ended the training, and else
    ``RuntimeError`` with the last lines of the log.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    problems = run_dir / _PROBLEMS_FILE
    problems.unlink(missing_ok=True)
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={devices}", "-m"] if devices > 1 else []
    rank = ["training_core.child_processes"] * (devices > 1) + ["training_core.distributed"]
    command = [*launcher, *rank, json.dumps(asdict(config)), str(dataset), str(run_dir), str(halvings)]
    last_lines: deque[str] = deque(maxlen=_LINES_KEPT)
    with child_process(command, output=subprocess.PIPE) as process:
        reader = _log_lines(process.stdout or (), last_lines)
        try:
            process.wait()
        finally:
            process.terminate()
            reader.join(_SECONDS_TO_END)
    if process.returncode and problems.is_file():
        raise SettingsError(json.loads(problems.read_text(encoding="utf-8")))
    if process.returncode:
        log = "".join(last_lines)
        raise RuntimeError(f"training in {devices} processes failed with exit code {process.returncode}:\n{log}")


def _log_lines(output: Iterable[bytes], last_lines: deque[str]) -> threading.Thread:
    """Start to log what a training writes: in a thread, so that it goes on when this process is interrupted.

    A training whose lines nobody reads stops at a full pipe, before its checkpoint is saved.
    """

    def loop() -> None:
        for line in output:
            last_lines.append(line.decode(errors="replace"))
            logger.info("%s", last_lines[-1].rstrip())

    # Prefect's log finds the run in the context.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(loop,), daemon=True)
    thread.start()
    return thread


@record  # else the launcher cannot say what went wrong in the process that failed first
def main() -> None:
    """Run one of the processes of ``train_on_devices``; torch's launcher starts it."""
    settings, dataset, run_dir, halvings = sys.argv[1:]
    ranks = PartialState(cpu=not torch.cuda.is_available())
    if ranks.num_processes > 1:
        end_when_stuck()
    disable_progress_bar()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("training_core").setLevel(logging.INFO)
    if not ranks.is_main_process:  # the main process logs the same
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
    try:
        _train_here(read_settings(json.loads(settings)), Path(dataset), Path(run_dir), int(halvings))
    except SettingsError as error:
        with complete_file(Path(run_dir) / _PROBLEMS_FILE) as draft:
            draft.write_text(json.dumps(error.problems), encoding="utf-8")
        raise
    ranks.destroy_process_group()


def _train_here(config: RunConfig, dataset: Path, run_dir: Path, halvings: int) -> None:
    """Train in this process, and write the adapter when it is the main one.

    The form of the answers comes first, so that a problem with it is found before the training.
    """
    data, loaded = load_training_data(dataset), load_model_and_tokenizer(config)
    writes = PartialState().is_main_process and not seal_digest(run_dir / ADAPTER_FOLDER)
    schema = answer_schema(data.train, ChatEncoder.of(loaded.tokenizer)) if writes else None
    if writes and schema is None and config.constrain == "schema":
        raise SettingsError(
            ["constrain: answers cannot be held to a form that every row allows; give --constrain none"]
        )
    train_model(loaded, data, config, run_dir, halvings)
    if writes:
        write_adapter(loaded.model, loaded.tokenizer, config, data.leakage_keys, run_dir / ADAPTER_FOLDER, schema)


if __name__ == "__main__":
    main()
