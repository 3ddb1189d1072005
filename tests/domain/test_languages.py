"""Messages for shoppers in their language."""

import pytest

from mapper.domain.languages import HINTS, LANGUAGES, Language, language_of, message
from mapper.domain.reasons import Reason


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_reason_has_its_own_sentence_in_each_language(language: Language) -> None:
    texts = [message(reason, language) for reason in Reason]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert text[0].isupper()
        assert text.endswith(".")
    if language != "en":
        assert not set(texts) & {reason.message for reason in Reason}


def test_every_reason_has_a_hint_for_the_merchant() -> None:
    assert set(HINTS) == set(Reason)
    assert all(hint.endswith(".") for hint in HINTS.values())


@pytest.mark.parametrize(
    ("body", "accepted", "language"),
    [
        ({}, "", "en"),
        ({"locale": "de-CH"}, "fr", "de"),
        ({"locale": "fr_FR"}, "", "fr"),
        ({"language": "ES"}, "", "es"),
        ({"locale": "it", "language": "de"}, "", "de"),
        ({"locale": 7}, "es", "es"),
        ({}, "de", "de"),
        ({}, "it, fr;q=0.8, de;q=0.9", "de"),
        ({}, "fr;q=0, es;q=0.1", "es"),
        ({}, "fr;q=x, de;q=1.5", "en"),
        ({}, "de;q=0.5, fr;q=0.5", "de"),
        ({}, "*", "en"),
        ({}, "en, de", "en"),
        ({}, "de;q=0.999, es", "es"),
    ],
)
def test_language_comes_from_the_checkout_then_the_request(
    body: dict[str, object], accepted: str, language: str
) -> None:
    assert language_of(body, accepted) == language
