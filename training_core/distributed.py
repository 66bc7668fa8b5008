"""Training on several devices of a machine: one process per device; all of them end with the calling process."""

import json
import logging
import subprocess
import sys
import warnings
from collections import deque
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState
from transformers.utils.logging import disable_progress_bar

from training_core.child_processes import child_process
from training_core.config import RunConfig, read_settings
from training_core.dataset.store import load_training_data
from training_core.model_setup import load_model_and_tokenizer
from training_core.trainer import train_model

logger = logging.getLogger(__name__)

_SECONDS_TO_END = 30
_LINES_KEPT = 100


def train_on_devices(config: RunConfig, dataset: Path, run_dir: Path, devices: int) -> None:
    """Train in ``run_dir`` on all devices; ``train_model`` then loads the checkpoint of the last step from there.

    Does nothing for one device, on which ``train_model`` itself trains. ``dataset`` is a folder of ``prepare_data``.
    The processes log to the log of this process, and end when it does. Raises ``RuntimeError`` with the last lines of
    the log when the training fails.
    """
    if devices == 1:
        return
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    rank = ["training_core.child_processes", "training_core.distributed"]
    command = [*launcher, "-m", *rank, json.dumps(asdict(config)), str(dataset), str(run_dir)]
    last_lines: deque[str] = deque(maxlen=_LINES_KEPT)
    with child_process(command, output=subprocess.PIPE, seconds_to_end=_SECONDS_TO_END) as process:
        for line in process.stdout or ():
            last_lines.append(line.decode(errors="replace"))
            logger.info("%s", last_lines[-1].rstrip())
        process.wait()
    if process.returncode:
        log = "".join(last_lines)
        raise RuntimeError(f"training on {devices} devices failed with exit code {process.returncode}:\n{log}")


def main() -> None:
    """Run one of the processes of ``train_on_devices``; torch's launcher starts it."""
    settings, dataset, run_dir = sys.argv[1:]
    ranks = PartialState(cpu=not torch.cuda.is_available())
    disable_progress_bar()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("training_core").setLevel(logging.INFO)
    if not ranks.is_main_process:  # the main process logs the same
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
    config = read_settings(json.loads(settings))
    train_model(load_model_and_tokenizer(config), load_training_data(Path(dataset)), config, Path(run_dir))
    ranks.destroy_process_group()


if __name__ == "__main__":
    main()
