"""A small shop: django-oscar behind django-oscar-api, as both come, on SQLite. `SHOP_DATABASE` says where."""

import os

from oscar import INSTALLED_APPS as OSCAR_APPS
from oscar.defaults import *  # noqa: F403 - so Oscar wants it

SECRET_KEY = "not-secret-in-a-shop-for-tests"
ALLOWED_HOSTS = ["*"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("SHOP_DATABASE", "shop.db"),
        "OPTIONS": {"init_command": "PRAGMA synchronous=OFF"},  # a shop for tests need not outlive a power cut
    }
}
INSTALLED_APPS = [*OSCAR_APPS, "rest_framework", "oscarapi"]
MIDDLEWARE = [
    "oscarapi.middleware.ApiGatewayMiddleWare",  # nobody without a key
    "oscarapi.middleware.HeaderSessionMiddleware",  # sessions in a header: `Session-Id: SID:ANON:host:name`
    "django.middleware.common.CommonMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
ROOT_URLCONF = "shop.urls"
HAYSTACK_CONNECTIONS = {"default": {"ENGINE": "haystack.backends.simple_backend.SimpleEngine"}}
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
USE_TZ = True
SITE_ID = 1
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"

# What the adapter needs: an account of its own for each order, and products that can be found by their UPC.
OSCARAPI_ENABLE_REGISTRATION = True
OSCAR_SEND_REGISTRATION_EMAIL = False
OSCARAPI_OVERRIDE_MODULES = ["shop.api"]
OSCAR_DEFAULT_CURRENCY = "USD"

# Only so that the tests are quick: tables without the history of their migrations, and cheap hashes of passwords.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


class NoMigrations:
    def __contains__(self, app: str) -> bool:
        return True

    def __getitem__(self, app: str) -> None:
        return None


MIGRATION_MODULES = NoMigrations()
