import gc

import pytest

from tasks.startup import garbage_left_alone


def test_garbage_is_collected_again_after_imports_even_when_one_fails() -> None:
    with pytest.raises(ImportError), garbage_left_alone():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_who_collects_no_garbage_goes_on_without() -> None:
    gc.disable()
    try:
        with garbage_left_alone():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
