"""What ``make demo`` serves: the demo project, with places to stop in mid-request.

A request that saves an assignment can be stopped between its INSERT and its COMMIT,
and a payment as ``testproject.demo_urls`` says.
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
    """Stop if the demo wants it."""
    pause(settings.VAR_DIR)
