"""Sets of rows as short texts that tell how much two sets have in common, long after the rows themselves are gone."""

import base64
from collections.abc import Iterable

import numpy as np

MOST_KEYS = 256
_LARGEST = np.iinfo(np.uint32).max


# A bottom-k sketch: Cohen and Kaplan (2007), "Summarizing data using bottom-k sketches", PODC. Digests are random
# numbers, so the smallest of a set are a random sample of it. Two sets that share a row both draw it, or neither does,
# up to the lower of the two samples' largest digests.
def sample_rows(keys: Iterable[int]) -> str:
    """The 256 smallest of the rows' 64-bit digests, the upper half of each, in base64: 1,368 characters at most."""
    upper = np.array(list(keys), np.uint64) >> np.uint64(32)
    return base64.b64encode(np.unique(upper)[:MOST_KEYS].astype("<u4").tobytes()).decode()


def share_seen(sample: str, earlier: str) -> float:
    """About which share of a set's rows is in an earlier set; exact where neither has more than 255 rows."""
    own, other = (np.frombuffer(base64.b64decode(text), "<u4") for text in (sample, earlier))
    drawn = own[own <= min(_last_drawn(own), _last_drawn(other))]
    return float(np.isin(drawn, other).mean()) if len(drawn) else 0.0


def _last_drawn(sample: np.ndarray) -> int:
    """Up to here the sample has every digest of its set."""
    return int(sample[-1]) if len(sample) == MOST_KEYS else int(_LARGEST)
