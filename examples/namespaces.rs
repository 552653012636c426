//! Each way to invalidate many entries at once, in a small shop, as a printed time line.
//!
//! ```sh
//! cargo run --release --example namespaces
//! ```
//!
//! A row is one thing that happens: what is done, what of the derived pages memory still serves afterwards, and how
//! often a page had to be made so far. Pages are made by a loader, so one that is made again had become stale.

#![allow(clippy::print_stdout, reason = "it is a program that prints")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use anyhow::{Result, ensure};
use forebay::{Bincode, Cache, Codec, Error, Forebay, LoadContext, Loaded, WriteOptions};
use serde::{Deserialize, Serialize};

#[derive(Clone, Serialize, Deserialize)]
struct Product {
    category: String,
    price_cents: u64,
}

/// The same with a currency: schema version 2.
#[derive(Clone, Serialize, Deserialize)]
struct PricedProduct {
    category: String,
    price_cents: u64,
    currency: String,
}

const PAGES: [(&str, &str); 4] =
    [("eu", "home"), ("eu", "catalogue/toys"), ("us", "home"), ("us", "catalogue/tools")];

type Page = (String, String);

struct Shop {
    products: Cache<u64, Product>,
    pages: Cache<Page, String>,
    made: Arc<AtomicU64>,
}

impl Shop {
    fn open(bay: &Forebay) -> Result<Shop> {
        let pages = bay.cache("shop/pages").group_by(|(region, _): &Page| Some(region.clone())).open()?;
        let products = bay
            .cache("shop/products")
            .on_change(|change, stale| {
                // When products/{id} changes, the catalogues of its old and new category are stale, in all regions.
                let categories =
                    change.old.into_iter().chain(change.new).map(|product: &Product| &product.category);
                for category in categories {
                    for region in ["eu", "us"] {
                        stale.key("shop/pages", (region.to_owned(), format!("catalogue/{category}")));
                    }
                }
            })
            .open()?;
        Ok(Shop { products, pages, made: Arc::default() })
    }

    /// Serves a page; makes it if memory has none that is good. Home shows the price of product 1, and so hangs on it.
    async fn serve(&self, region: &str, name: &str) -> Result<()> {
        let (products, made) = (self.products.clone(), Arc::clone(&self.made));
        let make = move |(region, name): Page, context: LoadContext| async move {
            made.fetch_add(1, SeqCst);
            let mut page = format!("{name} in {region}");
            if name == "home" {
                let kettle = context.get(&products, &1).await?;
                page += &format!(", from {} cents", kettle.map_or(0, |kettle| kettle.price_cents));
            }
            Ok::<_, Error>(Loaded::new(page).tags(["pages"]))
        };
        self.pages.get_or_derive(&(region.into(), name.into()), make).await?;
        Ok(())
    }

    /// Tells what has happened, and what memory still serves; then serves everything again.
    async fn tell(&self, what: &str, expected_gone: usize) -> Result<()> {
        let mut row = format!("{what:<58}");
        let mut gone = 0;
        for (region, name) in PAGES {
            let held = self.pages.get(&(region.into(), name.into())).await?.is_some();
            gone += usize::from(!held);
            row += &format!(" {:<6}", if held { "fresh" } else { "gone" });
        }
        println!("{row} {:>5}", self.made.load(SeqCst));
        // More can be gone, seldom: fences and floors are striped, and who shares one is made again once too often.
        ensure!(gone >= expected_gone, "{gone} pages are gone, not {expected_gone}");
        for (region, name) in PAGES {
            self.serve(region, name).await?;
        }
        Ok(())
    }
}

fn product(category: &str, price_cents: u64) -> Product {
    Product { category: category.into(), price_cents }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let open = || {
        let store = forebay::SledStore::open(scratch.path().join("store"))?;
        Ok::<_, Error>(Forebay::builder(store).journal(scratch.path().join("journal")))
    };
    let bay = open()?.open().await?;
    let shop = Shop::open(&bay)?;
    let names = PAGES.map(|(region, name)| format!("{region} {:<3}", name.get(..3).unwrap_or(name)));
    println!("{:<58} {}  made", "still in memory, of each region's home and catalogue:", names.join(" "));
    shop.tell("nothing is loaded yet", 4).await?;
    shop.tell("served once", 0).await?;

    let receipt = shop.products.put(&1, product("toys", 3_490)).await?;
    shop.tell("product 1 becomes a toy: homes read it, a rule names toys", 3).await?;
    shop.products.put(&2, product("tools", 990)).await?;
    shop.tell("product 2 becomes a tool: only the rule", 1).await?;
    shop.pages.invalidate_group("eu").await?;
    shop.tell("the group eu of the pages", 2).await?;
    bay.invalidate_tag("pages")?;
    shop.tell("the tag pages", 4).await?;
    let token = bay.invalidate_namespace("shop").await?;
    shop.tell("the namespace shop, and with it shop/pages", 4).await?;
    ensure!(
        shop.products.get_entry(&1).await?.version == Some(receipt.seq()),
        "what was written is the truth"
    );
    let options = WriteOptions::new().tags(["pages"]);
    shop.products.put_with(&2, product("tools", 890), options).await?;
    shop.tell("product 2, now with a tag of its own", 1).await?;

    drop(shop);
    bay.close().await?;
    drop(bay);
    let bay = open()?.open().await?;
    let kept = bay.namespace_token("shop/pages").await?;
    println!("\nafter a restart: shop/pages has the token {kept} of its namespace shop");
    ensure!(kept == token.seq(), "the token is durable");
    let products: Cache<u64, PricedProduct> = bay
        .cache("shop/products")
        .schema_version(2)
        .upgrade(|from, bytes| match from {
            1 => {
                let Product { category, price_cents } = Bincode::decode(bytes)?;
                Ok(PricedProduct { category, price_cents, currency: "EUR".into() })
            }
            other => Err(format!("schema version {other} is newer than this program").into()),
        })
        .open()?;
    if let Some(kettle) = products.get(&1).await? {
        println!(
            "schema 2 reads product 1: {} {} of {}",
            kettle.price_cents, kettle.currency, kettle.category
        );
    }
    bay.close().await?;
    Ok(())
}
