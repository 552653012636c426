//! A product service over HTTP. A PUT is answered when the write is durable in the journal; the store follows.
//!
//! ```text
//! cargo run --release -p forebay-http-service -- 127.0.0.1:8080 data
//! curl -X PUT -H 'content-type: application/json' -d '{"name":"kettle","price_cents":3490}' 127.0.0.1:8080/products/7
//! curl 127.0.0.1:8080/products/7
//! ```
//!
//! SIGINT and SIGTERM end it: requests under way are answered, then the layer is closed, which drains the queue.

use axum::extract::{Path, State};
use axum::{Json, Router, http::StatusCode, routing::get};
use forebay::{Cache, Error, Forebay, SledStore};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Product {
    name: String,
    price_cents: u64,
}

type Products = State<Cache<u64, Product>>;
type Answer<T> = Result<T, (StatusCode, String)>;

#[tokio::main]
#[allow(clippy::print_stdout, reason = "it prints its address")]
async fn main() -> anyhow::Result<()> {
    let [address, directory] = &std::env::args().skip(1).collect::<Vec<_>>()[..] else {
        anyhow::bail!("usage: forebay-http-service ADDRESS DIRECTORY");
    };
    let store = SledStore::open(format!("{directory}/store"))?;
    let layer = Forebay::builder(store).journal(format!("{directory}/journal")).open().await?;
    let products: Cache<u64, Product> = layer.cache("products").open()?;

    let routes = Router::new().route("/products/{id}", get(show).put(put).delete(remove));
    let listener = tokio::net::TcpListener::bind(address).await?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = async move { tokio::select!(_ = interrupt.recv() => {}, _ = terminate.recv() => {}) };
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, routes.with_state(products)).with_graceful_shutdown(stop).await?;
    // No request is left that could write. Without this the queue would be drained at the next start.
    layer.close().await?;
    Ok(())
}

async fn show(State(products): Products, Path(id): Path<u64>) -> Answer<Json<Product>> {
    let product = products.get(&id).await.map_err(failure)?;
    product.map(Json).ok_or_else(|| (StatusCode::NOT_FOUND, format!("there is no product {id}\n")))
}

async fn put(State(products): Products, Path(id): Path<u64>, Json(new): Json<Product>) -> Answer<StatusCode> {
    products.put(&id, new).await.map(|_| StatusCode::NO_CONTENT).map_err(failure)
}

async fn remove(State(products): Products, Path(id): Path<u64>) -> Answer<StatusCode> {
    products.remove(&id).await.map(|_| StatusCode::NO_CONTENT).map_err(failure)
}

/// Tells a client whether to try again: a full queue empties by itself.
fn failure(error: Error) -> (StatusCode, String) {
    let passes = error.is_transient();
    let status = if passes { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::INTERNAL_SERVER_ERROR };
    (status, format!("{error}\n"))
}
