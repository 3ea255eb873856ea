"""The WSGI application of ``make demo``, with a place to stop in mid-request.

The demo can stop a request between the INSERT and the COMMIT of an assignment, and
between the charge and the COMMIT of a ride's receipt.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db.models.signals import post_save
from django.dispatch import receiver

from testproject.demo_pause import pause
from testproject.wsgi import application

__all__ = ["application"]


@receiver(post_save, sender="school.Assignment")
def pause_before_commit(**kwargs: Any) -> None:
    """Stop here if the demo wants it."""
    pause(settings.VAR_DIR)


@receiver(post_save, sender="school.Ride")
def pause_before_receipt(created: bool, **kwargs: Any) -> None:
    """Stop here if the demo wants it."""
    if not created:
        pause(settings.VAR_DIR)
