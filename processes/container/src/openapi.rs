//! The description of the container in OpenAPI. It is made from the declaration, because that decides which paths there are.

use serde_json::{Map, Value, json};

use crate::declaration::{Declaration, Resource};
use crate::units::State;

/// The path of the description, as in the api.
pub(crate) const PATH: &str = "/openapi.json";

/// The codes of all errors, each with its status and its meaning.
const CODES: [(&str, u16, &str); 22] = [
    ("host_unknown", 400, "the name in the header Host is none of this server's"),
    ("key_malformed", 400, "the Idempotency-Key is no key, or there are two"),
    ("body_broken", 400, "the body is not complete, or no multipart/form-data"),
    ("document_missing", 400, "no part has the document"),
    ("document_malformed", 400, "the document is no JSON object, is ambiguous, or lacks its subject"),
    ("part_twice", 400, "two parts have one name"),
    ("part_unknown", 400, "the resource has no such part"),
    ("part_empty", 400, "a part has no content"),
    ("origin_unknown", 403, "a browser sends the request for a page of another origin"),
    ("path_unknown", 404, "there is no such path"),
    ("unit_unknown", 404, "there is no unit with this number"),
    ("subject_unknown", 404, "nothing is stored about this"),
    ("method_not_allowed", 405, "the path has other methods: see the header Allow"),
    ("body_slow", 408, "the body did not arrive in time"),
    ("key_mismatch", 409, "the Idempotency-Key belongs to another request"),
    ("body_large", 413, "the body or a part is too long"),
    ("body_encoded", 415, "the body is compressed"),
    ("content_type_unknown", 415, "the body or a part has another content type"),
    ("spool_full", 503, "the disk is full; nothing was begun"),
    ("unavailable", 503, "Postgres or the spool is away, or the request took too long"),
    ("parameter_unknown", 400, "no path has parameters in its query"),
    ("path_malformed", 400, "the path is no UTF-8"),
];

/// The whole description.
pub(crate) fn describe(declaration: &Declaration) -> Value {
    let mut paths = Map::new();
    for resource in &declaration.resources {
        paths.insert(format!("/{}", resource.name), json!({ "post": post(resource) }));
        if resource.reader.is_some() {
            paths.insert(format!("/{}/{{{}}}", resource.name, resource.subject), json!({ "get": read(resource) }));
        }
    }
    paths.insert("/units/{uow}".to_owned(), json!({ "get": show_unit() }));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Container",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A request is stored in all of its destinations, or in none. The response is the verdict, or 202 with the \
                            Location of the unit.",
            "license": { "name": "MIT" },
        },
        "paths": paths,
        "components": { "schemas": schemas() },
    })
}

fn post(resource: &Resource) -> Value {
    let Resource { name, subject, document, destinations, .. } = resource;
    let unit = |description: &str| response(description, "Unit");
    let key = json!({
        "name": "Idempotency-Key", "in": "header", "required": false,
        "description": "A name for the request. If it is sent again with the same parts, the response is the state of the first.",
        "schema": { "type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$" },
    });
    json!({
        "operationId": format!("post_{name}"),
        "summary": format!("Store in {}", destinations.join(", ")),
        "parameters": [key],
        "requestBody": { "required": true, "content": {
            "application/json": { "schema": document_schema(subject) },
            "multipart/form-data": multipart(resource, document),
        } },
        "responses": {
            "200": unit("The verdict: every destination that wants it has it."),
            "202": unit("No verdict yet: ask for the Location."),
            "4XX": response("The request is at fault: an error, or a unit that was rejected. No destination has it.", "Refusal"),
            "5XX": response("An error, or a unit whose attempt has failed. A unit is tried again.", "Refusal"),
        },
    })
}

fn document_schema(subject: &str) -> Value {
    json!({
        "type": "object",
        "properties": { subject: { "anyOf": [
            { "type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]+$" },
            { "type": "integer", "format": "int64", "minimum": i64::MIN, "maximum": i64::MAX },
        ] } },
        "required": [subject],
    })
}

fn multipart(resource: &Resource, document: &str) -> Value {
    let mut properties = Map::from_iter([(document.to_owned(), document_schema(&resource.subject))]);
    let mut encoding = Map::from_iter([(document.to_owned(), json!({ "contentType": "application/json" }))]);
    for attachment in &resource.attachments {
        properties.insert(attachment.name.clone(), json!({ "type": "string", "format": "binary", "minLength": 1 }));
        encoding.insert(attachment.name.clone(), json!({ "contentType": attachment.content_types.join(", ") }));
    }
    let schema =
        json!({ "type": "object", "properties": properties, "required": [document], "additionalProperties": false });
    json!({ "schema": schema, "encoding": encoding })
}

