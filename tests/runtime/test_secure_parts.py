# SPDX-License-Identifier: Apache-2.0
"""Parts of the secure sum: shares, mask streams, keys, the grid (exact clip, no overflow), the plan's checks, messages."""

import hashlib
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmotic.runtime.secure import messages, shamir
from osmotic.runtime.secure.grid import LARGEST, Grid
from osmotic.runtime.secure.keys import Identity, Pair, pinned, seal, signed, unseal
from osmotic.runtime.secure.masks import Stream, add_streams, derive
from osmotic.runtime.secure.plan import SumPlan
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, ConfigError, ProtocolError, RefusedError

SESSION = bytes(range(16))
NAMES = tuple(f"c{i}" for i in range(10))


def plan(**changed: Any) -> SumPlan:
    given = {"session": SESSION, "names": NAMES, "receiver": "hub", "shapes": {"w": (3, 4)}, "at_least": 3, "clip": 1.0}
    return SumPlan(**(given | changed))


# shares


def test_the_field_is_the_least_prime_above_two_to_256():
    """Fermat's test to 20 bases; no smaller candidate passes base 3 (2^256 + 1, a Fermat number, passes base 2)."""
    assert all(pow(base, shamir.PRIME - 1, shamir.PRIME) == 1 for base in range(2, 22))
    assert all(pow(3, p - 1, p) != 1 for p in range((1 << 256) + 1, shamir.PRIME, 2))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_threshold_of_shares_give_the_secret(data):
    count = data.draw(st.integers(2, 12))
    threshold = data.draw(st.integers(1, count))
    secret = data.draw(st.sampled_from([bytes(32), b"\xff" * 32]) | st.binary(min_size=32, max_size=32))
    drawn = data.draw(st.binary(min_size=64 * (threshold - 1), max_size=64 * (threshold - 1)))
    points = data.draw(st.lists(st.integers(1, 10_000), min_size=count, max_size=count, unique=True))
    shares = dict(zip(points, shamir.split(secret, drawn, points), strict=True))
    chosen = data.draw(st.permutations(points))[:threshold]
    assert shamir.combine({point: shares[point] for point in chosen}) == secret


def test_fewer_shares_than_the_threshold_fit_every_secret():
    """For two of three shares of threshold 3, and any secret, there are coefficients that deal exactly these shares."""
    secret, drawn, points = b"s" * 32, hashlib.sha512(b"a").digest() + hashlib.sha512(b"b").digest(), [1, 2]
    shares = shamir.split(secret, drawn, points)
    p = shamir.PRIME
    for other in (0, 12345, (1 << 256) - 1):
        y1, y2 = (int.from_bytes(share, "big") - other for share in shares)
        a = (y2 - 2 * y1) * pow(2, -1, p) % p  # a x^2 + b x through both
        b = (y1 - a) % p
        again = shamir.split(other.to_bytes(32, "big"), a.to_bytes(64, "big") + b.to_bytes(64, "big"), points)
        assert again == shares


def test_wrong_shares_are_passed_over_and_named():
    secret, points = hashlib.sha256(b"x").digest(), list(range(1, 11))
    shares = dict(zip(points, shamir.split(secret, bytes(range(64)) * 5, points), strict=True))
    assert shamir.recover(shares, 6, secret.__eq__) == (secret, set())
    shares[1] = shares[2]
    shares[4] = bytes(33)
    assert shamir.recover(shares, 6, secret.__eq__) == (secret, {1, 4})
    with pytest.raises(ProtocolError, match="fit no secret"):
        shamir.recover({p: shares[p] for p in (1, 2, 3, 4, 5, 6)}, 6, secret.__eq__)
    with pytest.raises(ProtocolError, match="5 shares of a secret where 6"):
        shamir.recover({p: shares[p] for p in (2, 3, 5, 6, 7)}, 6, secret.__eq__)


def test_a_hundred_clients_shares_do_not_take_long():
    secret, points = hashlib.sha256(b"y").digest(), list(range(1, 101))
    shares = dict(zip(points, shamir.split(secret, bytes(64 * 50), points), strict=True))
    for _ in range(100):
        assert shamir.recover(shares, 51, secret.__eq__) == (secret, set())


@pytest.mark.parametrize("bad", [(b"short", b"", [1]), (bytes(32), b"x", [1]), (bytes(32), b"", [0]), (bytes(32), b"", [1, 1])])
def test_what_cannot_be_dealt(bad):
    with pytest.raises(ValueError, match="secret of 32 bytes"):
        shamir.split(*bad)


# streams and keys


