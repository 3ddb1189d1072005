"""The sentences for shoppers in other languages, and the hints for merchants, for each reason.

The language is the checkout's own (`locale`, or `language`), else that of the request's `accept-language`, else
English.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

from mapper.domain.reasons import Reason

Language = Literal["en", "de", "fr", "es"]
LANGUAGES: Final[tuple[Language, ...]] = ("en", "de", "fr", "es")
LOCALE_KEYS: Final = ("locale", "language")

# German, French, Spanish. `Reason.message` is English.
_TEXTS: Final[Mapping[Reason, tuple[str, str, str]]] = {
    Reason.NOT_FOUND: ("Diesen Code gibt es nicht.", "Ce code n'existe pas.", "Este código no existe."),
    Reason.MALFORMED: ("Das ist kein gültiger Code.", "Ce code n'est pas valide.", "Este código no es válido."),
    Reason.EXPIRED: ("Dieser Code ist abgelaufen.", "Ce code a expiré.", "Este código ha caducado."),
    Reason.NOT_STARTED: (
        "Dieser Code gilt noch nicht.",
        "Ce code n'est pas encore valable.",
        "Este código todavía no es válido.",
    ),
    Reason.NOT_ACTIVE: (
        "Die Aktion zu diesem Code läuft gerade nicht.",
        "L'offre liée à ce code n'est pas active en ce moment.",
        "La promoción de este código no está activa en este momento.",
    ),
    Reason.USED_UP: (
        "Dieser Code ist bereits aufgebraucht.",
        "Ce code a déjà été entièrement utilisé.",
        "Este código ya se ha agotado.",
    ),
    Reason.CUSTOMER_LIMIT_REACHED: (
        "Sie haben diesen Code schon so oft benutzt wie erlaubt.",
        "Vous avez déjà utilisé ce code autant de fois que possible.",
        "Ya ha usado este código tantas veces como está permitido.",
    ),
    Reason.BUDGET_USED_UP: (
        "Die Aktion zu diesem Code hat ihre Grenze erreicht.",
        "L'offre liée à ce code a atteint sa limite.",
        "La promoción de este código ha alcanzado su límite.",
    ),
    Reason.NOT_YOURS: (
        "Dieser Code gehört einem anderen Kunden.",
        "Ce code appartient à un autre client.",
        "Este código pertenece a otro cliente.",
    ),
    Reason.SIGN_IN_REQUIRED: (
        "Bitte melden Sie sich an, um diesen Code zu nutzen.",
        "Veuillez vous connecter pour utiliser ce code.",
        "Inicie sesión para usar este código.",
    ),
    Reason.MINIMUM_NOT_MET: (
        "Ihr Warenkorb erreicht den Mindestwert für diesen Code nicht.",
        "Votre panier n'atteint pas le minimum pour ce code.",
        "Su cesta no alcanza el mínimo para este código.",
    ),
    Reason.CONDITIONS_NOT_MET: (
        "Ihr Warenkorb erfüllt die Bedingungen dieses Codes nicht.",
        "Votre panier ne remplit pas les conditions de ce code.",
        "Su cesta no cumple las condiciones de este código.",
    ),
    Reason.CUSTOMER_NOT_ELIGIBLE: (
        "Dieser Code steht Ihnen nicht zur Verfügung.",
        "Ce code ne vous est pas accessible.",
        "Este código no está disponible para usted.",
    ),
    Reason.NOT_COMBINABLE: (
        "Dieser Code lässt sich nicht mit einer anderen Aktion in Ihrem Warenkorb kombinieren.",
        "Ce code n'est pas cumulable avec une autre offre de votre panier.",
        "Este código no se puede combinar con otra promoción de su cesta.",
    ),
    Reason.BETTER_OFFER_APPLIED: (
        "Für Ihren Warenkorb gilt schon ein besseres Angebot.",
        "Une meilleure offre s'applique déjà à votre panier.",
        "Ya se aplica una oferta mejor a su cesta.",
    ),
    Reason.NO_EFFECT: (
        "Dieser Code ändert an Ihrem Warenkorb nichts.",
        "Ce code ne change rien à votre panier.",
        "Este código no cambia nada en su cesta.",
    ),
    Reason.RESERVATION_REQUIRED: (
        "Dieser Code muss zuerst in Ihrem Konto gespeichert werden.",
        "Ce code doit d'abord être enregistré dans votre compte.",
        "Este código debe guardarse antes en su cuenta.",
    ),
    Reason.OWN_REFERRAL: (
        "Sie können Ihren eigenen Empfehlungscode nicht benutzen.",
        "Vous ne pouvez pas utiliser votre propre code de parrainage.",
        "No puede usar su propio código de recomendación.",
    ),
    Reason.ALREADY_REFERRED: (
        "Sie haben bereits einen Empfehlungscode benutzt.",
        "Vous avez déjà utilisé un code de parrainage.",
        "Ya ha usado un código de recomendación.",
    ),
    Reason.REFERRER_NOT_FOUND: (
        "Die Person, von der dieser Code stammt, wurde nicht gefunden.",
        "La personne qui a partagé ce code est introuvable.",
        "No se encontró a la persona que compartió este código.",
    ),
    Reason.BALANCE_TOO_LOW: (
        "Das Guthaben dieser Karte reicht nicht aus.",
        "Le solde de cette carte est insuffisant.",
        "El saldo de esta tarjeta es insuficiente.",
    ),
    Reason.REWARD_REQUIRED: (
        "Bitte wählen Sie eine Prämie für diese Karte.",
        "Veuillez choisir une récompense pour cette carte.",
        "Elija una recompensa para esta tarjeta.",
    ),
    Reason.IN_USE: (
        "Dieser Code wird gerade in einem anderen Bestellvorgang benutzt.",
        "Ce code est en cours d'utilisation dans une autre commande.",
        "Este código se está usando en otra compra.",
    ),
    Reason.TOO_MANY_CODES: (
        "Es sind zu viele Codes in diesem Warenkorb.",
        "Trop de codes sont appliqués à ce panier.",
        "Hay demasiados códigos en esta cesta.",
    ),
    Reason.DATA_MISSING: (
        "Für diesen Code fehlen Angaben zu Ihrer Bestellung.",
        "Il manque des informations sur votre commande pour ce code.",
        "Faltan datos de su pedido para este código.",
    ),
    Reason.NOT_SUPPORTED: (
        "Diese Art von Code kann hier nicht benutzt werden.",
        "Ce type de code ne peut pas être utilisé ici.",
        "Este tipo de código no se puede usar aquí.",
    ),
    Reason.NOT_APPLIED: (
        "Dieser Code konnte nicht angewendet werden.",
        "Ce code n'a pas pu être appliqué.",
        "Este código no se pudo aplicar.",
    ),
    Reason.OTHER: (
        "Dieser Code konnte auf Ihren Warenkorb nicht angewendet werden.",
        "Ce code n'a pas pu être appliqué à votre panier.",
        "Este código no se pudo aplicar a su cesta.",
    ),
}

HINTS: Final[Mapping[Reason, str]] = {
    Reason.NOT_FOUND: "Look for the code in the engine; mind its Application or project, and whether its case counts.",
    Reason.MALFORMED: "The code holds a control character or is over 100 characters long: it was never sent.",
    Reason.EXPIRED: "Look at the end date of the code and of its campaign.",
    Reason.NOT_STARTED: "Look at the start date of the code and of its campaign.",
    Reason.NOT_ACTIVE: "Look whether the campaign is enabled, and at its schedule.",
    Reason.USED_UP: "Look at the code's usage limit and at the redemptions that it has.",
    Reason.CUSTOMER_LIMIT_REACHED: "Look at the limit per customer, and whether guests share one profile.",
    Reason.BUDGET_USED_UP: "Look at the campaign's budget.",
    Reason.NOT_YOURS: "Look whom the code was given to, and which customer id the checkout brings.",
    Reason.SIGN_IN_REQUIRED: "The checkout brought no customer id (MAPPER_CUSTOMER_PATH).",
    Reason.MINIMUM_NOT_MET: "Compare the cart's total with the campaign's minimum.",
    Reason.CONDITIONS_NOT_MET: "`explain` shows what was sent; a condition may read a field that is not sent.",
    Reason.CUSTOMER_NOT_ELIGIBLE: "Look at the segment or audience, and at the customer's attributes.",
    Reason.NOT_COMBINABLE: "Look at the stacking or exclusion settings of the campaigns in the cart.",
    Reason.BETTER_OFFER_APPLIED: "Look at the priority of the campaigns in the cart.",
    Reason.NO_EFFECT: "The code applies, but takes nothing off this cart.",
    Reason.RESERVATION_REQUIRED: "Reserve the code for the customer in the engine first.",
    Reason.OWN_REFERRAL: "The customer is the advocate of this referral.",
    Reason.ALREADY_REFERRED: "The engine allows a customer one referral.",
    Reason.REFERRER_NOT_FOUND: "The advocate's profile is gone from the engine.",
    Reason.BALANCE_TOO_LOW: "Look at the card's balance, and at the amount to take from it.",
    Reason.REWARD_REQUIRED: "Set a reward for loyalty cards, in the settings or in promotions.meta.",
    Reason.IN_USE: "Another checkout holds the code; it is released when that ends, or after the lock's time.",
    Reason.TOO_MANY_CODES: "The engine limits the codes of one cart.",
    Reason.DATA_MISSING: "The engine needs a field that is not sent: `doctor` and `explain` show which.",
    Reason.NOT_SUPPORTED: "The engine or the adapter has no use for this kind of code.",
    Reason.NOT_APPLIED: "Another code of the cart failed first; look at that one.",
    Reason.OTHER: "Look at `engine_reason`: it is the engine's own word.",
}


def message(reason: Reason, language: Language) -> str:
    """The sentence for the shopper."""
    return reason.message if language == "en" else _TEXTS[reason][LANGUAGES.index(language) - 1]


def language_of(body: Mapping[str, Any], accepted: str = "") -> Language:
    """The language of a checkout. `accepted`: the request's `accept-language` (RFC 9110, 12.5.4)."""
    for key in LOCALE_KEYS:
        if isinstance(value := body.get(key), str) and (known := _known(value)):
            return known
    if not accepted:
        return "en"
    weighted = sorted((_weight(part), -place, part) for place, part in enumerate(accepted[:400].split(",")))
    for weight, _, part in reversed(weighted):
        if weight > 0 and (known := _known(part.partition(";")[0])):
            return known
    return "en"


def _known(tag: str) -> Language | None:
    """The language of a tag such as `de-CH` or `fr_FR`."""
    first = tag.strip().replace("_", "-").partition("-")[0].lower()
    return next((language for language in LANGUAGES if language == first), None)


def _weight(part: str) -> int:
    """The weight in thousandths; 0 where it is malformed."""
    _, found, text = part.partition("q=")
    if not found:
        return 1000
    whole, _, rest = text.strip().partition(".")
    digits = (whole or "0") + rest[:3].ljust(3, "0")
    weight = int(digits) if digits.isascii() and digits.isdigit() and len(digits) == 4 else 0
    return weight if weight <= 1000 else 0
