"""A PostgreSQL for the servers of one machine: it runs as long as the command that starts it, and keeps its data.

With SQLite and two workers the database is sometimes locked, and events are lost.
"""

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.local_servers import free_port
from training_core.child_processes import child_process

_DEBIAN = Path("/usr/lib/postgresql")
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "log_min_messages": "panic",
}
_SERVER_USER = "postgres"  # PostgreSQL does not run as root


@dataclass(frozen=True)
class Postgres:
    """A running PostgreSQL that accepts all connections from this machine without a password."""

    port: int

    def url(self, database: str, driver: str) -> str:
        """The SQLAlchemy URL of a database, such as ``postgresql+asyncpg://…`` for driver ``asyncpg``."""
        return f"postgresql+{driver}://{_SERVER_USER}@127.0.0.1:{self.port}/{database}"


def find_postgres() -> Path | None:
    """The folder of PostgreSQL's programs, or ``None`` when it is not installed."""
    on_path = shutil.which("initdb")
    newest_first = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: -int(path.parts[-3]))
    found = Path(on_path) if on_path else next(iter(newest_first), None)
    return found.resolve().parent if found else None


def is_accessible(folder: Path) -> bool:
    """Whether PostgreSQL can keep its data there. Started by root it runs as another user, who needs access to all
    parent folders."""
    existing = [parent for parent in (folder, *folder.parents) if parent.exists()]
    return os.getuid() != 0 or all(parent.stat().st_mode & stat.S_IXOTH for parent in existing)


@contextlib.contextmanager
def postgres(programs: Path, folder: Path, databases: tuple[str, ...]) -> Iterator[Postgres]:
    """Run PostgreSQL with these databases and its data in ``folder``; creates what is missing."""
    owner = _SERVER_USER if os.getuid() == 0 else None
    if not (folder / "PG_VERSION").exists():
        _create_cluster(programs, folder, owner)
    server = Postgres(free_port(5432))
    command = ["setpriv", "--reuid", owner, "--regid", owner, "--clear-groups"] if owner else []
    command += [str(programs / "postgres"), "-D", str(folder), "-p", str(server.port)]
    command += [f"--{name}={value}" for name, value in _SETTINGS.items()]
    with child_process(["deployments.postgres", *command], seconds_to_end=60) as process:
        _wait(programs, server.port, process)
        for database in databases:
            _create(programs, server.port, database)
        yield server


def main() -> None:
    """Run PostgreSQL, whose command line is the arguments, until SIGTERM or SIGINT; then shut it down fast."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit())
    process = subprocess.Popen(sys.argv[1:], cwd="/")
    try:
        sys.exit(process.wait())
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def _create_cluster(programs: Path, folder: Path, owner: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if owner:
        shutil.chown(folder, owner, owner)
    command = [str(programs / "initdb"), "--pgdata", str(folder), "--username", _SERVER_USER, "--auth", "trust"]
    subprocess.run([*command, "--no-sync"], user=owner, check=True, stdout=subprocess.DEVNULL, cwd="/")


def _wait(programs: Path, port: int, process: subprocess.Popen[bytes]) -> None:
    ready = [str(programs / "pg_isready"), "--host", "127.0.0.1", "--port", str(port), "--timeout", "1", "--quiet"]
    while subprocess.run(ready, check=False).returncode:  # it waits up to a second itself
        if process.poll() is not None:
            raise RuntimeError(f"PostgreSQL did not start; exit code {process.poll()}")


def _create(programs: Path, port: int, database: str) -> None:
    """Create the database, unless it exists, with the extension that Prefect's migrations need."""
    server = ["--host", "127.0.0.1", "--port", str(port), "--username", _SERVER_USER]
    psql = [str(programs / "psql"), *server, "--no-psqlrc", "--quiet", "--tuples-only", "--no-align"]
    known = subprocess.run(
        [*psql, "--command", "SELECT datname FROM pg_database"], check=True, capture_output=True, text=True
    )
    if database not in known.stdout.split():
        subprocess.run([str(programs / "createdb"), *server, database], check=True)
        extension = "CREATE EXTENSION IF NOT EXISTS pg_trgm"
        subprocess.run([*psql, "--dbname", database, "--command", extension], check=True)


if __name__ == "__main__":
    main()
