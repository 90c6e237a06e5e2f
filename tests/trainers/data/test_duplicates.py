from random import Random

from trainers.data.duplicates import NEAR, Index, fingerprint

WORDS = [f"word{number}" for number in range(2000)]


def _similarity(one: list[str], other: list[str]) -> float:
    runs = [{tuple(words[start : start + 3]) for start in range(len(words) - 2)} for words in (one, other)]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def test_near_pairs_are_found_and_others_are_not() -> None:
    rng = Random(0)
    for _ in range(300):
        one = rng.choices(WORDS, k=40)
        other = [word if rng.random() > 0.06 else rng.choice(WORDS) for word in one]
        index = Index()
        index.add(fingerprint(" ".join(one)), "one")

        match = index.find(fingerprint(" ".join(other)))

        assert (match is not None) == (_similarity(one, other) >= NEAR)


def test_the_same_runs_in_another_order_are_near_and_not_exact() -> None:
    index = Index()
    index.add(fingerprint("a b c d e a b c"), "one")

    assert index.find(fingerprint("A, b c d e a b c!")).exact
    assert not index.find(fingerprint("b c d e a b c d")).exact


def test_a_text_without_words_is_like_none() -> None:
    assert fingerprint(" -- ") is None


def test_a_template_used_often_is_found_each_time() -> None:
    index, found = Index(), 0
    for number in range(2000):
        text = fingerprint(f"Dear customer, your statement of this month is ready for you to read, with our number {number}")
        found += index.find(text) is not None
        index.add(text, str(number))

    assert found == 1999
