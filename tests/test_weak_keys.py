"""Which keys are weak: those that people make up, and none of a random generator's."""

from __future__ import annotations

import base64
import secrets
import string
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempotency.keys import is_weak
from tests.conftest import KEY, once

pytestmark = once

DIGITS = string.digits
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
ALPHANUMERIC = string.ascii_letters + DIGITS


@pytest.mark.parametrize(
    "key",
    [
        "a",
        "1234567",
        "order-1",
        # Digits and separators: counters, clocks, dates, telephone numbers.
        "12345678",
        "0000-0042",
        "#00000042",
        "1732420800",
        "173242080012",
        "1732420800123",
        "1732420800.123456",
        "1732420800123456789",
        "2026-11-29",
        "20261129",
        "29.11.2026",
        "11/29/2026",
        "2026-11-24_03:41:53",
        "+49(30)123456-78",
        "0.8444218515250481",
        # ISO 8601, with letters, or with more digits than that.
        "2026-W48-7",
        "2026W487",
        "2026-W48",
        "2026-333",
        "+002026-11-29",
        "2026-11-24T03",
        "2026-11-24t03:41",
        "2026-11-24T03:41:53Z",
        "2026-11-24T03:41:60.5Z",
        "2026-11-24T24:00",
        "2026-11-24T03.5",
        "2026-11-24T03:41:53.123456+01:00",
        "2026-11-24T03:41:53.123456789-0330",
        "20261124T034153",
        "20261124T034153,5Z",
        "20261124034153.123456789+0100",
        "2026-11-24_03:41:53.123456+01:00",
        "2026-W48-7T03:41:53.123Z",
        "2026333T034153Z",
        "+002026-11-24T03:41:53Z",
        "2026/11/24T03.41Z",
        "2026-11-24T03-41-53-123Z",
        "2026-11-24T03:41:53+01:00[Europe/Berlin][u-ca=gregory]",
        # One character repeated, whatever is between.
        "aaaaaaaa",
        "XXXX-XXXX-XXXX",
        "--------",
        "0" * 64,
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
    ],
)
def test_weak(key: str) -> None:
    """K6: Keys that another client may well choose are weak."""
    assert is_weak(key)


@pytest.mark.parametrize(
    "key",
    [
        KEY,
        "7f0c1f8e-2f2c-4c0e-9f60-5f8f3d1f9b11",
        "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "12345678901234567890",
        "20261124-0341-4312-8456-010000000000",
        "20261124T034153-a8f3",
        "2026-13-24T03:41:53Z",
        "2026-W54-1T03:41:53Z",
        "2026-11-24T25:41:53Z",
        # Words, and what has some in it, are the client's choice.
        "order-2026-11-24T03:41:53Z",
        "invoice-1",
        "paymentforlunch",
        "aaaaaaab",
    ],
)
def test_strong(key: str) -> None:
    """K6: Everything else is the client's choice."""
    assert not is_weak(key)


# Keys of people.

ZONES = st.integers(-14 * 4, 14 * 4).map(
    lambda quarters: timezone(timedelta(minutes=15 * quarters))
)
# From here on strftime writes each year with four digits, that of a week too.
FIRST = datetime(1001, 1, 1)  # noqa: DTZ001  # hypothesis adds the zone
MOMENTS = st.datetimes(min_value=FIRST, timezones=ZONES)
DATE_SPELLINGS = [
    "%Y-%m-%d", "%Y%m%d", "%G-W%V-%u", "%GW%V%u", "%G-W%V", "%Y-%j", "%Y%j",
    "%Y/%m/%d", "%Y.%m.%d", "+00%Y-%m-%d",
]  # fmt: skip
TIME_SPELLINGS = [
    "%H", "%H:%M", "%H%M", "%H:%M:%S", "%H%M%S", "%H:%M:%S.%f", "%H%M%S,%f",
    "%H-%M-%S", "%H-%M-%S-%f", "%H.%f", "%H:%M.%f", "%H:%M:%S.%f000",
]  # fmt: skip
ZONE_SPELLINGS: list[Callable[[str], str]] = [
    lambda offset: "",
    lambda offset: "Z",
    lambda offset: offset,
    lambda offset: f"{offset[:3]}:{offset[3:]}",
    lambda offset: offset[:3],
    lambda offset: f"{offset[:3]}:{offset[3:]}[Europe/Berlin]",
]
CASES: list[Callable[[str], str]] = [str, str.lower]


