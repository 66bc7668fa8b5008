import gc

import pytest

from training_core.startup import garbage_left_alone


def test_garbage_is_collected_again_after_imports_even_when_one_fails() -> None:
    with pytest.raises(ImportError), garbage_left_alone():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
