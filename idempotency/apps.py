"""The app's configuration."""

from __future__ import annotations

from django.apps import AppConfig, apps
from django.utils.translation import gettext_lazy as _


class IdempotencyConfig(AppConfig):
    """Registers the system checks, and the extension of drf-spectacular."""

    name = "idempotency"
    label = "idempotency"
    verbose_name = _("Idempotency")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register checks and schema extension without a query."""
        from idempotency import checks  # noqa: F401, PLC0415  # registers itself

        if apps.is_installed("drf_spectacular"):
            from idempotency import schema  # noqa: PLC0415  # needs drf-spectacular

            schema.install()
