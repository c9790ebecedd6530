//! Greets every key once, and replays the greeting after that.
//!
//! ```text
//! DATABASE_URL=postgres://… cargo run -p idempotency --example hello
//! curl -i -H 'Idempotency-Key: "World"' localhost:3000
//! curl -i -H 'Idempotency-Key: "World"' localhost:3000
//! ```
//!
//! Both responses are `Hello World!`, and `Not persisted!` is printed once.

use axum::routing::get;
use axum::{Extension, Router};
use deadpool_postgres::{Manager, Pool};
use idempotency::{IdempotencyKey, IdempotencyLayer, PostgresStore, Store};
use tokio::net::TcpListener;
use tokio_postgres::NoTls;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("DATABASE_URL").map_err(|_| "DATABASE_URL is not set: where is Postgres?")?;
    let pool = Pool::builder(Manager::new(url.parse()?, NoTls)).build()?;
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    axum::serve(listener, router(PostgresStore::new(pool), |line| println!("{line}"))).await?;
    Ok(())
}

/// `GET /*`. `say` is called whenever the handler runs.
pub fn router<S: Store>(store: S, say: impl Fn(&str) + Clone + Send + Sync + 'static) -> Router {
    let hello = async move |Extension(IdempotencyKey(key)): Extension<IdempotencyKey>| {
        say("Not persisted!");
        format!("Hello {key}!")
    };
    Router::new()
        .route("/", get(hello.clone()))
        .route("/{*path}", get(hello))
        .layer(IdempotencyLayer::new(store).require_key())
}
