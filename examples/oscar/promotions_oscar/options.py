"""The settings: each is `OSCAR_<NAME>` in the environment; a secret one may come from a file, `OSCAR_<NAME>_FILE`."""

from collections.abc import Mapping

from mapper.adapter import Account, Option

OPTIONS = (
    Option("BASE_URL", "where the API of the shop answers, such as https://shop.example/api", None, kind="url"),
    Option("API_KEY", "a key of the API's gateway (`oscarapi.models.ApiKey`)", None, secret=True, kind="secret"),
    Option(
        "ACCOUNTS_SECRET",
        "what the passwords of the orders' accounts are made from; never change it",
        None,
        secret=True,
        kind="secret",
    ),
)


def accounts(options: Mapping[str, str]) -> Mapping[str, Account]:
    """The gateway compares the whole header with its keys: no "Bearer" before it."""
    return {"": Account(options["BASE_URL"], (("Authorization", options["API_KEY"]),))}
