"""A replay's explanation becomes a sentence that is true of it."""

from training_core.export.replay import Explanation
from training_core.export.replay_defects import explained_finding


def test_coarse_quantisation_is_never_called_another_base() -> None:
    explanation = Explanation("quantised", "97% of the tokens are the likeliest")
    assert explained_finding(explanation, agreed=True) is None
    found = explained_finding(explanation, agreed=False)
    assert found and found.defect == "coarse quantisation" and "another" not in found.sentence
    assert "--weights nf4" in found.fix
