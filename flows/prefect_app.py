"""The Prefect server's application; servers that start at once in one home prepare its database one after the other."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from filelock import AsyncFileLock
from prefect.server.api import server

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]


def create_app() -> Any:
    """Prefect's application for uvicorn; its start waits for that of another server in the same ``PREFECT_HOME``.

    A server's first start creates tables and block types: two that do so at once fail on each other's.
    """
    app = server.create_app()
    app.router.lifespan_context = starting_alone(app.router.lifespan_context)
    return app


def starting_alone(lifespan: Lifespan) -> Lifespan:
    @asynccontextmanager
    async def alone(app: Any) -> AsyncIterator[None]:
        async with AsyncExitStack() as running:
            async with AsyncFileLock(Path(os.environ["PREFECT_HOME"]) / "start.lock"):
                await running.enter_async_context(lifespan(app))
            yield

    return alone
