"""Idempotency keys for Django REST framework: a retried request acts once."""

__version__ = "0.1.0"
