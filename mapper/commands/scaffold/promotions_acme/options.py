"""The settings: each is `ACME_<NAME>` in the environment; a secret one may also come from a file, `ACME_<NAME>_FILE`.

They are checked against their kinds before the adapter is created. Check here what a kind cannot express, and raise
`Misconfigured` with all faults at once.
"""

from collections.abc import Mapping

from mapper.adapter import Account, Option

OPTIONS = (
    Option("BASE_URL", "the address of Acme's API", None, kind="url"),
    Option("API_KEY", "the key of your shop at Acme", None, secret=True, kind="secret"),
)


def accounts(options: Mapping[str, str]) -> Mapping[str, Account]:
    """Returns the addresses and credentials. A request has no secret: it names its account."""
    return {"": Account(options["BASE_URL"], (("Authorization", f"Bearer {options['API_KEY']}"),))}
