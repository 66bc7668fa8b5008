"""The log in the terminal: one line for each error, since the end of the command shows the traceback, once."""

import copy
import logging

from prefect.logging.configuration import setup_logging


class OneLine(logging.Formatter):
    """Formats as another formatter does, but without tracebacks; the log in the Prefect UI keeps them."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """The record's line; other handlers share the record, so it stays as it is."""
        own = copy.copy(record)
        own.exc_info = own.exc_text = own.stack_info = None
        if own.levelno >= logging.ERROR:
            own.msg, own.args = own.getMessage().partition("\n")[0], ()
        return self.inner.format(own)


def shorten_errors() -> None:
    """Show errors in the terminal as one line each."""
    setup_logging()  # as Prefect does before a process's first run; a second call keeps the handlers
    for logger in (logging.getLogger(), logging.getLogger("mlflow")):  # which has a handler of its own
        for handler in logger.handlers:
            if handler.formatter and not isinstance(handler.formatter, OneLine):
                handler.setFormatter(OneLine(handler.formatter))
