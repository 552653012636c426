//! The first program: a layer in front of an embedded store, one cache, a write, a read, and what a restart
//! finds.
//!
//! ```text
//! cargo run --release --example quickstart [DIRECTORY]
//! ```

#![allow(clippy::print_stdout, reason = "a program that says what happens")]

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use forebay::{Cache, Durability, Forebay, SledStore, WritePolicy};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Product {
    name: String,
    price_cents: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let temporary = tempfile::tempdir().context("making a directory for the data")?;
    let given = std::env::args_os().nth(1).map(PathBuf::from);
    let directory = given.as_deref().unwrap_or(temporary.path());
    first_run(directory).await?;
    second_run(directory).await
}

async fn open(directory: &Path) -> Result<(Forebay, Cache<u64, Product>)> {
    let bay = Forebay::builder(SledStore::open(directory.join("store"))?)
        .journal(directory.join("journal"))
        .durability(Durability::Sync)
        .open()
        .await?;
    let products = bay.cache("products").capacity(100_000).write_policy(WritePolicy::Behind).open()?;
    Ok((bay, products))
}

async fn first_run(directory: &Path) -> Result<()> {
    let (bay, products) = open(directory).await?;

    let kettle = Product { name: "kettle".into(), price_cents: 3_490 };
    let receipt = products.put(&7, kettle).await?;
    println!("put      7 is on the disk as write {}; the store follows", receipt.seq());

    let seen = products.get(&7).await?;
    println!("get      7 is {seen:?}, from memory");

    let applied = bay.flush().await?;
    println!("flush    the store holds everything up to write {applied}");

    let mut sale = bay.batch();
    sale.put(&products, &8, Product { name: "teapot".into(), price_cents: 2_200 })?;
    sale.put(&products, &9, Product { name: "tea".into(), price_cents: 450 })?;
    let receipt = sale.commit().await?;
    println!("batch    8 and 9 are on the disk, both or neither, up to write {}", receipt.seq());

    let closed = bay.close_within(std::time::Duration::ZERO).await?;
    println!("close    at once: {} writes are left to the next opening", closed.queued);
    Ok(())
}

async fn second_run(directory: &Path) -> Result<()> {
    let (bay, products) = open(directory).await?;
    let seen = products.get_many(&[7, 8, 9, 10]).await?;
    println!("reopen   7 to 10 are {seen:#?}");
    anyhow::ensure!(seen.iter().filter(|product| product.is_some()).count() == 3, "a product is missing");

    let receipt = products.remove(&7).await?;
    anyhow::ensure!(!products.contains(&7).await?, "a removed product is still there");
    bay.wait_applied(receipt.seq()).await?;
    println!("remove   7 is gone, from the store too");

    let closed = bay.close().await?;
    println!("close    drained: {} writes are left", closed.queued);
    Ok(())
}
