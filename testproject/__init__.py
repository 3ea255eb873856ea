"""A school API in the style of Edlink: demo, example and test settings in one."""

from testproject.celery import app as celery_app

__all__ = ["celery_app"]
