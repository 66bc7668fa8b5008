"""What a user sees in the browser: the form, a running training, the report. On the whole team set-up.

``SFT_FLOW_PICTURES=docs pytest tests/deployments/test_form.py`` runs the whole demo instead of a tiny run, and writes
the README's pictures.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.objects import Artifact, FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.up import Servers
from training_core.config import settings_info

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PICTURES = os.environ.get("SFT_FLOW_PICTURES")
TINY = {"max_steps": 8, "gradient_accumulation_steps": 2, "max_eval_rows": 6, "eval_max_new_tokens": 12}
SECONDS_TO_WAIT = 1200

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
    pytest.mark.timeout(2 * SECONDS_TO_WAIT),
]

Found = TypeVar("Found")


@pytest.fixture(scope="module")
def client(servers: Servers) -> Iterator[SyncPrefectClient]:
    with (
        temporary_settings({PREFECT_API_URL: f"{servers.prefect.address}/api"}),
        get_client(sync_client=True) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def demo(client: SyncPrefectClient) -> DeploymentResponse:
    demo = client.read_deployment_by_name("sft-flow/demo")
    if not PICTURES:
        client.update_deployment(demo.id, DeploymentUpdate(parameters=demo.parameters | TINY))
    return demo


@pytest.fixture(scope="module")
def browser(servers: Servers) -> Iterator[Browser]:
    """Started after the team: playwright leaves an event loop running, and Prefect's client then deploys nothing."""
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])


@pytest.fixture
def page(browser: Browser, servers: Servers) -> Iterator[Page]:
    page = browser.new_page(base_url=f"{servers.prefect.address}/v2/", viewport={"width": 1200, "height": 800})
    page.set_default_timeout(60_000)
    yield page
    page.close()


def picture(page: Page, name: str) -> None:
    """Save a screenshot when pictures are requested."""
    if PICTURES:
        page.wait_for_timeout(2000)  # for animations to end
        page.screenshot(path=Path(PICTURES) / f"{name}.png")


def submit(page: Page) -> UUID:
    """Press Submit, and again when the server answers 503 because SQLite was locked."""
    for _ in range(5):
        with page.expect_response(lambda response: "create_flow_run" in response.url, timeout=120_000) as answer:
            page.get_by_role("button", name="Submit").click()
        if answer.value.status != 503:
            break
    assert answer.value.ok, answer.value.text()
    return UUID(answer.value.json()["id"])


def wait_for(find: Callable[[], Found | None], what: str) -> Found:
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while (found := find()) is None:
        assert time.monotonic() < deadline, f"waited {SECONDS_TO_WAIT} s for {what}"
        time.sleep(1)
    return found


def artifact(client: SyncPrefectClient, run_id: UUID, key: str) -> Artifact | None:
    of_run = ArtifactFilterFlowRunId(any_=[run_id])
    found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=of_run, key=ArtifactFilterKey(any_=[key])))
    return found[0] if found else None


def training_of(client: SyncPrefectClient, run_id: UUID) -> FlowRun | None:
    children = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run_id]))
    found = client.read_flow_runs(flow_run_filter=children)
    return found[0] if found else None


def half_way(client: SyncPrefectClient, run_id: UUID) -> Artifact | None:
    found = artifact(client, run_id, "training-progress")
    return found if found and float(str(found.data)) >= 50 else None


def finished(client: SyncPrefectClient, run_id: UUID) -> FlowRun | None:
    run = client.read_flow_run(run_id)
    return run if run.state and run.state.is_final() else None


def test_form_in_the_browser_shows_every_setting(page: Page, demo: DeploymentResponse) -> None:
    page.goto(f"deployments/deployment/{demo.id}/run")
    expect(page.get_by_label("lora_r (Optional)")).to_have_value("16")
    labels = [text.removesuffix(" (Optional)") for text in page.locator("label").all_inner_texts()]
    assert [label for label in labels if label in settings_info()] == list(settings_info())
    for info in settings_info().values():
        expect(page.get_by_text(str(info.description), exact=True)).to_have_count(1)
    optional = [info for info in settings_info().values() if info.annotation == str | None]
    expect(page.get_by_role("tab", name="empty")).to_have_count(len(optional))
    page.get_by_label("lora_r (Optional)").evaluate("field => field.scrollIntoView({block: 'center'})")
    picture(page, "form")


def test_run_from_the_form_shows_progress_and_report(
    page: Page, demo: DeploymentResponse, client: SyncPrefectClient, servers: Servers
) -> None:
    page.goto(f"deployments/deployment/{demo.id}/run")
    page.get_by_label("lora_r (Optional)").fill("8")
    run = client.read_flow_run(submit(page))
    assert run.parameters["lora_r"] == 8
    assert {
        name: run.parameters[name] for name in demo.parameters if name not in TINY
    }.items() <= demo.parameters.items()

    training = wait_for(lambda: training_of(client, run.id), "a training on the other pool")
    progress = wait_for(lambda: half_way(client, training.id), "half of the training")
    page.goto(f"runs/flow-run/{training.id}?tab=Artifacts")
    expect(page.get_by_text("training-progress").first).to_be_visible()
    expect(page.get_by_text(str(progress.id)).or_(page.get_by_text("tokens before sharing/s")).first).to_be_visible()
    picture(page, "run")
    page.goto(f"runs/flow-run/{training.id}?tab=Logs")
    expect(page.get_by_text("Training starts from the beginning")).to_be_visible()

    run = wait_for(lambda: finished(client, run.id), "the end of the run")
    assert run.state and run.state.is_completed(), run.state
    report = artifact(client, run.id, "sft-flow-report")
    assert report
    page.goto(f"artifacts/artifact/{report.id}")
    for title in ("Decisions on held-out rows", "Every line accounted for", "Training"):
        expect(page.get_by_text(title, exact=True).first).to_be_visible()
    expect(page.get_by_role("table")).to_have_count(4)
    expect(page.get_by_role("cell", name="candidate", exact=True).first).to_be_visible()
    pictures = page.get_by_role("img", name=re.compile("^(loss_curve|confusion)$"))
    expect(pictures).to_have_count(2)
    assert all(image.evaluate("image => image.naturalWidth") > 100 for image in pictures.all())
    link = page.get_by_role("link", name="Curve, predictions and model in MLflow")
    picture(page, "run_report")
    page.goto(str(link.get_attribute("href")))
    back = page.get_by_role("link", name=f"Prefect flow run {run.id}")
    expect(back).to_have_attribute("href", f"{servers.prefect.address}/runs/flow-run/{run.id}")
