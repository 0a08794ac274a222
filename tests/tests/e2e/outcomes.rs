//! What became of a model that somebody was about to be given: who went away in the middle, and a coordinator that was killed
//! in the middle (AUD-04).

use anyhow::{Context as _, Result, ensure};
use falaj_certs::tls::{ServerExpectation, client_config};
use falaj_tests::federation::{Federation, study_yaml, wait_for};
use rustls::{ClientConnection, StreamOwned};
use serde_json::Value;
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

/// Nothing that is read here takes longer.
const PATIENCE: Duration = Duration::from_mins(1);

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Asks for a model that is larger than what two machines keep for a connection, and reads its beginning.
fn begin(federation: &Federation) -> Result<Stream> {
    let address = federation.addresses.context("started")?.rest;
    let expect = ServerExpectation::coordinator(&["ae-on/*"]);
    let credentials = federation.credentials("operator", "omar")?;
    let tls = client_config(&credentials, &federation.trust()?, &expect, &["http/1.1"])?;
    let tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    let connection = ClientConnection::new(Arc::new(tls), "localhost".try_into()?)?;
    let mut stream = StreamOwned::new(connection, tcp);
    stream.write_all(
        b"GET /api/v1/studies/large/models/latest HTTP/1.1\r\nhost: localhost\r\n\r\n",
    )?;
    let mut begun = [0; 4_096];
    stream.read_exact(&mut begun)?;
    ensure!(begun.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&begun));
    Ok(stream)
}

/// The newest access, and what the log tells of it once it tells something.
fn told(federation: &Federation) -> Result<(u64, Value)> {
    let read = federation.entries("model.read")?;
    let read = read.last().and_then(|e| e["index"].as_u64()).context("an access")?;
    let outcome = wait_for("the outcome", || {
        let told = federation.entries("access.served")?;
        Ok(told.into_iter().find(|e| e["entry"]["intent"] == read))
    })?;
    Ok((read, outcome["entry"].clone()))
}

/// AUD-04.
#[test]
fn whoever_goes_away_in_the_middle_and_a_coordinator_that_is_killed_there_leave_an_outcome()
-> Result<()> {
    let mut federation = Federation::new()?;
    let mut coordinator = federation.start_coordinator()?;
    let large = study_yaml("large", 1, 2);
    let large = large.replace("kind: logistic", "kind: mlp, hidden: [4096, 4096]");
    federation.submit(&large)?;

    drop(begin(&federation)?);
    let (_, outcome) = told(&federation)?;
    ensure!(outcome["outcome"] == "broken_off" && outcome["served"] == "model.read", "{outcome}");
    // Four bytes a parameter.
    let bytes = outcome["bytes"].as_u64().context("bytes")?;
    ensure!((1..64 << 20).contains(&bytes), "{outcome}");

    let open = begin(&federation)?;
    coordinator.kill()?;
    drop(open);
    let _coordinator = federation.start_coordinator()?;
    let (read, outcome) = told(&federation)?;
    ensure!(outcome["outcome"] == "unknown" && outcome.get("bytes").is_none(), "{outcome}");
    let started = federation.entries("coordinator.started")?;
    let started = started.last().and_then(|e| e["index"].as_u64()).context("a start")?;
    let seq = outcome["seq"].as_u64().context("an index")?;
    ensure!(read < seq && seq < started, "the start came before it was settled: {outcome}");
    let said = federation.verified()?;
    ensure!(said.contains("verified: "), "{said}");
    Ok(())
}
