"""Adds to requests of schemathesis the rule that a description cannot express: which headers belong to which body."""

import uuid

import schemathesis
from schemathesis.core.parameters import ParameterLocation

# The users of seed.sql: the card of the first is good, that of the second is declined.
USERS = ["user@example.com", "user@example.com", "user-bad-source@example.com"]
COORDINATES = {"origin_lat", "origin_lon", "target_lat", "target_lon"}

seen_count = 0


@schemathesis.hook
def before_call(context, case, kwargs):
    """Sends a body with coordinates as a booking, by a user and with a new key, and a body without as a guest's ride."""
    global seen_count
    if case.operation.path.startswith("/wallet"):
        round_amount(case)
        return
    if case.method != "POST" or not isinstance(case.body, dict):
        return
    # The parameter makes a booking fail with 500.
    if case.body.get("raise_error") in (True, "true"):
        case.body["raise_error"] = False
    # In JSON, null means that the parameter is absent. A form has no null.
    if case.media_type != "application/json" and case.body.get("raise_error", False) is None:
        del case.body["raise_error"]
    # Schemathesis has broken these headers on purpose: they are sent unchanged.
    if case.meta is not None and case.meta.is_negative_at(ParameterLocation.HEADER):
        return
    if COORDINATES & case.body.keys():
        seen_count += 1
        case.headers["Authorization"] = USERS[seen_count % len(USERS)]
        case.headers["Idempotency-Key"] = str(uuid.uuid4())
    else:
        case.headers.pop("Authorization", None)
        case.headers.pop("Idempotency-Key", None)


def round_amount(case):
    """Gives a valid amount two decimal places: a multiple of 0.01 is not exact in floating point."""
    is_broken = case.meta is not None and case.meta.is_negative_at(ParameterLocation.BODY)
    if not is_broken and isinstance(case.body, dict) and isinstance(case.body.get("amount"), float):
        case.body["amount"] = round(case.body["amount"], 2)
