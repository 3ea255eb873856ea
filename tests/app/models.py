"""What handlers of the tests do: rows that can be counted."""

from __future__ import annotations

from django.db import models


class Effect(models.Model):
    """One effect of one handler; names are unique where a test wants a collision."""

    name = models.CharField(max_length=200, unique=True, null=True)
    note = models.CharField(max_length=200, default="")
