//! TLS to a Postgres server: the store and the bus speak it, and believe nobody whom their authority has not signed.

use std::path::Path;

use bytes::Bytes;
use forebay::bus::{Bus, Delivery, Identity, Message, StartPosition};
use forebay::{Channel, Error, ErrorKind, PostgresBus, PostgresServer, PostgresStore};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use forebay_servers::certificates::Certificates;
use forebay_servers::postgres::{PASSWORD, Postgres, USER};

/// Of a client that believes this authority and no other.
fn trusting(authority: &Certificates) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&authority.authority_pem()).unwrap()).unwrap();
    ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
}

fn start(certificates: &Certificates) -> Postgres {
    Postgres::start_with_tls(Path::new(&certificates.certificate()), Path::new(&certificates.key()))
}

fn channel() -> Channel {
    Channel::parse("shop").unwrap()
}

async fn publish(bus: &PostgresBus, body: &'static str) -> Result<(), Error> {
    let message = Message { identity: Identity::parse(body).unwrap(), body: Bytes::from(body) };
    bus.publish(&channel(), &[message]).await
}

/// Opens the store, publishes and listens, and collects what each says.
async fn refused(server: &PostgresServer) -> [(Error, ErrorKind); 3] {
    let bus = PostgresBus::open(server.clone()).unwrap();
    let Err(listens) = bus.subscribe(&channel(), StartPosition::Now).await else { panic!("it listens") };
    let publishes = publish(&bus, "1").await.expect_err("it publishes");
    let opens = PostgresStore::open(server.clone()).await.map(drop).expect_err("it opens");
    [(listens, ErrorKind::BusFailed), (publishes, ErrorKind::BusFailed), (opens, ErrorKind::StoreFailed)]
}

#[tokio::test]
async fn store_and_bus_speak_tls_and_nothing_else() {
    let certificates = Certificates::make();
    let server = start(&certificates);
    let tls = server.server("postgres").tls(trusting(&certificates));
    let bus = PostgresBus::open(tls.clone()).unwrap();
    let mut listener = bus.subscribe(&channel(), StartPosition::Now).await.unwrap();
    publish(&bus, "one").await.unwrap();
    let Delivery::Message(_, body) = listener.next().await.unwrap() else { panic!("it is lost") };
    assert_eq!(body, "one");
    let _store = PostgresStore::open(tls).await.unwrap();
    let client = server.client("postgres").await;
    let encrypted = "SELECT count(*) FILTER (WHERE ssl), count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE application_name = 'forebay'";
    let row = client.query_one(encrypted, &[]).await.unwrap();
    let (encrypted, all): (i64, i64) = (row.get(0), row.get(1));
    assert!(all >= 3 && encrypted == all, "{encrypted} of {all} connections are encrypted");
}

/// It was told as something that may pass, and tried again for ever.
#[tokio::test]
async fn a_server_of_another_authority_and_one_without_tls_are_refused_without_a_secret() {
    let (certificates, other) = (Certificates::make(), Certificates::make());
    let server = start(&certificates);
    let plain = Postgres::start();
    let stranger = server.server("postgres").tls(trusting(&other));
    let unencrypted = plain.server("postgres").tls(trusting(&certificates));
    for (server, why) in [(stranger, "invalid peer certificate"), (unencrypted, "does not support TLS")] {
        for (error, kind) in refused(&server).await {
            let told = format!("{error} {error:?} {server:?}");
            assert_eq!(error.kind(), kind, "{told}");
            assert!(told.contains(why) && told.contains("Postgres at 127.0.0.1"), "{told}");
            assert!(!told.contains(PASSWORD) && !told.contains(USER), "{told}");
        }
    }
    // Nor does a wrong password show in what the server says over TLS.
    let wrong = PostgresServer::parse(&server.url(USER, "wrong-6291", "postgres")).unwrap();
    for (error, kind) in refused(&wrong.tls(trusting(&certificates))).await {
        let told = format!("{error} {error:?}");
        assert_eq!(error.kind(), kind, "{told}");
        assert!(!told.contains("6291") && !told.contains(USER), "{told}");
    }
}

/// A server that goes away while it shakes hands is one that may come back.
#[tokio::test]
async fn a_server_that_hangs_up_while_shaking_hands_may_come_back() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hangs_up = tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        // It is asked whether it speaks TLS, says that it does, and reads what comes first.
        connection.read_exact(&mut [0; 8]).await.unwrap();
        connection.write_all(b"S").await.unwrap();
        connection.read_exact(&mut [0; 1]).await.unwrap();
    });
    let server = PostgresServer::parse(&format!("postgres://u:p@127.0.0.1:{port}/d")).unwrap();
    let bus = PostgresBus::open(server.tls(trusting(&Certificates::make()))).unwrap();
    let error = publish(&bus, "1").await.expect_err("it hung up");
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    hangs_up.await.unwrap();
}