def test_keys_are_hkdf_and_streams_are_aes_as_published():
    """HKDF-SHA256 written out by HMAC (RFC 5869); AES-256-CTR of NIST SP 800-38A's key, counter zero, against ECB of 0, 1."""
    import hmac

    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    secret, salt = b"secret", b"salt"
    extracted = hmac.new(salt, secret, "sha256").digest()
    assert derive(secret, salt, "a", "b") == hmac.new(extracted, b'["a","b"]\x01', "sha256").digest()
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    buffer = bytearray(48)
    Stream(key).into(bytes(32), buffer)
    assert buffer[:32] == ecb.update(bytes(16) + bytes(15) + b"\x01")


@pytest.mark.parametrize("size", [1, 3, 32767, 32768, 32769, 100_001])
def test_streams_are_added_modulo_two_to_32_whatever_the_size(size):
    keys = [hashlib.sha256(bytes([i])).digest() for i in range(4)]
    words = np.arange(size, dtype=np.uint32)
    add_streams(words, keys[:2], keys[2:])
    assert words.std() > 2**29 or size < 10
    wanted = np.arange(size, dtype=np.uint64)
    for at, key in enumerate(keys):
        buffer = bytearray(4 * size + 16)
        Stream(key).into(bytes(4 * size), buffer)
        drawn = np.frombuffer(buffer, dtype="<u4", count=size).astype(np.uint64)
        wanted = wanted + drawn if at < 2 else wanted + 2**32 - drawn
    assert np.array_equal(words, (wanted % 2**32).astype(np.uint32))
    add_streams(words, keys[2:], keys[:2])
    assert np.array_equal(words, np.arange(size, dtype=np.uint32))


def test_both_ends_of_a_pair_have_one_key_and_purposes_differ():
    one, two = Pair(b"1" * 32), Pair(b"2" * 32)
    assert one.shared(two.public, b"s", "mask", "a") == two.shared(one.public, b"s", "mask", "a")
    others = {
        one.shared(two.public, *said)
        for said in ((b"s", "mask", "a"), (b"t", "mask", "a"), (b"s", "box", "a"), (b"s", "maska"))
    }
    assert len(others) == 4
    for low in (bytes(32), (1).to_bytes(32, "little")):
        with pytest.raises(RefusedError, match="no honest party"):
            one.shared(low, b"s", "mask")


def test_boxes_open_for_their_key_and_purpose_only():
    box = seal(b"k" * 32, b"text", b"bound")
    assert unseal(b"k" * 32, box, b"bound") == b"text"
    assert unseal(b"k" * 32, box, b"other") is None and unseal(b"j" * 32, box, b"bound") is None
    assert unseal(b"k" * 32, box[:-1], b"bound") is None and unseal(b"k" * 32, b"", b"bound") is None


def test_identities_sign_and_all_or_none_are_pinned():
    identity, seed = Identity.fresh()
    sign = identity.sign("a", ["b"])
    assert signed(identity.public, sign, "a", ["b"]) and Identity(seed).public == identity.public
    assert not signed(identity.public, sign, "a", "b") and not signed(identity.public, sign[:-1], "a", ["b"])
    assert not signed(b"x" * 31, sign, "a", ["b"])
    other = Identity.fresh()[0]
    assert pinned(None, ("a", "b"), "a", None) == {}
    keys = {"a": identity.public, "b": other.public}
    assert pinned(keys | {"z": b""}, ("a", "b"), "a", identity) == keys
    for wrong, me, own, said in (
        ({"a": identity.public}, "a", identity, "no identity is pinned for b"),
        (keys, "a", other, "is not its own key"),
        (keys, "a", None, "is not its own key"),
        ({"a": identity.public, "b": identity.public}, "a", identity, "with one identity"),
    ):
        with pytest.raises(ConfigError, match=said):
            pinned(wrong, ("a", "b"), me, own)
    with pytest.raises(ConfigError, match="32 bytes"):
        Identity(b"short")


