"""The Celery task that purges expired records (contract P3).

Other task queues import each app's ``tasks`` as well, so without Celery the module is
there, and only the task is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

try:
    import celery  # noqa: F401  # asks whether it is there, and no more
except ImportError:
    pass
else:
    from idempotency.tasks.purge import purge_expired_records

__all__ = ["purge_expired_records"]

if not TYPE_CHECKING:  # or type checkers would take any name for one of the module's

    def __getattr__(name: str) -> NoReturn:
        """Say what the task needs, where it is not there."""
        if name == "purge_expired_records":
            raise ImportError(
                "The task needs Celery: pip install 'django-idempotency[celery]'. "
                "Without it, let cron run manage.py purge_idempotency_records."
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
