"""The app's configuration."""

from __future__ import annotations

from django.apps import AppConfig, apps
from django.utils.translation import gettext_lazy as _


class IdempotencyConfig(AppConfig):
    """Registers the system checks, and itself with drf-spectacular."""

    name = "idempotency"
    label = "idempotency"
    verbose_name = _("Idempotency")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register what others call; nothing here asks a database."""
        from idempotency import checks  # noqa: F401, PLC0415  # registers itself

        if apps.is_installed("drf_spectacular"):
            from idempotency import schema  # noqa: PLC0415  # imports the package

            schema.install()