# the plan


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"names": ("a",)}, "2 to 10000 clients"),
        ({"names": ("a", "a", "b")}, "each named once"),
        ({"receiver": "c1"}, "receives the sum and adds to it"),
        ({"session": b"short"}, "16 to 64 bytes"),
        ({"colluding": 10}, "10 of 10 clients colluding"),
        ({"colluding": 9}, "fewer than 2 honest clients"),
        ({"colluding": -1}, "-1 of 10"),
        ({"at_least": 0}, "at_least must be in 1..10"),
        ({"at_least": 11}, "at_least must be in 1..10"),
        ({"names": ("a", "b", "c"), "colluding": 1, "at_least": 1}, None),
        ({"clip": None}, "needs 'clip' or 'range'"),
        ({"clip": 0.0}, "clip must be in"),
        ({"clip": math.nan}, "clip must be in"),
        ({"range": math.inf}, "range must be in"),
        ({"noise_multiplier": 0.05}, "noise_multiplier must be in"),
        ({"noise_multiplier": 1.0, "clip": None, "range": 1.0}, "noise needs 'clip'"),
        ({"shapes": {}}, "1 to 2\\^31 numbers"),
        ({"shapes": {"w": (0,)}}, "1 to 2\\^31 numbers"),
        ({"shapes": {"w": (1 << 20, 1 << 12)}}, "1 to 2\\^31 numbers"),
        ({"noise_multiplier": 0.1, "names": tuple(map(str, range(2000)))}, "too little room for noise"),
    ],
)
def test_plans_that_make_no_sense_are_refused(changed, said):
    if said is None:
        assert plan(**changed).fewest == 3
        return
    with pytest.raises(ConfigError, match=said):
        plan(**changed)


@pytest.mark.parametrize("count", range(2, 40))
def test_two_sets_of_survivors_can_never_both_be_confirmed(count):
    """Threshold + threshold > clients + colluding: an honest client would have to confirm twice; and honest ones remain."""
    for colluding in range(count - 1):
        names = tuple(map(str, range(count)))
        try:
            made = plan(names=names, colluding=colluding, at_least=1)
        except ConfigError:
            assert (count + colluding) // 2 + 1 - colluding < 2
            continue
        assert 2 * made.threshold > count + colluding and made.threshold <= count
        assert made.fewest == made.threshold and made.honest >= 2
    assert plan(names=names, at_least=count).fewest == count


def test_everything_that_is_agreed_is_in_the_digest():
    changes: list[dict[str, Any]] = [
        {"session": bytes(16)}, {"names": NAMES[::-1]}, {"receiver": "h"}, {"shapes": {"v": (3, 4)}}, {"shapes": {"w": (4, 3)}},
        {"at_least": 4}, {"colluding": 1}, {"clip": 2.0}, {"range": 2.0}, {"noise_multiplier": 1.0}, {"context": b"model"},
    ]  # fmt: skip
    assert len({plan(**changed).digest for changed in [{}, *changes]}) == len(changes) + 1
    assert plan(shapes={"b": (1,), "a": (2,)}).digest == plan(shapes={"a": (2,), "b": (1,)}).digest


def test_names_come_back_in_the_plans_order_and_strangers_are_refused():
    assert plan().ordered(["c3", "c1"]) == ("c1", "c3")
    for wrong in (["c1", "x"], ["c1", "c1"]):
        with pytest.raises(ConfigError, match="names"):
            plan().ordered(wrong)


# the grid


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 10_000), st.floats(1e-6, 1e6))
def test_no_sum_overflows_and_the_step_is_the_finest_power_of_two(count, reach):
    grid = Grid.of(count, reach, None, None, 2)
    assert math.frexp(grid.step)[0] == 0.5
    largest = round(Fraction(reach) / Fraction(grid.step))  # what a number of that size is rounded to
    assert largest <= grid.limit and count * grid.limit <= LARGEST
    finer = round(Fraction(reach) / Fraction(grid.step / 2))
    assert count * finer > LARGEST - count


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 50), st.floats(0.01, 100))
def test_plain_numbers_are_rounded_to_the_nearest_step(seed, count, reach):
    grid = Grid.of(count, reach, None, None, 2)
    vector = np.random.default_rng(seed).uniform(-reach, reach, 50)
    vector[:2] = reach, -reach
    words = grid.encode({"w": vector}, {"w": (50,)})
    again = grid.decode(words, {"w": (50,)})["w"]
    assert np.abs(again - vector).max() <= grid.step / 2 and words.dtype == np.uint32
    assert abs(int(words.view(np.int32)[0])) <= grid.limit


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(-8, 8), st.floats(0.01, 100), st.floats(0.2, 50), st.sampled_from([None, 0.3]))
def test_with_noise_no_vector_is_longer_than_the_clip_norm_in_whole_numbers(seed, size, clip, multiplier, share):
    """Exactly: sum of squares of Python integers <= (clip / step)^2, which is (2^bits sqrt(honest) / multiplier)^2."""
    reach = clip if share is None else share * clip
    grid = Grid.of(10, reach, clip, multiplier, 6)
    vector = np.random.default_rng(seed).standard_normal(300) * 10.0**size
    steps = grid.encode({"w": vector}, {"w": (300,)}).view(np.int32)
    squares = sum(int(k) * int(k) for k in steps)
    assert squares <= Fraction(clip) ** 2 / Fraction(grid.step) ** 2
    assert squares * Fraction(multiplier) ** 2 <= Fraction(6 * 4**grid.bits) * (1 + Fraction(1, 10**12))
    norm = float(np.linalg.norm(vector))
    if share is None and norm > clip:
        assert math.sqrt(squares) >= 0.9998 * clip / grid.step - math.sqrt(300)
    room = 10 * grid.limit + 14 * math.sqrt(10) * 2**grid.bits
    assert room <= LARGEST + 1 and max(abs(int(k)) for k in steps) <= grid.limit


