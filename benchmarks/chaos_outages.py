"""Servers of a run that fail: single requests to Prefect's API, and both servers away for a minute."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

from benchmarks.chaos_jobs import LONGEST_SECONDS, Job, compare, timed, warm
from benchmarks.chaos_proxy import Choose, Fault, Proxy, never, proxy
from benchmarks.chaos_table import Trial
from flows.local_servers import mlflow_server, prefect_server

_SHARE_OF_FAULTS = 1 / 10
_FAULTS = [Fault.LOST, Fault.REFUSED, Fault.ERROR, Fault.SLOW, Fault.HUNG]
_OUTAGE_SECONDS = 60
_KINDS = [Fault.REFUSED, Fault.HUNG, Fault.ERROR]


def prefect_faults(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """Prefect's API loses answers, refuses, hangs, answers with a 500 or is late during `sft-flow run`."""
    with warm() as starter, prefect_server(home / "prefect", 0, log=home / "server.log") as server:
        server.wait()
        reference, _ = timed(Job(home / "reference", warm=starter, variables=_prefect(server.address)))
        for random in seeds:

            def choose(_method: str, _path: str, random: Random = random) -> Fault:
                return random.choice(_FAULTS) if random.random() < _SHARE_OF_FAULTS else Fault.NONE

            with proxy(server.address, choose) as faulty:
                job = replace(reference, folder=home / "disturbed", variables=_prefect(faulty.address))
                code = job.finish()
            yield compare(job, reference, sum(faulty.injected.values()), code)
            shutil.rmtree(job.folder, ignore_errors=True)


def outages(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """The servers of Prefect and MLflow refuse, hang or answer with a 500 for a minute, from a random moment on."""
    with warm() as starter, prefect_server(home / "prefect", 0, log=home / "server.log") as server:
        server.wait()
        reference, longest = timed(Job(home / "reference", warm=starter, variables=_prefect(server.address)))
        for random in seeds:
            job = replace(reference, folder=home / "disturbed")
            yield _away(job, reference, server.address, random.choice(_KINDS), random.uniform(0, longest))
            shutil.rmtree(job.folder, ignore_errors=True)


def _away(job: Job, reference: Job, prefect: str, kind: Fault, moment: float) -> Trial:
    """Run a job whose servers are away from this moment on."""
    job.output_dir.mkdir(parents=True)
    store = f"sqlite:///{job.output_dir}/mlflow.db"  # where the reference has its own
    with mlflow_server(store, job.folder / "artifacts", 0) as mlflow:
        mlflow.wait()
        with proxy(prefect, never) as one, proxy(mlflow.address, never) as other:
            variables = (*_prefect(one.address), ("MLFLOW_TRACKING_URI", other.address))
            job = replace(job, variables=variables)
            process = job.start()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moment)
            with _failing((one, other), kind), contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_OUTAGE_SECONDS)
            code = process.wait(LONGEST_SECONDS)
            met = one.injected[kind] + other.injected[kind]
        return compare(job, reference, int(met > 0), code, str(kind))


@contextlib.contextmanager
def _failing(proxies: tuple[Proxy, ...], kind: Fault) -> Iterator[None]:
    always: Choose = lambda _method, _path: kind  # noqa: E731
    for one in proxies:
        one.choose = always
    try:
        yield
    finally:
        for one in proxies:
            one.choose = never


def _prefect(address: str) -> tuple[tuple[str, str], ...]:
    return (("PREFECT_API_URL", f"{address}/api"),)
