"""The Celery tasks: the purge (contract P3), and the completion of requests (E17).

Without Celery the module has no tasks. It can still be imported, as some other task
queues do with the ``tasks`` of every app.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

try:
    import celery  # noqa: F401
except ImportError:
    pass
else:
    from idempotency.tasks.completing import complete_abandoned_records
    from idempotency.tasks.purge import purge_expired_records

__all__ = ["complete_abandoned_records", "purge_expired_records"]
COMMANDS = {
    "complete_abandoned_records": "complete_idempotency_records",
    "purge_expired_records": "purge_idempotency_records",
}

if not TYPE_CHECKING:  # or type checkers would accept any name

    def __getattr__(name: str) -> NoReturn:
        """Raise ImportError for a task if Celery is not installed."""
        if name in COMMANDS:
            raise ImportError(
                "The task needs Celery: pip install 'django-idempotency[celery]'. "
                f"Without it, let cron run manage.py {COMMANDS[name]}."
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
