from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.response import Response
from rest_framework.viewsets import (
    GenericViewSet,
    ModelViewSet,
    ReadOnlyModelViewSet,
    ViewSet,
)
from rest_framework_extensions.mixins import NestedViewSetMixin

from api import serializers
from api.bases import EnvelopeMixin, OwnerMixin, happen
from api.models import Event, Item, Order, Product


class OrderViewSet(OwnerMixin, ModelViewSet):
    queryset = Order.objects.order_by("id")
    serializer_class = serializers.OrderSerializer

    @action(detail=True, methods=["post"])
    def cancel(self, request, pk):
        happen(f"cancelled {self.get_object().pk}")
        return Response({"state": "cancelled"})

    @action(detail=False, methods=["post"])
    def search(self, request):
        happen("searched for orders")
        found = self.get_queryset().filter(title__contains=request.data["text"])
        return Response(self.get_serializer(found, many=True).data)


class ItemViewSet(NestedViewSetMixin, ModelViewSet):
    queryset = Item.objects.order_by("id")
    serializer_class = serializers.ItemSerializer

    def perform_create(self, serializer):
        serializer.save(order_id=self.get_parents_query_dict()["order"])


class CustomerViewSet(EnvelopeMixin, mixins.CreateModelMixin, GenericViewSet):
    queryset = Event.objects.all()
    serializer_class = serializers.EventSerializer

    @action(detail=False, methods=["post"], url_path="merge")
    def merge_customers(self, request):
        happen("merged")
        return Response(status=status.HTTP_202_ACCEPTED, data={"merged": True})


class ReportViewSet(ReadOnlyModelViewSet):
    queryset = Product.objects.order_by("id")
    serializer_class = serializers.ProductSerializer


class TagViewSet(ViewSet):
    def list(self, request):
        return Response([])

    def create(self, request):
        return Response({"tag": happen("tagged").pk}, status.HTTP_201_CREATED)
