//! The answer to a change is lost on its way: `falaj` asks again under the same key, and the change is made once.

use anyhow::{Context as _, Result, ensure};
use falaj_certs::{
    revocation::Crls,
    tls::{ServerExpectation, client_config, client_verifier, server_config},
};
use falaj_tests::federation::{Addresses, Federation, study_yaml, text};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Listens where an operator believes the coordinator to be, and passes everything on but the answer to a change that is to be
/// lost.
struct Lossy {
    address: SocketAddr,
    loses: Arc<AtomicBool>,
    _runtime: Runtime,
}

impl Lossy {
    fn open(federation: &Federation, operator: &str, coordinator: SocketAddr) -> Result<Self> {
        let trust = federation.trust()?;
        let clients = client_verifier(&trust, &Crls::default())?;
        let own = federation.credentials("coordinator", "main")?;
        let acceptor = TlsAcceptor::from(Arc::new(server_config(&own, clients, &["http/1.1"])?));
        let as_operator = federation.credentials("operator", operator)?;
        let expect = ServerExpectation::coordinator(&["ae-on/*"]);
        let config = client_config(&as_operator, &trust, &expect, &["http/1.1"])?;
        let connector = TlsConnector::from(Arc::new(config));
        let runtime = Runtime::new()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let loses = Arc::new(AtomicBool::new(false));
        let lost = loses.clone();
        runtime.spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (acceptor, connector, lost) =
                    (acceptor.clone(), connector.clone(), lost.clone());
                tokio::spawn(async move {
                    // A connection that breaks is for its two ends to notice.
                    let _ = pass_on(near, &acceptor, (coordinator, &connector), &lost).await;
                });
            }
        });
        Ok(Self { address, loses, _runtime: runtime })
    }

    /// The answer to the next change is lost.
    fn lose(&self) {
        self.loses.store(true, Ordering::Release);
    }

    /// Whether one was.
    fn has_lost(&self) -> bool {
        !self.loses.load(Ordering::Acquire)
    }
}

async fn pass_on(
    near: TcpStream,
    acceptor: &TlsAcceptor,
    (coordinator, connector): (SocketAddr, &TlsConnector),
    loses: &AtomicBool,
) -> std::io::Result<()> {
    let mut near = acceptor.accept(near).await?;
    let far = TcpStream::connect(coordinator).await?;
    let mut far = connector.connect(coordinator.ip().into(), far).await?;
    let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut changes = false;
    loop {
        tokio::select! {
            read = near.read(&mut asked) => {
                let bytes = &asked[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                changes |= bytes.starts_with(b"POST ");
                far.write_all(bytes).await?;
                far.flush().await?;
            }
            read = far.read(&mut answered) => {
                let bytes = &answered[..read?];
                // It has been answered, so that the change is made; and nobody hears of it.
                if bytes.is_empty() || (changes && loses.swap(false, Ordering::AcqRel)) {
                    return Ok(());
                }
                near.write_all(bytes).await?;
                near.flush().await?;
            }
        }
    }
}

#[test]
fn a_change_whose_answer_is_lost_is_asked_for_again_and_made_once() -> Result<()> {
    let mut federation = Federation::new()?;
    federation.coordinator_extra = format!(
        "[enrolment]\naddress = \"127.0.0.1:0\"\nauthority = \"{}\"\n",
        federation.ca().display()
    );
    let _coordinator = federation.start_coordinator()?;
    let direct = federation.addresses.context("started")?;
    let lossy = Lossy::open(&federation, "omar", direct.rest)?;
    federation.addresses = Some(Addresses { rest: lossy.address, ..direct });
    lossy.lose();
    federation.submit(&study_yaml("heart", 1, 2))?;
    ensure!(lossy.has_lost(), "the study was submitted at the first try");
    let place = ["hold", "place", "--study", "heart", "--article", "Order 1"];
    lossy.lose();
    let placed = federation.falaj_json(&place)?;
    ensure!(lossy.has_lost(), "{placed}");
    let hold = placed["hold"].as_str().context("a hold")?;
    lossy.lose();
    let released = federation.falaj_json(&["hold", "release", hold])?;
    ensure!(lossy.has_lost() && released["hold"] == hold, "{released}");
    lossy.lose();
    let stopped = federation.falaj_json(&["study", "stop", "heart"])?;
    ensure!(lossy.has_lost() && stopped["id"] == "heart", "{stopped}");
    federation.study_reaches("heart", &["stopped"])?;
    // The secret of a token was in the answer that is lost, and is nowhere else.
    lossy.lose();
    let offer = ["site", "enroll-token", "hospital-9", "--at-place", "ae-on/ae-az"];
    let out = federation.falaj(&offer)?;
    let told = text(&out);
    ensure!(!out.status.success() && lossy.has_lost(), "{told}");
    let offered = federation.entries("enrolment.offered")?;
    let [offered] = &offered[..] else { anyhow::bail!("{offered:?}") };
    let token = offered["entry"]["token"].as_str().with_context(|| format!("{offered}"))?;
    ensure!(told.contains(&format!("falaj site withdraw-token {token}")), "{told}");
    for (kind, name) in [
        ("study.submitted", "study"),
        ("hold.placed", "hold"),
        ("hold.released", "hold"),
        ("study.stopped", "study"),
    ] {
        let entries = federation.entries(kind)?;
        ensure!(entries.len() == 1 && entries[0].to_string().contains(name), "{kind}: {entries:?}");
    }
    // Whoever verifies the log finds nothing wrong with it.
    federation.verified()?;
    Ok(())
}
