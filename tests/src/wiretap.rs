//! Between a site and its coordinator, with the keys of both: what the site sends, decrypted.

use crate::federation::Federation;
use anyhow::{Context as _, Result, ensure};
use falaj_certs::{
    revocation::Crls,
    tls::{ServerExpectation, client_config, client_verifier, server_config},
};
use falaj_core::id::Digest;
use falaj_proto::v1::{UpdatePart, update_part::Part};
use prost::Message as _;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What a client sends first in HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The length of a frame's head, and the type and the flag of frames of data (RFC 9113, sections 4.1 and 6.1).
const HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const PADDED: u8 = 0x8;

/// What was sent on each connection so far.
type Heard = Arc<Mutex<Vec<Arc<Mutex<Vec<u8>>>>>>;

/// Listens where a site believes its coordinator to be, and passes everything on.
pub struct Wiretap {
    address: SocketAddr,
    heard: Heard,
    _runtime: Runtime,
}

impl Wiretap {
    /// Opens one for a site whose certificate has been issued, towards the coordinator's address for agents.
    ///
    /// # Errors
    /// When a certificate or key is not there, or nothing can listen.
    pub fn open(federation: &Federation, site: &str, coordinator: SocketAddr) -> Result<Self> {
        let trust = federation.trust()?;
        let clients = client_verifier(&trust, &Crls::default())?;
        let own = federation.credentials("coordinator", "main")?;
        let acceptor = TlsAcceptor::from(Arc::new(server_config(&own, clients, &["h2"])?));
        let as_site = federation.credentials("site", site)?;
        let expect = ServerExpectation::coordinator(&["ae-on/*"]);
        let config = client_config(&as_site, &trust, &expect, &["h2"])?;
        let connector = TlsConnector::from(Arc::new(config));
        let runtime = Runtime::new()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let heard = Heard::default();
        let connections = heard.clone();
        runtime.spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let sent = Arc::new(Mutex::new(Vec::new()));
                connections.lock().unwrap_or_else(PoisonError::into_inner).push(sent.clone());
                let (acceptor, connector) = (acceptor.clone(), connector.clone());
                tokio::spawn(async move {
                    // A connection that breaks is for its two ends to notice.
                    let _ = pass_on(near, &acceptor, (coordinator, &connector), &sent).await;
                });
            }
        });
        Ok(Self { address, heard, _runtime: runtime })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the site has sent: of each connection the contents of every stream, and then everything else.
    ///
    /// # Errors
    /// When it is no HTTP/2.
    pub fn sent(&self) -> Result<Vec<u8>> {
        let connections = self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut all = Vec::new();
        for sent in connections {
            let sent = sent.lock().unwrap_or_else(PoisonError::into_inner).clone();
            all.extend(contents(&sent)?);
        }
        Ok(all)
    }
}

/// A message that a site sent: what its egress journal should say of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overheard {
    /// Whether it is an update, in however many pieces.
    pub update: bool,
    /// Its bytes; of an update those of header, signature and payload.
    pub bytes: u64,
    /// Their SHA-256; of an update that of the payload.
    pub sha256: String,
}

impl Wiretap {
    /// Every message that the site has sent, whole.
    ///
    /// # Errors
    /// When it is no gRPC over HTTP/2.
    pub fn messages(&self) -> Result<Vec<Overheard>> {
        let connections = self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut all = Vec::new();
        for sent in connections {
            let sent = sent.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if sent.len() < PREFACE.len() {
                continue;
            }
            for stream in frames(&sent)?.0.values() {
                all.extend(overheard(&messages(stream)?)?);
            }
        }
        all.sort();
        Ok(all)
    }
}

/// The messages in a stream's content: a byte, four of length, and the message.
fn messages(mut stream: &[u8]) -> Result<Vec<&[u8]>> {
    let mut all = Vec::new();
    while let Some((head, after)) = stream.split_at_checked(5) {
        ensure!(head[0] == 0, "nothing of ours is compressed");
        let length = usize::try_from(u32::from_be_bytes([head[1], head[2], head[3], head[4]]))?;
        let Some((message, next)) = after.split_at_checked(length) else { break };
        all.push(message);
        stream = next;
    }
    Ok(all)
}