@given(MOMENTS, st.sampled_from([*DATE_SPELLINGS, "%d.%m.%Y", "%m/%d/%Y"]))
def test_dates_are_weak(moment: datetime, spelling: str) -> None:
    """K6: A date is, in any spelling."""
    assert is_weak(moment.strftime(spelling))
    assert is_weak(moment.strftime(spelling).lower())


@given(
    MOMENTS,
    st.sampled_from(DATE_SPELLINGS),
    st.sampled_from(["T", "_"]),
    st.sampled_from(TIME_SPELLINGS),
    st.sampled_from(ZONE_SPELLINGS),
    st.sampled_from(CASES),
)
def test_date_times_are_weak(
    moment: datetime,
    date: str,
    between: str,
    time: str,
    zone: Callable[[str], str],
    case: Callable[[str], str],
) -> None:
    """K6: A date with a time is weak, in any precision and zone."""
    spelled = moment.strftime(f"{date}{between}{time}") + zone(moment.strftime("%z"))
    assert is_weak(case(spelled))


@given(MOMENTS)
def test_what_languages_print_is_weak(moment: datetime) -> None:
    """K6: A moment as programming languages print it is weak."""
    for spelled in (
        moment.isoformat(),
        moment.isoformat(sep="_"),
        moment.isoformat(timespec="milliseconds"),
        str(moment).replace(" ", "-"),
        str(moment.timestamp()),
    ):
        assert is_weak(spelled)


@given(
    st.integers(10**9, 9 * 10**9), st.sampled_from([1, 10**3, 10**6, 10**9]), st.data()
)
def test_clocks_are_weak(seconds: int, unit: int, data: st.DataObject) -> None:
    """K6: A time in seconds or fractions of a second is weak."""
    assert is_weak(str(seconds * unit + data.draw(st.integers(0, unit - 1))))


@given(
    st.integers(0, 10**19 - 1),
    st.integers(0, 19),
    st.sampled_from(["", "-", "_", ".", "/", ",", ":", "#"]),
    st.integers(1, 5),
)
def test_counters_are_weak(number: int, width: int, separator: str, group: int) -> None:
    """K6: Up to 19 digits are, with zeros before them and separators among them."""
    digits = f"{number:0{width}}"
    groups = [digits[at : at + group] for at in range(0, len(digits), group)]
    assert is_weak(separator.join(groups))
    assert is_weak(f"{separator}{digits}{separator}")


@given(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E),
    st.integers(1, 64),
    st.sampled_from(["", "-", "."]),
)
def test_one_character_repeated_is_weak(character: str, times: int, by: str) -> None:
    """K6: One repeated character is weak, whatever the length and separators."""
    assert is_weak(by.join(character * times))


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=7))
def test_short_keys_are_weak(key: str) -> None:
    """K6: Words, too, of fewer than 8 characters."""
    assert is_weak(key)


@given(
    st.lists(st.text(string.ascii_letters, min_size=3), min_size=3, max_size=5),
    st.sampled_from(["", "-", "_", " "]),
)
def test_long_words_are_strong(words: list[str], separator: str) -> None:
    """K6: Whether words tell a thing from others is for the client to know."""
    key = separator.join(words)
    assert is_weak(key) is (len({*key} - {*"-_ "}) == 1)


# Keys of generators. Those are drawn by a seed: what hypothesis itself finds simplest,
# such as zeros alone, no generator would give.


