"""The Celery task that purges expired records (contract P3).

Without Celery the module has no task. It can still be imported, as some other task
queues do with the ``tasks`` of every app.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

try:
    import celery  # noqa: F401
except ImportError:
    pass
else:
    from idempotency.tasks.purge import purge_expired_records

__all__ = ["purge_expired_records"]

if not TYPE_CHECKING:  # or type checkers would accept any name

    def __getattr__(name: str) -> NoReturn:
        """Raise ImportError for the task if Celery is not installed."""
        if name == "purge_expired_records":
            raise ImportError(
                "The task needs Celery: pip install 'django-idempotency[celery]'. "
                "Without it, let cron run manage.py purge_idempotency_records."
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
