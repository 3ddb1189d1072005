"""The settings: each is `ACME_<NAME>` in the environment; a secret one may also come from a file, `ACME_<NAME>_FILE`.

They are read and checked before the adapter is made. What a kind cannot say, check here, and raise `Misconfigured` with
all faults at once.
"""

from collections.abc import Mapping

from mapper.adapter import Account, Option

OPTIONS = (
    Option("BASE_URL", "where Acme answers", None, kind="url"),
    Option("API_KEY", "the key of your shop at Acme", None, secret=True, kind="secret"),
)


def accounts(options: Mapping[str, str]) -> Mapping[str, Account]:
    """Where requests go, and what proves that they may. A request carries no secret: it names its account."""
    return {"": Account(options["BASE_URL"], (("Authorization", f"Bearer {options['API_KEY']}"),))}
