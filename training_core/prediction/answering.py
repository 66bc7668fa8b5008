"""Answers cases in parts that depend on the cases alone, so it does not matter where a run was killed."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path

import numpy as np

from training_core.config import RunConfig
from training_core.evaluation.generation import complete
from training_core.evaluation.grammar import AnswerGrammar, load_grammar
from training_core.model_setup import LoadedModel, load_adapted_model
from training_core.prediction.cases import Case, Cases
from training_core.prediction.lines import judge, to_line
from training_core.prediction.parts import Parts
from training_core.prompts.chat_encoding import ChatEncoder, TokenIds
from training_core.prompts.messages import format_as_chat

# A part is what a kill costs: a few batches, so that one cache of a policy serves most of its cases in a window.
_BATCHES_PER_PART = 8

Encoded = tuple[Case, TokenIds]


@dataclass(frozen=True)
class Answerer:
    """An adapter on its base; both are loaded for the first case that is not answered yet.

    Of ``config`` count ``eval_max_new_tokens``, ``eval_batch_size``, ``constrain``, ``max_seq_length`` and
    ``allowed_decisions``. Above ``min_confidence`` a case is decided automatically; ``None``: every usable one is.
    """

    base: Path
    adapter: Path
    config: RunConfig
    min_confidence: float | None = None

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model and its tokenizer."""
        return load_adapted_model(self.base, self.adapter)

    @cached_property
    def encoder(self) -> ChatEncoder:
        """The encoder of that tokenizer."""
        return ChatEncoder.of(self.loaded.tokenizer)

    @cached_property
    def grammar(self) -> AnswerGrammar | None:
        """What the answers are held to."""
        return load_grammar(self.adapter, self.loaded.tokenizer, self.config.constrain)

    @property
    def part_size(self) -> int:
        """Cases that are answered, and kept, together."""
        return _BATCHES_PER_PART * self.config.eval_batch_size

    def encode(self, cases: Sequence[Case]) -> list[Encoded]:
        """Each case with its prompt, which is empty for one that cannot be asked."""
        askable = [format_as_chat(case.record) for case in cases if case.record is not None]
        prompts = iter(self.encoder.encode_prompts(askable) if askable else [])
        encoded = [(case, _NO_TOKENS if case.record is None else next(prompts)) for case in cases]
        return [self._unless_overlong(*asked) for asked in encoded]

    def answer(self, encoded: Sequence[Encoded]) -> list[bytes]:
        """The line of output of each case."""
        prompts = [prompt.tolist() for _, prompt in encoded if len(prompt)]
        completions = complete(self.loaded, prompts, self.config, self.grammar) if prompts else []
        answers = (judge(found, self.encoder, self.config, self.min_confidence) for found in completions)
        return [to_line(case, next(answers) if len(prompt) else None) for case, prompt in encoded]

    def _unless_overlong(self, case: Case, prompt: TokenIds) -> Encoded:
        most = self.config.max_seq_length - 1  # an answer has a token at least
        if len(prompt) <= most:
            return case, prompt
        what = f"expected a prompt of at most {most:,} tokens, as this version was trained on, got {len(prompt):,}"
        return case._replace(record=None, error=f"line: {what}; shorten the policy or the case"), _NO_TOKENS


_NO_TOKENS = np.empty(0, np.int32)


@dataclass
class Progress:
    """How many of all lines have an answer; ``computed`` counts those of this process, since ``started``."""

    lines: int
    done: int = 0
    computed: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, lines: int) -> None:
        """Count lines that this process has answered."""
        self.done += lines
        self.computed += lines

    def __str__(self) -> str:
        if not self.computed or self.done == self.lines:
            return f"{self.done:,} of {self.lines:,} lines"
        seconds = (time.monotonic() - self.started) / self.computed * (self.lines - self.done)
        return f"{self.done:,} of {self.lines:,} lines, about {timedelta(seconds=round(seconds))} left"


# Window 0, sorted by prompt     P·a P·b P·c … Q·a Q·b …     the cases of a policy are next to each other
#   → parts 000000-000, 000000-001, …: each answered at once, then kept: "place-in-the-window line-of-output"
#   → all parts of the window, sorted by place: its lines of output
def answer_cases(
    cases: Cases, answerer: Answerer, parts: Parts, report: Callable[[Progress], object]
) -> Iterator[list[bytes]]:
    """The lines of output of all cases in their order, window by window; answers that ``parts`` has are not computed.

    ``report`` is called after every part. Raises what ``Cases.windows`` and ``Parts`` raise.
    """
    found, progress, size = parts.names(), Progress(cases.lines), answerer.part_size
    for number, window in enumerate(cases.windows()):
        starts = {f"{number:06d}-{start // size:03d}": start for start in range(0, len(window), size)}
        missing = {name: start for name, start in starts.items() if name not in found}
        progress.done += len(window) - sum(len(window[start : start + size]) for start in missing.values())
        for name, lines in _answered(window, missing, answerer) if missing else ():
            parts.write(name, b"".join(lines))
            progress.add(len(lines))
            report(progress)
        numbered = [line.split(b" ", 1) for name in starts for line in parts.read(name).splitlines(keepends=True)]
        yield [line for _, line in sorted(numbered, key=lambda pair: int(pair[0]))]


def _answered(
    window: Sequence[Case], starts: Mapping[str, int], answerer: Answerer
) -> Iterator[tuple[str, list[bytes]]]:
    """The parts of a window that begin there, each with its name."""
    encoded = answerer.encode(window)
    # As big-endian bytes prompts sort as their token ids do.
    order = sorted(range(len(window)), key=lambda place: (encoded[place][1].astype(">i4").tobytes(), place))
    for name, start in starts.items():
        places = order[start : start + answerer.part_size]
        lines = answerer.answer([encoded[place] for place in places])
        yield name, [b"%d %s" % pair for pair in zip(places, lines, strict=True)]
