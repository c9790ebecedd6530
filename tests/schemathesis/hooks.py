"""Tells schemathesis what a description cannot say: which headers belong to which body."""

import uuid

import schemathesis
from schemathesis.core.parameters import ParameterLocation

# Of seed.sql: the first can pay.
USERS = ["user@example.com", "user@example.com", "user-bad-source@example.com"]
COORDINATES = {"origin_lat", "origin_lon", "target_lat", "target_lon"}

seen_count = 0


@schemathesis.hook
def before_call(context, case, kwargs):
    """A body with coordinates is booked: by a user, with a key of its own. One without is a guest's."""
    global seen_count
    if case.method != "POST" or not isinstance(case.body, dict):
        return
    # It makes a booking fail with 500, on purpose.
    if case.body.get("raise_error") in (True, "true"):
        case.body["raise_error"] = False
    # JSON has a null, and means what is left out. A form has none.
    if case.media_type != "application/json" and case.body.get("raise_error", False) is None:
        del case.body["raise_error"]
    # What schemathesis has broken itself is sent as it is.
    if case.meta is not None and case.meta.is_negative_at(ParameterLocation.HEADER):
        return
    if COORDINATES & case.body.keys():
        seen_count += 1
        case.headers["Authorization"] = USERS[seen_count % len(USERS)]
        case.headers["Idempotency-Key"] = str(uuid.uuid4())
    else:
        case.headers.pop("Authorization", None)
        case.headers.pop("Idempotency-Key", None)