def drawn(random: Random, alphabet: str, length: int) -> str:
    return "".join(random.choice(alphabet) for _ in range(length))


def uuid_of(random: Random) -> uuid.UUID:
    """Return a UUID of any version, as RFC 9562 has them."""
    number = random.getrandbits(128)
    number &= ~(0xF << 76) & ~(0x3 << 62)
    return uuid.UUID(int=number | random.randint(1, 8) << 76 | 0x2 << 62)


def ulid(random: Random) -> str:
    """Return a ULID of this age: 48 bits of a clock in milliseconds, 80 random ones."""
    number = random.randint(10**12, 2 * 10**12) << 80 | random.getrandbits(80)
    return "".join(CROCKFORD[number >> 5 * at & 31] for at in range(25, -1, -1))


GENERATORS: dict[str, Callable[[Random], str]] = {
    "uuid": lambda random: str(uuid_of(random)),
    "uuid in capitals": lambda random: str(uuid_of(random)).upper(),
    "uuid without hyphens": lambda random: uuid_of(random).hex,
    "uuid in braces": lambda random: f"{{{uuid_of(random)}}}",
    "uuid as urn": lambda random: uuid_of(random).urn,
    "uuid as a number": lambda random: str(uuid_of(random).int),
    "ulid": ulid,
    "ulid in small letters": lambda random: ulid(random).lower(),
    "nanoid": lambda random: drawn(random, ALPHANUMERIC + "_-", 21),
    "token_hex": lambda random: random.randbytes(16).hex(),
    "token_urlsafe": lambda random: (
        base64.urlsafe_b64encode(random.randbytes(16)).decode().rstrip("=")
    ),
    "base64": lambda random: base64.b64encode(random.randbytes(16)).decode(),
    "base32": lambda random: base64.b32encode(random.randbytes(16)).decode(),
    "base58": lambda random: drawn(random, BASE58, 22),
    "base85": lambda random: base64.b85encode(random.randbytes(16)).decode(),
    "object id": lambda random: random.randbytes(12).hex(),
    "ksuid": lambda random: drawn(random, ALPHANUMERIC, 27),
    "cuid2": lambda random: drawn(random, string.ascii_lowercase + DIGITS, 24),
    "get_random_string": lambda random: drawn(random, ALPHANUMERIC, 22),
    "random digits": lambda random: str(random.randint(10**19, 10**40)),
}


@pytest.mark.parametrize("generate", GENERATORS.values(), ids=GENERATORS)
@given(seed=st.integers(0, 2**64))
def test_random_keys_are_strong(generate: Callable[[Random], str], seed: int) -> None:
    """K6: What a generator draws is no weak key, whatever it happens to look like."""
    assert not is_weak(generate(Random(seed)))


@given(
    st.text(DIGITS, min_size=32, max_size=32),
    st.sampled_from("12345678"),
    st.sampled_from("89"),
    st.booleans(),
)
def test_uuids_of_digits_alone_are_strong(
    digits: str, version: str, variant: str, hyphens: bool
) -> None:
    """K6: A UUID without any letter is one, also where it begins like a date."""
    found = uuid.UUID(f"{digits[:12]}{version}{digits[13:16]}{variant}{digits[17:]}")
    key = str(found) if hyphens else found.hex
    assert is_weak(key) is (len({*found.hex}) == 1)


@pytest.mark.parametrize(
    "generate",
    [
        uuid.uuid1,
        uuid.uuid4,
        lambda: uuid.uuid5(uuid.NAMESPACE_URL, "https://example.com/orders/1"),
        lambda: secrets.token_hex(16),
        lambda: secrets.token_urlsafe(16),
        secrets.token_urlsafe,
    ],
)
def test_generators_of_python(generate: Callable[[], Any]) -> None:
    """K6: Random values of Python are strong as they are."""
    assert not any(is_weak(str(generate())) for _ in range(100))
