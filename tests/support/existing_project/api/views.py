from django.db import IntegrityError, transaction
from django.db.models import F
from django.http import StreamingHttpResponse
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from rest_framework import generics
from rest_framework.decorators import api_view, permission_classes, throttle_classes
from rest_framework.parsers import MultiPartParser
from rest_framework.permissions import AllowAny
from rest_framework.response import Response
from rest_framework.throttling import AnonRateThrottle, ScopedRateThrottle
from rest_framework.views import APIView

from api import provider
from api.bases import ShopView, TimedView, happen
from api.models import Event, Product
from api.serializers import (
    AttachmentSerializer,
    EventSerializer,
    ProductSerializer,
    SearchSerializer,
)


class ProductList(generics.ListCreateAPIView):
    queryset = Product.objects.order_by("id")
    serializer_class = ProductSerializer


class ProductDetail(generics.RetrieveUpdateDestroyAPIView):
    queryset = Product.objects.order_by("id")
    serializer_class = ProductSerializer


class ProductSearch(generics.GenericAPIView):
    queryset = Product.objects.order_by("id")
    serializer_class = SearchSerializer

    def post(self, request):
        happen("searched for products")
        found = self.get_queryset().filter(title__contains=request.data["text"])
        return Response([product.title for product in found])


class InvoiceCreate(generics.CreateAPIView):
    queryset = Event.objects.all()
    serializer_class = EventSerializer

    def perform_create(self, serializer):
        super().perform_create(serializer)
        happen("numbered")


class StockView(ShopView):
    def post(self, request, pk):
        Product.objects.filter(pk=pk).update(stock=F("stock") + 1)
        return Response({"view": self.name}, headers={"X-Stock": "changed"})


class ShipmentView(TimedView):
    def post(self, request):
        return Response({"shipment": happen("shipped").pk}, status=201)


class UploadView(APIView):
    parser_classes = [MultiPartParser]

    def post(self, request):
        serializer = AttachmentSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        serializer.save()
        return Response(serializer.data, status=201)


class QuoteView(APIView):
    throttle_classes = [ScopedRateThrottle]
    throttle_scope = "quotes"

    def post(self, request):
        return Response({"quote": happen("quoted").pk}, status=201)


@method_decorator(never_cache, name="dispatch")
class ReturnView(APIView):
    def get(self, request):
        return Response([])

    def post(self, request):
        return Response({"return": happen("returned").pk}, status=201)


@method_decorator(transaction.non_atomic_requests, name="dispatch")
class PaymentView(APIView):
    def post(self, request):
        charge = provider.charge(request.data["amount"])
        return Response({"charge": charge, "event": happen("paid").pk}, status=201)


@method_decorator(transaction.non_atomic_requests, name="dispatch")
class CloseDayView(APIView):
    def post(self, request):
        with transaction.atomic(durable=True):
            happen("closed")
        return Response(status=204)


@api_view(["POST"])
def refund(request):
    return Response({"refund": happen("refunded").pk}, status=201)


@api_view(["GET", "POST"])
@permission_classes([AllowAny])
@throttle_classes([AnonRateThrottle])
def feedback(request):
    if request.method == "POST":
        happen("said")
    return Response({"thanks": True})


@api_view(["POST"])
def register(request):
    try:
        Product.objects.create(title=request.data["title"])
    except IntegrityError:
        happen("registered again")
    return Response({"title": request.data["title"]})


@api_view(["POST"])
def export(request):
    happen("exported")
    rows = (f"{title}\n" for title in Product.objects.values_list("title", flat=True))
    return StreamingHttpResponse(rows, content_type="text/csv")
