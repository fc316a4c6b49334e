"""Rules of the API that JSON Schema cannot express. schemathesis.toml loads this file."""

from decimal import Decimal
from itertools import count

import schemathesis
from schemathesis.openapi.checks import EnsureResourceAvailability

# Largest price × quantity (Money::MAX_TOTAL) and the first price that is too large, in core/src/money.rs.
MAX_TOTAL = 10**13
PRICE_LIMIT = 10**8
MAX_QUANTITY = 2**31 - 1

KEY = "Idempotency-Key"

# Fields of the order that a user placed with an Idempotency-Key.
placed = {}
numbers = count(1)


@schemathesis.hook.apply_to(operation_id="place_order")
def before_call(context, case, kwargs):
    if isinstance(case.body, dict):
        keep_total_in_range(case.body)
        use_key_for_one_order(case)


@schemathesis.hook.apply_to(operation_id="place_order")
def after_call(context, case, response):
    if response.status_code == 201 and case.headers.get(KEY):
        placed[user_and_key(case)] = fields(case.body)


def keep_total_in_range(body):
    """Lowers a quantity that is valid alone, but too large for the price.

    JSON Schema cannot limit the product of two fields. Without this, one in ten valid bodies would get 400, and an
    invalid body could get 400 for its total instead of for the rule under test.

    Prices need no hook. Schemathesis computes multiples of 0.01 as exact fractions, so the JSON text of each valid price
    has at most two decimals.
    """
    price, quantity = number(body.get("price")), number(body.get("quantity"))
    if price is None or quantity is None or not (0 < price < PRICE_LIMIT and 1 <= quantity <= MAX_QUANTITY):
        return
    if price * quantity > MAX_TOTAL:
        # A float stays one: 5.0 is an integer in JSON Schema, so the producer must accept it.
        body["quantity"] = type(body["quantity"])(MAX_TOTAL // price)


def number(value):
    return Decimal(str(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def use_key_for_one_order(case):
    """Replaces an Idempotency-Key that the user already sent with other fields, which would get 422.

    JSON Schema cannot refer to earlier requests. A key that is repeated with the same fields stays.
    """
    if case.headers.get(KEY) and placed.get(user_and_key(case), fields(case.body)) != fields(case.body):
        case.headers[KEY] = f"unused-{next(numbers)}"


def user_and_key(case):
    key = case.headers[KEY].strip()
    # The quoted and the bare form of a key are equal.
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return repr(case.body.get("user_id")), key


def fields(body):
    return [body.get(name) for name in ("product_name", "quantity", "price")]


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """Accepts 404 for the receipt of an order that was just placed, while the receipt is `pending`.

    The producer writes a receipt after it acknowledged the order. A receipt that is `missing` fails the check.
    """
    if isinstance(failure, EnsureResourceAvailability) and case.path == "/api/orders/{id}/receipt":
        return response.json().get("receipt_status") != "pending"
    return True
