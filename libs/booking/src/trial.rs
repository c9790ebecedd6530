//! Whether bookings can be written, for the health of the processes that book.

/// Statements that succeed only while bookings can be written, and change no row.
pub const TRIAL: [&str; 8] = [
    "-- booking::try_claim
     INSERT INTO tracked_operations (target, key, payload) SELECT NULL, NULL, NULL WHERE false",
    "-- booking::try_phase
     UPDATE tracked_operations SET status = status, recovery_point = recovery_point WHERE false",
    "-- booking::try_ride
     INSERT INTO rides (distance_mm) SELECT NULL WHERE false",
    "-- booking::try_stage
     INSERT INTO staged_log_records (partition, object, action, data) SELECT partition_of(NULL), NULL, NULL, NULL WHERE false",
    "-- booking::try_booking
     INSERT INTO bookings (ride_id, user_id, operation_id, charge_key, charge_form)
     SELECT NULL, NULL, NULL, NULL, NULL FROM users WHERE false",
    // It fails too if there is no secret, or more than one.
    "-- booking::try_key
     SELECT derive_charge_key(0, '', ARRAY[0]::float8[])",
    "-- booking::try_charge
     UPDATE bookings SET stripe_charge_id = stripe_charge_id WHERE false",
    "-- booking::try_audit
     INSERT INTO audit_records (action, data) SELECT NULL, NULL WHERE false",
];
