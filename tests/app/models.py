"""What handlers of the tests do: rows that can be counted."""

from __future__ import annotations

from uuid import uuid4

from django.db import models


class Effect(models.Model):
    """One effect of one handler; names are unique where a test wants a collision."""

    name = models.CharField(max_length=200, unique=True, null=True)
    note = models.CharField(max_length=200, default="")


class Device(models.Model):
    """A caller that makes its primary key up."""

    id = models.UUIDField(primary_key=True, default=uuid4)
    is_authenticated = True


class Tablet(Device):
    """Some of the devices."""

    class Meta:
        proxy = True
