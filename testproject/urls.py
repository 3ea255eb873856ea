"""The demo project's addresses."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.staticfiles.urls import staticfiles_urlpatterns
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("api/v2/user/", include("testproject.school.urls")),
    # gunicorn serves no files by itself; without DEBUG this adds nothing.
    *staticfiles_urlpatterns(),
]
