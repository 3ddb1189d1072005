"""Fills an empty shop: `python -m shop.stock`. Products, a promotion without a code, a voucher for each reason."""

import os
from datetime import timedelta
from decimal import Decimal

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
import django

django.setup()

from django.contrib.sites.models import Site
from django.core.management import call_command
from django.utils import timezone
from oscar.core.loading import get_model
from oscarapi.models import ApiKey

PRODUCTS = {"MUG": "12.50", "SHIRT": "20.00", "POSTER": "9.99", "PEN": "1.00"}

Product, ProductClass = get_model("catalogue", "Product"), get_model("catalogue", "ProductClass")
Partner, StockRecord = get_model("partner", "Partner"), get_model("partner", "StockRecord")
Range, Condition = get_model("offer", "Range"), get_model("offer", "Condition")
Benefit, ConditionalOffer = get_model("offer", "Benefit"), get_model("offer", "ConditionalOffer")
Voucher = get_model("voucher", "Voucher")


def product(upc, price, partner, kind):
    one = Product.objects.create(product_class=kind, title=upc.title(), upc=upc, slug=upc.lower())
    StockRecord.objects.create(
        product=one, partner=partner, partner_sku=upc, price=Decimal(price), price_currency="USD", num_in_stock=10**6
    )
    return one


def offer(name, benefit, value, whole, *, condition=("Count", "1"), **more):
    return ConditionalOffer.objects.create(
        name=name,
        condition=Condition.objects.create(range=whole, type=condition[0], value=Decimal(condition[1])),
        benefit=Benefit.objects.create(range=whole, type=benefit, value=Decimal(value) if value else None),
        exclusive=False,
        **more,
    )


def voucher(code, name, benefit, value, whole, *, usage="Multi-use", days=(-1, 300), **more):
    start, end = (timezone.now() + timedelta(day) for day in days)
    one = Voucher.objects.create(name=code, code=code, usage=usage, start_datetime=start, end_datetime=end)
    one.offers.add(offer(name, benefit, value, whole, offer_type=ConditionalOffer.VOUCHER, **more))


def fill(key):
    call_command("migrate", run_syncdb=True, verbosity=0)
    Site.objects.get_or_create(id=1, defaults={"domain": "127.0.0.1", "name": "shop"})
    ApiKey.objects.create(key=key)
    partner = Partner.objects.create(name="warehouse")
    kind = ProductClass.objects.create(name="things", requires_shipping=False, track_stock=False)
    products = {upc: product(upc, price, partner, kind) for upc, price in PRODUCTS.items()}
    whole = Range.objects.create(name="everything", includes_all_products=True)
    pens = Range.objects.create(name="pens")
    pens.add_product(products["PEN"])
    site = ConditionalOffer.SITE
    offer("3 pens for 2", "Multibuy", "", pens, condition=("Count", "3"), offer_type=site, max_basket_applications=1)
    voucher("TEN-PERCENT", "10 % off", "Percentage", "10", whole)
    voucher("SAVE-5", "5 off", "Absolute", "5", whole)
    voucher("ONCE-5", "5 off, once", "Absolute", "5", whole, usage="Single use")
    voucher("MIN-100", "10 off from 100", "Absolute", "10", whole, condition=("Value", "100"))
    voucher("OLD-5", "5 off, last year", "Absolute", "5", whole, days=(-300, -1))
    voucher("MEMBERS-5", "5 off, once for each customer", "Absolute", "5", whole, usage="Once per customer")


if __name__ == "__main__":
    fill(os.environ["SHOP_API_KEY"])
