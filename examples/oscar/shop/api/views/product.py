"""The one thing that django-oscar-api has not: products by their UPC. `GET products/?upc=A&upc=B` lists these."""

from oscarapi.views.product import ProductList as OscarProductList


class ProductList(OscarProductList):
    def get_queryset(self):
        products = super().get_queryset()
        wanted = self.request.query_params.getlist("upc")
        return products.filter(upc__in=wanted) if wanted else products
