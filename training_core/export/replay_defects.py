"""The defect that explains answers that differ although prompts and ends do not, from a replay of them."""

from dataclasses import replace

from training_core.export.findings import DECODING_FIX, Finding
from training_core.export.replay import Explanation

_AGAIN = "export the version again and serve that folder"

# What explains answers that differ: the defect, the sentence and the fix.
_EXPLAINED = {
    "base": (
        "adapter without effect",
        "The adapter has no effect: the answers are those of the base without it. Its B matrices are zero, or its "
        "keys have a prefix that the server does not know, or the base was asked under this name",
        f"{_AGAIN}; ask the adapter's name, not the base's (--model), and look for ignored keys in the server's log",
    ),
    "penalty": (
        "repetition penalty",
        "A penalty is on: a {detail} explains the answers; they were judged without",
        f"repetition_penalty 1, no presence or frequency penalty: {DECODING_FIX}",
    ),
    "prompt": (
        "swapped end of turn",
        "The end of turn is another one: prompts have as many tokens as ours, but {detail} explains the answers",
        "serve it with the export's tokenizer and chat template",
    ),
    "edited": (
        "adapter changed",
        "The adapter is not whole: {detail} explains the answers",
        f"{_AGAIN} (vLLM: --max-lora-rank of at least the adapter's rank, no layers left out)",
    ),
    "quantised": (
        "coarse quantisation",
        "Coarser weights answer, in four or eight bits, and decide otherwise ({detail}): near ties fall to the other "
        "side",
        "serve it in 16 bits; a version that was trained over four bits: export it merged with --weights nf4",
    ),
    "near": (
        "another revision of the base",
        "Other weights answer, close to the judged ones ({detail}): another revision of the base, another training of "
        "the adapter, or a coarse quantisation; sampling with a fixed seed would look alike",
        f"serve the base at the registered commit, and {_AGAIN}; for sampling, temperature 0: {DECODING_FIX}",
    ),
}
_UNEXPLAINED = (
    "another base",
    "Other weights answer ({detail}): another base, another adapter, or one revision of them far from the judged; "
    "nothing else that was tried explains the answers",
    f"serve the registered base and {_AGAIN}",
)


# What an answer outside the rows shows for certain: other weights may decide the rows alike and differ there.
_OUTSIDE = "shown by questions outside the rows, where the adapter is less certain"
_SHOWN_BY_PROBES = ("base", "penalty", "prompt", "edited")


def probe_finding(explanation: Explanation) -> Finding | None:
    """The finding on answers to questions that are no rows; ``None`` where they show no defect for certain."""
    found = explained_finding(explanation, agreed=True) if explanation.kind in _SHOWN_BY_PROBES else None
    return found and replace(found, sentence=f"{found.sentence} ({_OUTSIDE})")


def explained_finding(explanation: Explanation, agreed: bool) -> Finding | None:
    """The finding on answers that differ from the judged ones although prompts and ends do not; ``None``: rounding.

    ``agreed``: whether the decisions are those that were judged.
    """
    kind, detail = explanation.kind, explanation.detail
    if kind in ("judged", "unquantised") or (kind == "quantised" and agreed):
        return None
    defect, sentence, fix = _EXPLAINED.get(kind, _UNEXPLAINED)
    if kind == "edited" and "rank" in detail:
        defect = "rank cut"
    return Finding(defect, sentence.replace("{detail}", detail), fix)
