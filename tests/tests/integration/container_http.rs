//! The manners of the container over HTTP, and its description.

use std::time::Duration;

use reqwest::{Client, Method, Response};
use serde_json::Value;
use tests::{Process, World, python_program, scratch_folder};
use tokio::process::Command;

use crate::container_fixture::manifest;

/// Destinations that take every document, so that a request which fits the description is accepted.
const DECLARATION: &str = r#"
[[resource]]
name = "manifests"
subject = "ride_id"
document = "manifest"
reader = "rows"
body_max = "64KiB"
destinations = ["rows", "photos"]
[[resource.attachment]]
name = "photo"
content_types = ["image/png"]
[[resource]]
name = "unread"
subject = "id"
document = "d"
destinations = ["photos"]
[[resource.attachment]]
name = "photo"
content_types = ["image/png"]
[destination.rows]
kind = "rows"
table = "manifests"
[destination.photos]
kind = "files"
folder = "${CONTAINER_DATA}/photos"
takes = "photo"
"#;

/// A container without servers that it could tell.
struct Scene {
    world: World,
    container: Process,
    base: String,
    folder: std::path::PathBuf,
    client: Client,
}

impl Scene {
    async fn start() -> Self {
        let (world, folder) = (World::new().await, scratch_folder());
        let path = folder.join("container.toml");
        std::fs::write(&path, DECLARATION).unwrap();
        let mut command = Command::new(tests::binary("container"));
        command.args(["--container-port", "0", "--http-hosts", "rides.example.com", "--config"]).arg(path);
        command.arg("--container-spool").arg(folder.join("spool"));
        command.env("DATABASE_URL", world.database_url()).env("CONTAINER_DATA", folder.join("data"));
        let mut container = Process::spawn("container", command);
        let base = format!("http://{}", container.address_after("container started").await);
        Self { world, container, base, folder, client: Client::new() }
    }

    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = self.client.request(method.clone(), format!("{}{path}", self.base));
        if method == Method::POST {
            request = request.header("content-type", "application/json").body(manifest(7, &["Ada"]).to_string());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

/// Status and code of an error, which has the shape of all errors.
async fn error(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    let fields: Vec<&String> = body.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["code", "error"], "{body}");
    (status, body["code"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn the_container_refuses_what_every_server_here_refuses() {
    let scene = Scene::start().await;
    for (method, path, status, code) in [
        (Method::GET, "/nothing", 404, "path_unknown"),
        (Method::GET, "/", 404, "path_unknown"),
        (Method::POST, "/nothing", 404, "path_unknown"),
        (Method::DELETE, "/nothing", 404, "path_unknown"),
        (Method::GET, "/nothing/7", 404, "path_unknown"),
        (Method::GET, "/unread/7", 404, "path_unknown"),
        (Method::GET, "/manifests/7", 404, "subject_unknown"),
        (Method::GET, "/manifests/%00", 404, "subject_unknown"),
        (Method::GET, "/manifests/%FF", 400, "path_malformed"),
        (Method::POST, "/%FF", 404, "path_unknown"),
        (Method::GET, "/manifests", 405, "method_not_allowed"),
        (Method::PUT, "/manifests/7", 405, "method_not_allowed"),
        (Method::POST, "/units/1", 405, "method_not_allowed"),
        (Method::POST, "/openapi.json", 405, "method_not_allowed"),
        (Method::GET, "/units/1", 404, "unit_unknown"),
        (Method::GET, "/units/x", 404, "unit_unknown"),
        (Method::GET, "/units/9223372036854775808", 404, "unit_unknown"),
        (Method::GET, "/units/-1", 404, "unit_unknown"),
        (Method::GET, "/units/1?full=true", 400, "parameter_unknown"),
        (Method::POST, "/manifests?dry_run=true", 400, "parameter_unknown"),
    ] {
        let response = scene.send(method.clone(), path, &[]).await;
        assert_eq!(response.headers().contains_key("allow"), status == 405, "{method} {path}");
        assert_eq!(error(response).await, (status, code.to_owned()), "{method} {path}");
    }
    assert_eq!(scene.world.number("SELECT count(*) FROM units").await, 0, "nothing was accepted");
    assert_eq!(header(&scene.send(Method::GET, "/manifests", &[]).await, "allow"), Some("POST"));

    // HEAD has the headers of GET, and no body.
    assert_eq!(scene.send(Method::POST, "/manifests", &[]).await.status(), 200);
    let (get, head) =
        (scene.send(Method::GET, "/manifests/7", &[]).await, scene.send(Method::HEAD, "/manifests/7", &[]).await);
    assert_eq!((get.status(), head.status()), (head.status(), reqwest::StatusCode::OK));
    assert_eq!(header(&get, "content-length"), header(&head, "content-length"));
    assert_eq!(head.text().await.unwrap(), "");
}

#[tokio::test]
async fn pages_of_other_origins_and_unknown_hosts_store_nothing() {
    let scene = Scene::start().await;
    for foreign in [
        &[("origin", "https://elsewhere.example")][..],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site"), ("origin", "http://localhost:1")],
    ] {
        let response = scene.send(Method::POST, "/manifests", foreign).await;
        assert_eq!(error(response).await, (403, "origin_unknown".to_owned()), "{foreign:?}");
    }
    let response = scene.send(Method::POST, "/manifests", &[("host", "elsewhere.example")]).await;
    assert_eq!(error(response).await.1, "host_unknown");
    assert_eq!(scene.world.number("SELECT count(*) FROM units").await, 0);
    assert_eq!(scene.send(Method::POST, "/manifests", &[("host", "rides.example.com")]).await.status(), 200);
    assert_eq!(scene.send(Method::POST, "/manifests", &[("sec-fetch-site", "same-origin")]).await.status(), 200);
}

#[tokio::test]
async fn every_response_of_the_container_bears_the_clients_request_id_or_a_new_one() {
    let scene = Scene::start().await;
    let mut made = std::collections::HashSet::new();
    for (method, path) in [
        (Method::POST, "/manifests"),
        (Method::GET, "/units/1"),
        (Method::GET, "/manifests/7"),
        (Method::GET, "/nothing"),
        (Method::PUT, "/manifests"),
        (Method::GET, "/openapi.json"),
    ] {
        let response = scene.send(method.clone(), path, &[("x-request-id", "client-1/a")]).await;
        assert_eq!(header(&response, "x-request-id"), Some("client-1/a"), "{method} {path}");
        let response = scene.send(method.clone(), path, &[("x-request-id", "a b")]).await;
        let id = header(&response, "x-request-id").unwrap().to_owned();
        assert!(id.len() == 16 && made.insert(id.clone()), "{method} {path}: {id}");
    }
}

#[tokio::test]
async fn the_container_does_what_its_description_says() {
    let scene = Scene::start().await;
    let url = format!("{}/openapi.json", scene.base);
    let description: Value = reqwest::get(&url).await.unwrap().json().await.unwrap();
    let paths: Vec<&String> = description["paths"].as_object().unwrap().keys().collect();
    assert_eq!(paths, ["/manifests", "/manifests/{ride_id}", "/units/{uow}", "/unread"]);

    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/schemathesis");
    let mut command = Command::new(python_program("schemathesis"));
    command.current_dir(folder).args(["--config-file", "container.toml", "run", "--no-color"]).arg(&url);
    let output = Process::spawn("schemathesis", command).succeed_within(Duration::from_secs(600)).await;
    assert!(output.contains("Tested: 4") && !output.contains("errored"), "{output}");
    let committed = scene.world.number("SELECT count(*) FROM units WHERE state = 'committed'").await;
    let manifests = scene.world.number("SELECT count(*) FROM manifests").await;
    let open = scene.world.number("SELECT count(*) FROM units WHERE settled_at IS NULL").await;
    assert!(committed > 20 && manifests > 10 && open == 0, "{committed} committed, {manifests} manifests, {open} open");
    assert!(!scene.container.output().contains("ERROR"), "{}", scene.container.output());
}