/// What a request's messages are: several are the pieces of an update.
fn overheard(messages: &[&[u8]]) -> Result<Option<Overheard>> {
    let (update, bytes, hashed) = match messages {
        [] => return Ok(None),
        [one] => (false, one.len(), one.to_vec()),
        pieces => {
            let (mut head, mut payload) = (0, Vec::new());
            for piece in pieces {
                match UpdatePart::decode(*piece)?.part.context("an empty piece")? {
                    Part::Open(open) => head += open.header.len() + open.signature.len(),
                    Part::Chunk(chunk) => payload.extend_from_slice(&chunk),
                }
            }
            (true, head + payload.len(), payload)
        }
    };
    let sha256 = Digest::of(&hashed).to_string();
    Ok(Some(Overheard { update, bytes: bytes as u64, sha256 }))
}

async fn pass_on(
    near: TcpStream,
    acceptor: &TlsAcceptor,
    (coordinator, connector): (SocketAddr, &TlsConnector),
    sent: &Mutex<Vec<u8>>,
) -> std::io::Result<()> {
    let near = acceptor.accept(near).await?;
    let far = TcpStream::connect(coordinator).await?;
    let far = connector.connect(coordinator.ip().into(), far).await?;
    let (mut from_site, mut to_site) = tokio::io::split(near);
    let (mut from_coordinator, mut to_coordinator) = tokio::io::split(far);
    let up = async {
        let mut chunk = vec![0; 1 << 16];
        loop {
            let read = from_site.read(&mut chunk).await?;
            if read == 0 {
                return to_coordinator.shutdown().await;
            }
            let taken = &chunk[..read];
            sent.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(taken);
            to_coordinator.write_all(taken).await?;
            to_coordinator.flush().await?;
        }
    };
    let down = async {
        tokio::io::copy(&mut from_coordinator, &mut to_site).await?;
        to_site.shutdown().await
    };
    tokio::try_join!(up, down)?;
    Ok(())
}

/// The contents of every stream of a connection, and then all that is no content. What is not whole yet is left out.
fn contents(sent: &[u8]) -> Result<Vec<u8>> {
    if sent.len() < PREFACE.len() {
        return Ok(Vec::new());
    }
    let (streams, others) = frames(sent)?;
    let mut all: Vec<u8> = streams.into_values().flatten().collect();
    all.extend(others);
    Ok(all)
}

/// The content of each stream, and all that is no content.
type Frames = (BTreeMap<u32, Vec<u8>>, Vec<u8>);

fn frames(sent: &[u8]) -> Result<Frames> {
    let mut rest = sent.strip_prefix(PREFACE).context("it is no HTTP/2")?;
    let (mut streams, mut others) = (BTreeMap::<u32, Vec<u8>>::new(), Vec::new());
    while let Some((head, after)) = rest.split_at_checked(HEAD_BYTES) {
        let length = usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]]))?;
        let Some((payload, next)) = after.split_at_checked(length) else { break };
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if head[3] == DATA {
            ensure!(head[4] & PADDED == 0, "nothing of ours pads frames");
            streams.entry(stream).or_default().extend_from_slice(payload);
        } else {
            others.extend_from_slice(payload);
        }
        rest = next;
    }
    Ok((streams, others))
}

/// Whether bytes occur in others.
#[must_use]
pub fn occurs(pattern: &[u8], within: &[u8]) -> bool {
    !pattern.is_empty() && within.windows(pattern.len()).any(|window| window == pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).expect("short");
        let mut frame = vec![0, 0, length, kind, 0, 0, 0, 0, stream];
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn what_is_cut_into_frames_is_found_whole() {
        let frames = [
            frame(4, 0, b"settings"),
            frame(DATA, 1, b"can"),
            frame(DATA, 3, b"other"),
            frame(DATA, 1, b"ary"),
            frame(DATA, 1, b"cut off")[..12].to_vec(),
        ];
        let sent = [PREFACE, &frames.concat()].concat();
        let found = contents(&sent).expect("HTTP/2");
        assert_eq!(found, b"canaryothersettings");
        assert!(occurs(b"canary", &found) && !occurs(b"cut", &found) && !occurs(b"", &found));
        assert!(contents(b"GET / HTTP/1.1 and more of it").is_err());
    }
}
