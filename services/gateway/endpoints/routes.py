"""The list of all endpoints: what is served, and what the OpenAPI document describes."""

from __future__ import annotations

from types import NoneType
from typing import NamedTuple, get_args, get_type_hints

from services.gateway.endpoints.admin.dead_letters import AdminDeadLetterRoutes
from services.gateway.endpoints.admin.disk import AdminDiskRoutes
from services.gateway.endpoints.admin.webhooks import AdminWebhookRoutes
from services.gateway.endpoints.admin.work import AdminWorkRoutes
from services.gateway.endpoints.all_events import AllEventRoutes
from services.gateway.endpoints.browser.console import ConsoleRoutes
from services.gateway.endpoints.browser.docs import DocsRoutes
from services.gateway.endpoints.browser.session import SessionRoutes
from services.gateway.endpoints.budgets import BudgetRoutes
from services.gateway.endpoints.datasets import DatasetRoutes
from services.gateway.endpoints.files import FileRoutes
from services.gateway.endpoints.health import HealthRoutes
from services.gateway.endpoints.job_list import JobListRoutes
from services.gateway.endpoints.job_removal import JobRemovalRoutes
from services.gateway.endpoints.jobs import JobRoutes
from services.gateway.endpoints.metrics import MetricsRoutes
from services.gateway.endpoints.server_sent_events import EventRoutes
from services.gateway.endpoints.uploads import UploadRoutes
from services.gateway.endpoints.webhooks import WebhookRoutes


class Endpoints(NamedTuple):
    """Every object whose methods answer over HTTP."""

    jobs: JobRoutes
    events: EventRoutes
    all_events: AllEventRoutes
    job_list: JobListRoutes
    metrics: MetricsRoutes
    datasets: DatasetRoutes
    webhooks: WebhookRoutes
    job_removal: JobRemovalRoutes
    uploads: UploadRoutes
    budgets: BudgetRoutes
    files: FileRoutes | None
    """None: the store's links lead elsewhere."""
    admin_work: AdminWorkRoutes
    admin_dead_letters: AdminDeadLetterRoutes
    admin_webhooks: AdminWebhookRoutes
    admin_disk: AdminDiskRoutes
    health: HealthRoutes
    console: ConsoleRoutes
    session: SessionRoutes
    docs: DocsRoutes


ROUTE_CLASSES: tuple[type, ...] = tuple(
    kind
    for hint in get_type_hints(Endpoints).values()
    for kind in get_args(hint) or (hint,)
    if kind is not NoneType
)
"""The classes of :class:`Endpoints`, in its order."""
