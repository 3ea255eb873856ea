from django.urls import include, path

from pages import views

urlpatterns = [
    path("", views.home, name="home"),
    path("checkout/", views.CheckoutView.as_view(), name="checkout"),
    path("subscribe/", views.subscribe, name="subscribe"),
    path("webhook/", views.webhook, name="webhook"),
    path("accounts/", include("django.contrib.auth.urls")),
]
