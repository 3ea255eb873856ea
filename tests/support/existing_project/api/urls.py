from django.urls import include, path, re_path
from django.views.decorators.cache import never_cache
from rest_framework.authtoken.views import obtain_auth_token
from rest_framework_extensions.routers import ExtendedDefaultRouter
from rest_framework_simplejwt.views import TokenObtainPairView, token_refresh

from api import views, viewsets

router = ExtendedDefaultRouter()
router.register("customers", viewsets.CustomerViewSet, basename="customer")
router.register("reports", viewsets.ReportViewSet, basename="report")
router.register("orders", viewsets.OrderViewSet, basename="order").register(
    "items",
    viewsets.ItemViewSet,
    basename="order-item",
    parents_query_lookups=["order"],
)

tags = viewsets.TagViewSet.as_view({"get": "list", "post": "create"})
products = [
    path("", views.ProductList.as_view(), name="list"),
    path("<int:pk>/", views.ProductDetail.as_view(), name="detail"),
    path("<int:pk>/stock/", views.StockView.as_view(), name="stock"),
    path("search/", views.ProductSearch.as_view(), name="search"),
]

urlpatterns = [
    path("", include(router.urls)),
    path("v2/", include((router.urls, "v2"))),
    path("products/", include((products, "products"))),
    path("tags/", tags, name="tags"),
    path("invoices/", never_cache(views.InvoiceCreate.as_view()), name="invoices"),
    re_path(r"^shipments/$", views.ShipmentView.as_view(), name="shipments"),
    path("uploads/", views.UploadView.as_view(), name="uploads"),
    path("quotes/", views.QuoteView.as_view(), name="quotes"),
    path("returns/", views.ReturnView.as_view(), name="returns"),
    path("payments/", views.PaymentView.as_view(), name="payments"),
    path("close/", views.CloseDayView.as_view(), name="close"),
    path("refunds/", views.refund, name="refunds"),
    path("feedback/", views.feedback, name="feedback"),
    path("register/", views.register, name="register"),
    path("export/", views.export, name="export"),
    path("token/", TokenObtainPairView.as_view(), name="token"),
    path("token/refresh/", token_refresh, name="token-refresh"),
    path("key/", obtain_auth_token, name="key"),
]
