//! The paths of the api. Routes, handlers, the description and metrics all take them from here.

/// `POST` takes a ride, `GET` lists them.
pub(crate) const RIDES: &str = "/rides";

/// One ride.
pub(crate) const RIDE: &str = "/rides/{id}";

/// SQL's totals beside each consumer's.
pub(crate) const TOTALS: &str = "/totals";

/// The archive of every record.
pub(crate) const HISTORY: &str = "/history";

/// Whether rides can be taken.
pub(crate) const HEALTHZ: &str = "/healthz";

/// The description in OpenAPI.
pub(crate) const OPENAPI: &str = "/openapi.json";

/// The page that shows the description, and the files below it.
pub(crate) const DOCS: &str = "/docs";
