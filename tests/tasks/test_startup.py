import gc

import pytest

from tasks.startup import paused_garbage_collection


def test_garbage_is_collected_again_after_imports_even_when_one_fails() -> None:
    with pytest.raises(ImportError), paused_garbage_collection():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_who_collects_no_garbage_goes_on_without() -> None:
    gc.disable()
    try:
        with paused_garbage_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
