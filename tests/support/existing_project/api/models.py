from django.conf import settings
from django.db import models


class Order(models.Model):
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE)
    title = models.CharField(max_length=100)


class Item(models.Model):
    order = models.ForeignKey(Order, models.CASCADE)
    title = models.CharField(max_length=100)


class Product(models.Model):
    title = models.CharField(max_length=100, unique=True)
    stock = models.IntegerField(default=0)


class Attachment(models.Model):
    file = models.FileField(upload_to="attachments")


class Event(models.Model):
    """What happened, by the name of whatever did it."""

    name = models.CharField(max_length=100)
