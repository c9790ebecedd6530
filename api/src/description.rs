//! The api's description in OpenAPI: the handlers' paths, the types of requests and responses, and the texts of
//! [`Error`](crate::error::Error).

use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::{Object, RefOr, Type};
use utoipa::{Modify, OpenApi};
use web::ErrorBody;

use crate::responses::{NoSuchPath, WrongMethod};
use crate::wallets::WalletErrorBody;
use crate::{health, history, rides, totals, wallets};

/// The whole description.
#[derive(OpenApi)]
#[openapi(
    info(title = "Rocket Rides Log", description = include_str!("about.md")),
    paths(
        rides::create_ride, rides::list_rides, rides::show_ride, totals::show_totals, history::show_history,
        health::check_health, wallets::create_wallet, wallets::show_wallet, wallets::show_balance,
        wallets::list_transactions, wallets::credit_wallet, wallets::debit_wallet, wallets::transfer_money
    ),
    components(schemas(ErrorBody, WalletErrorBody), responses(NoSuchPath, WrongMethod)),
    modifiers(&Everywhere)
)]
pub(crate) struct Description;

/// Adds the parts that every operation has.
struct Everywhere;

impl Modify for Everywhere {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        let user = "The e-mail address of a user, bare. Only a booked ride has one.";
        let user = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description("Authorization", user)));
        description.components.get_or_insert_default().add_security_scheme("user", user);
        for operation in description.paths.paths.values_mut().flat_map(operations) {
            let name = "A name for the request: 1 to 128 visible ASCII characters. Anything else is replaced.";
            let parameter = ParameterBuilder::new().name("X-Request-Id").parameter_in(ParameterIn::Header);
            let parameter = parameter.description(Some(name)).schema(Some(Object::with_type(Type::String))).build();
            operation.parameters.get_or_insert_default().push(parameter.into());
            for response in operation.responses.responses.values_mut() {
                let RefOr::T(response) = response else { continue };
                let name = "The request's own name, or a new one. Also in the log.";
                let header = HeaderBuilder::new().schema(Some(Object::with_type(Type::String))).description(Some(name));
                response.headers.insert("X-Request-Id".to_owned(), header.build().into());
            }
        }
    }
}

fn operations(path: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut path.get, &mut path.post, &mut path.put, &mut path.patch, &mut path.delete].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn description() -> Value {
        serde_json::to_value(Description::openapi()).unwrap()
    }

    #[test]
    fn every_code_of_an_error_is_described() {
        let text = description().to_string();
        let sources = [include_str!("error.rs"), include_str!("wallets/error.rs")];
        let sources = sources.iter().flat_map(|source| source.split("fn code(").skip(1));
        let sources = sources.map(|rest| rest.split("\n    }\n").next().unwrap());
        let codes: Vec<&str> = sources.flat_map(|source| source.split('"').skip(1).step_by(2)).collect();
        assert!(codes.len() > 45, "{codes:?}");
        for code in codes {
            assert!(text.contains(&format!("\"{code}\"")), "{code} is not described");
        }
    }

    #[test]
    fn every_operation_has_its_name_and_every_answer_a_request_id_and_a_body() {
        let description = description();
        assert_eq!(description["openapi"], "3.1.0");
        let mut names = BTreeSet::new();
        for (path, operations) in description["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                assert!(names.insert(operation["operationId"].to_string()), "{method} {path} has a name of its own");
                for (status, answer) in operation["responses"].as_object().unwrap() {
                    let place = format!("{method} {path} {status}");
                    assert!(answer["headers"]["X-Request-Id"].is_object(), "{place}");
                    assert!(answer["content"]["application/json"]["schema"].is_object(), "{place}");
                    assert_ne!(answer["description"], "", "{place}");
                }
            }
        }
    }
}
