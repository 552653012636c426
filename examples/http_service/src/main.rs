//! A product service over HTTP. A PUT is answered when the write is durable in the journal; the store follows.
//!
//! ```text
//! cargo run --release -p forebay-http-service -- 127.0.0.1:8080 data
//! curl -X PUT -H 'content-type: application/json' -d '{"name":"kettle","price_cents":3490}' 127.0.0.1:8080/products/7
//! curl 127.0.0.1:8080/products/7
//! ```
//!
//! SIGINT and SIGTERM end it: requests under way are answered, then the layer is closed, which drains the queue.

#![allow(clippy::print_stdout, reason = "it prints its address")]

use anyhow::{Context as _, Result};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use forebay::{Cache, Error, ErrorKind, Forebay, SledStore, WritePolicy};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Product {
    name: String,
    price_cents: u64,
}

type Products = State<Cache<u64, Product>>;
type Failure = (StatusCode, String);

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().context("usage: forebay-http-service ADDRESS DIRECTORY")?;
    let directory = std::path::PathBuf::from(arguments.next().context("a directory is missing")?);
    let layer = Forebay::builder(SledStore::open(directory.join("store"))?)
        .journal(directory.join("journal"))
        .open()
        .await?;
    let products = layer.cache("products").write_policy(WritePolicy::Behind).open()?;

    let routes =
        Router::new().route("/products/{id}", get(show).put(store).delete(remove)).with_state(products);
    let listener = tokio::net::TcpListener::bind(address).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, routes)
        .with_graceful_shutdown(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        })
        .await?;
    // No request is left that could write. Without this the queue would be drained at the next start.
    layer.close().await?;
    Ok(())
}

async fn show(State(products): Products, Path(id): Path<u64>) -> Result<Json<Product>, Failure> {
    let product = products.get(&id).await.map_err(failure)?;
    product.map(Json).ok_or_else(|| (StatusCode::NOT_FOUND, format!("there is no product {id}\n")))
}

async fn store(
    State(products): Products,
    Path(id): Path<u64>,
    Json(product): Json<Product>,
) -> Result<StatusCode, Failure> {
    products.put(&id, product).await.map(|_| StatusCode::NO_CONTENT).map_err(failure)
}

async fn remove(State(products): Products, Path(id): Path<u64>) -> Result<StatusCode, Failure> {
    products.remove(&id).await.map(|_| StatusCode::NO_CONTENT).map_err(failure)
}

/// Tells a client whether to try again: a full queue empties by itself.
fn failure(error: Error) -> Failure {
    let status = match error.kind() {
        ErrorKind::QueueFull | ErrorKind::Transient | ErrorKind::Closed => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, format!("{error}\n"))
}