fn read(resource: &Resource) -> Value {
    let Resource { name, subject, .. } = resource;
    json!({
        "operationId": format!("read_{name}"),
        "summary": "The newest committed document",
        "parameters": [{ "name": subject, "in": "path", "required": true, "schema": { "type": "string", "minLength": 1 } }],
        "responses": {
            "200": content("The document.", json!({ "type": "object" })),
            "4XX": response("There is none.", "Error"),
            "5XX": response("An error.", "Error"),
        },
    })
}

fn show_unit() -> Value {
    let number = json!({ "type": "integer", "format": "int64", "minimum": i64::MIN, "maximum": i64::MAX });
    json!({
        "operationId": "show_unit",
        "summary": "The state of a unit, with the outcome of each destination and the report of each failed attempt",
        "parameters": [{ "name": "uow", "in": "path", "required": true, "schema": number }],
        "responses": {
            "200": response("The unit.", "Unit"),
            "4XX": response("There is none.", "Error"),
            "5XX": response("An error.", "Error"),
        },
    })
}

fn response(description: &str, schema: &str) -> Value {
    content(description, json!({ "$ref": format!("#/components/schemas/{schema}") }))
}

fn content(description: &str, schema: Value) -> Value {
    let text = |description: &str| json!({ "description": description, "schema": { "type": "string" } });
    json!({
        "description": description,
        "headers": {
            "X-Request-Id": text("The request's own name, or a new one. Also in the log."),
            "Location": text("The path of the unit, if there is one."),
            "Retry-After": text("How many seconds to wait before the request is sent again."),
        },
        "content": { "application/json": { "schema": schema } },
    })
}

fn schemas() -> Value {
    let codes: Vec<&str> = CODES.iter().map(|(code, ..)| *code).collect();
    let meanings: Vec<String> =
        CODES.iter().map(|(code, status, meaning)| format!("- `{code}` ({status}): {meaning}")).collect();
    let count = || json!({ "type": "integer", "minimum": 0 });
    let status = || json!({ "type": "integer", "minimum": 200, "maximum": 599 });
    let outcome = |own: Value| {
        let mut properties = json!({
            "destination": { "type": "string" },
            "state": { "enum": ["pending", "declined", "stored", "failed_4xx", "failed_5xx", "timed_out", "undone"] },
            "status": status(),
            "error": { "type": "string" },
        });
        if let (Some(properties), Value::Object(own)) = (properties.as_object_mut(), own) {
            properties.extend(own);
        }
        json!({
            "type": "object", "properties": properties, "required": ["destination", "state"], "additionalProperties": false,
        })
    };
    let report = json!({ "type": "array", "items": { "$ref": "#/components/schemas/Outcome" } });
    json!({
        "Unit": {
            "type": "object",
            "description": "A unit of work: one request, and what became of it.",
            "properties": {
                "uow": { "type": "integer", "format": "int64" },
                "state": { "enum": State::names().collect::<Vec<_>>() },
                "attempt": count(),
                "status": status(),
                "error": { "type": "string" },
                "parts": { "type": "array", "items": { "$ref": "#/components/schemas/Part" } },
                "report": { "type": "object", "additionalProperties": report },
            },
            "required": ["uow", "state", "attempt", "parts"],
            "additionalProperties": false,
        },
        "Part": outcome(json!({ "attempts": count() })),
        "Outcome": outcome(json!({})),
        "Error": {
            "type": "object",
            "description": format!("An error. The codes are:\n\n{}", meanings.join("\n")),
            "properties": { "error": { "type": "string" }, "code": { "enum": codes } },
            "required": ["error", "code"],
            "additionalProperties": false,
        },
        "Refusal": { "oneOf": [{ "$ref": "#/components/schemas/Error" }, { "$ref": "#/components/schemas/Unit" }] },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::CODES;

    #[test]
    fn every_code_of_an_error_is_described() {
        let sources = [include_str!("server.rs"), include_str!("incoming.rs")];
        let web = include_str!("../../../libs/web/src/error_response.rs");
        let words = sources.iter().flat_map(|source| source.split('"').skip(1).step_by(2));
        let words = words.chain(web.split("code: \"").skip(2).map(|rest| rest.split('"').next().unwrap_or_default()));
        let is_code = |word: &&str| {
            let ends = ["known", "malformed", "mismatch", "missing", "twice", "empty", "large", "slow", "broken"];
            let is_word = word.chars().all(|c| c.is_ascii_lowercase() || c == '_') && word.contains('_');
            is_word && (ends.iter().any(|end| word.ends_with(end)) || ["spool_full", "body_encoded"].contains(word))
        };
        let used: BTreeSet<&str> = words.filter(is_code).chain(["unavailable", "method_not_allowed"]).collect();
        let described: BTreeSet<&str> = CODES.iter().map(|(code, ..)| *code).collect();
        assert_eq!(used, described);
    }
}
