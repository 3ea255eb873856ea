"""The tests of django-idempotency."""
