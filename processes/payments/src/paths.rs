//! The paths of Stripe's API, for the client and the server.

/// Charges: `POST` makes a charge, `GET` lists them, and `GET` with an id shows one.
pub(crate) const CHARGES: &str = "/v1/charges";

/// Customers: `POST` makes a customer.
pub(crate) const CUSTOMERS: &str = "/v1/customers";
