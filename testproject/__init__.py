"""A school API in the style of Edlink: the demo, an example and the tests' settings."""

from testproject.celery import app as celery_app

__all__ = ["celery_app"]