def test_the_clip_norm_is_of_all_tensors_together_and_holds_without_noise_too():
    grid = Grid.of(3, 2.0, 2.0, None, 2)
    shapes = {"a": (70_000,), "b": ()}
    vector = {"a": np.full(70_000, 0.5, dtype=np.float32), "b": np.float32(3.0).reshape(())}
    made = grid.decode(grid.encode(vector, shapes), shapes)
    norm = math.sqrt(0.25 * 70_000 + 9)
    assert math.sqrt((made["a"] ** 2).sum() + made["b"] ** 2) == pytest.approx(2.0, abs=1e-3)
    assert made["b"] == pytest.approx(3 * 2 / norm, abs=grid.step) and made["b"].shape == ()


class Moving(dict[str, np.ndarray]):
    """A vector that is another one each time it is read."""

    def __getitem__(self, name: str) -> np.ndarray:
        self.times = getattr(self, "times", 0) + 1
        return super().__getitem__(name) * (1.0 if self.times == 1 else 1e6)


def test_vectors_that_are_none_are_refused():
    shapes = {"w": (4,)}
    ranged, noisy = Grid.of(3, 1.0, None, None, 2), Grid.of(3, 1.0, 1.0, 1.0, 2)
    good = np.zeros(4, dtype=np.float32)
    for wrong in ({"v": good}, {"w": good, "v": good}, {"w": good[:3]}, {"w": good.astype(complex)}, {"w": good > 1}):
        for grid in (ranged, noisy):
            with pytest.raises(ComponentError, match="agreed on"):
                grid.encode(wrong, shapes)
    for number in (math.nan, math.inf, -math.inf, 1.001):
        with pytest.raises(ComponentError, match="beyond the agreed range"):
            ranged.encode({"w": np.array([0, 0, number, 0])}, shapes)
    for number in (math.nan, math.inf, 1e200):
        with pytest.raises(ComponentError, match="too long, or"):
            noisy.encode({"w": np.array([0, 0, number, 0])}, shapes)
    with pytest.raises(ComponentError, match="changed while"):
        noisy.encode(Moving(w=np.full(4, 0.1)), shapes)


def test_integers_and_halves_are_vectors_too():
    grid = Grid.of(3, 10.0, None, None, 2)
    for dtype in ("int8", "uint16", "float16", "float64"):
        assert grid.decode(grid.encode({"w": np.array([1, 2, 10], dtype=dtype)}, {"w": (3,)}), {"w": (3,)})["w"].tolist() == [
            1,
            2,
            10,
        ]


# messages


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=99) | st.dictionaries(st.sampled_from(["box", "set", "key", "mask", "sign"]), st.text("0a", max_size=3))
)
def test_what_is_no_message_is_refused(said):
    text = said if isinstance(said, bytes) else canonical(said)
    for reader in (messages.Keys.read, messages.confirmed, messages.receivers_key):
        with pytest.raises(ProtocolError, match="malformed or was altered"):
            reader(text, "c1")


def test_messages_of_the_form_but_of_wrong_parts_are_refused():
    good = messages.Keys(b"1" * 32, b"2" * 32, b"").message()
    assert messages.Keys.read(good, "c").box == b"1" * 32
    changed = [(b"31", b"3g"), (b'"31', b'"'), (b'"sign":""', b'"sign":null'), (b"31", b" 1"), (b"}", b',"x":1}')]
    for wrong in (*(good.replace(*pair, 1) for pair in changed), b"[" * 100_000, b"x" * (messages.LARGEST + 1)):
        with pytest.raises(ProtocolError):
            messages.Keys.read(wrong, "c")
    with pytest.raises(ProtocolError):
        messages.parts({"a": "00"}, "c", 1, {"a", "b"})
    with pytest.raises(ProtocolError):
        messages.parts(["a"], "c", 1, {"a"})
