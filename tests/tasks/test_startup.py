"""Garbage collection around imports."""

import gc

import pytest

from tasks.startup import paused_garbage_collection


def test_garbage_collection_resumes_after_a_failed_import() -> None:
    with pytest.raises(ImportError), paused_garbage_collection():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_garbage_collection_stays_off_when_it_was_off() -> None:
    gc.disable()
    try:
        with paused_garbage_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
